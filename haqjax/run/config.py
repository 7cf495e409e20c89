"""What a person may ask of a run, and the checks that need no computation."""

import dataclasses
import math
from pathlib import Path

from haqjax.files import check_free
from haqjax.hardware import Machine, machine
from haqjax.models import MODELS
from haqjax.quantize.ranges import METHODS
from haqjax.search import SEARCHERS
from haqjax.types import Cost

SIZE_WEIGHTS_ONLY = ((2, 8), (8, 8))  # a size budget leaves activations at 8 bits: they take no room in storage
ALL = ((2, 2), (8, 8))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a float network, as a search does on first use, and keep it in a folder."""

    model: str = "mobilenet_v2"
    """mobilenet_v1, mobilenet_v2, resnet50, resnet20 or resnet56."""
    data: str = "digits"
    """digits (needs no download), or tfds:NAME for a prepared set of TensorFlow Datasets."""
    data_dir: str | None = None
    """Folder of tfds data sets."""
    seed: int = 0
    """Of the initial weights and of the order of the images."""
    out: str | None = None
    """Folder to write; never overwritten. Default: weights/MODEL-DATA-seedSEED."""

    def check(self) -> None:
        """Raises a ValueError of one line for bad input. Not on construction: tyro would wrap the line in a box."""
        _check_one_of("model", self.model, MODELS)
        _check_seed(self.seed)
        if self.out is not None:
            check_free(self.out)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Search the bits of every layer of a network for a machine and a budget, and write a run folder."""

    model: str = "mobilenet_v2"
    """mobilenet_v1, mobilenet_v2, resnet50, resnet20 or resnet56."""
    hw: str = "edge"
    """edge, cloud, bitfusion or another machine by name, or the path of a machine (.yaml) or a table (.csv, .npy)."""
    data: str = "digits"
    """digits (needs no download), or tfds:NAME for a prepared set of TensorFlow Datasets."""
    data_dir: str | None = None
    """Folder of tfds data sets."""
    metric: str = "latency"
    """What the budget limits: latency, energy or size. With size, weights are searched and activations keep 8 bits."""
    budget: float = 0.6
    """Fraction of what the network costs with 8 bits everywhere."""
    search: str = "haq"
    """haq (a DDPG agent) or random."""
    episodes: int = 400
    """Policies to evaluate."""
    parallel: int = 4
    """Policies a round; the agent learns after each round."""
    calibration: str = "mse"
    """How clip values are chosen: mse, max, percentile or kl."""
    seed: int = 0
    """Of the search; the splits of the data and the float network do not depend on it."""
    weights: str | None = None
    """Folder of trained weights, as the train command writes it. Default: train on first use, then reuse."""
    out: str | None = None
    """Run folder to write; never overwritten. Default: a new one under runs/."""

    def check(self) -> None:
        """Raises a ValueError of one line for bad input; see `TrainConfig.check`."""
        _check_one_of("model", self.model, MODELS)
        _check_one_of("metric", self.metric, Cost._fields)
        _check_one_of("search", self.search, SEARCHERS)
        _check_one_of("calibration", self.calibration, METHODS)
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise ValueError(f"budget is {self.budget}: give a fraction of the 8-bit cost above 0, such as 0.6")
        _check_seed(self.seed)
        for name in ("episodes", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.weights is not None and not Path(self.weights).is_dir():
            raise ValueError(f"weights {self.weights!r} is no folder: give one that `python -m haqjax train` wrote")
        if self.out is not None:
            check_free(self.out)

    @property
    def machine(self) -> Machine:
        return machine(self.hw)

    @property
    def widths(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Fewest and most bits of (weights, activations) between the first and the last layer."""
        return SIZE_WEIGHTS_ONLY if self.metric == "size" else ALL


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Measure the policy of a finished run again, with fine-tuned weights where there are any."""

    run: str
    """Run folder."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune the network of a finished run under its policy; the weights go into the run folder."""

    run: str
    """Run folder."""
    epochs: int = 3
    """Passes over the training split."""
    learning_rate: float = 2e-3
    """Its largest value."""
    seed: int = 0
    """Of the order of the images."""

    def check(self) -> None:
        """Raises a ValueError of one line for bad input."""
        _check_seed(self.seed)
        if self.epochs < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs {self.epochs} and learning_rate {self.learning_rate} must be above 0")


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Write what each layer of a network costs on a machine, at every pair of bit-widths."""

    out: str
    """File to write, .csv or .npy; never overwritten."""
    model: str = "mobilenet_v2"
    """A network of the zoo, or module:function that returns (apply, params, example batch)."""
    hw: str = "edge"
    """edge, cloud, bitfusion or another machine by name, or the path of a machine's .yaml file."""
    image_size: int = 224
    """Height and width of the images, for a network of the zoo."""
    classes: int = 1000
    """Number of classes, for a network of the zoo."""

    @property
    def machine(self) -> Machine:
        return machine(self.hw)


@dataclasses.dataclass(frozen=True)
class HardwareConfig:
    """Show what limits each layer of a network on some machines, at 8 and at 4 bits."""

    model: str = "mobilenet_v2"
    """A network of the zoo, or module:function that returns (apply, params, example batch)."""
    hw: tuple[str, ...] = ("edge", "cloud")
    """Machines by name, or paths of .yaml files."""
    image_size: int = 224
    """Height and width of the images, for a network of the zoo."""
    classes: int = 1000
    """Number of classes, for a network of the zoo."""
    out: str | None = None
    """Folder for the figures; never overwritten. Default: none are drawn."""


def free_folder(name: str) -> Path:
    """The first of `name`, `name-2`, `name-3` ... that is not there yet."""
    numbered = (Path(name if n == 1 else f"{name}-{n}") for n in range(1, 1 << 20))
    return next(path for path in numbered if not path.exists())


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a whole number from 0 to 2^32 - 1")


def _check_one_of(what: str, value: str, known: object) -> None:
    names = sorted(known)  # type: ignore[call-overload]
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}: there are {', '.join(names)}")
