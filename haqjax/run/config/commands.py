"""Options of the commands besides search, and the checks that need no computation."""

import dataclasses
import os
from pathlib import Path

from haqjax.hardware import Machine, machine
from haqjax.models import MODELS
from haqjax.run.config.options import (
    MOST_PIXELS,
    SIZES,
    check_image_size,
    check_one_of,
    check_range,
    check_seed,
    check_texts,
)
from haqjax.training import Tuning

MOST_CLASSES = 10**6
MOST_RATE = 1000.0  # of learning

__all__ = [
    "EvaluateConfig",
    "FinetuneConfig",
    "HardwareConfig",
    "ReportConfig",
    "TableConfig",
    "TrainConfig",
    "free_folder",
]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a float network, as a search does on first use, and keep it in a folder."""

    model: str = "mobilenet_v2"
    """mobilenet_v1, mobilenet_v2, resnet50, resnet20 or resnet56."""
    data: str = "digits"
    """digits (needs no download), tfds:NAME for a prepared set of TensorFlow Datasets, folder:PATH for images in
    train/CLASS/ and validation/CLASS/, or npz:FILE for arrays."""
    data_dir: str | None = None
    """Folder of tfds data sets."""
    preprocessing: str | None = None
    """How images are scaled and cropped: torchvision, timm, cifar, mobilenet_v1_tf, mobilenet_v2_tf or none. Default:
    what suits the weights, else the data."""
    image_size: int | None = None
    """Height and width of the images. Default: what the preprocessing says."""
    seed: int = 0
    """Of the initial weights and of the order of the images."""
    out: str | None = None
    """Folder to write; never overwritten. Default: weights/MODEL-DATA-seedSEED."""

    def __post_init__(self) -> None:
        check_texts(self)
        check_one_of("model", self.model, MODELS)
        check_image_size(self.data, self.image_size)
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Measure the policy of a finished run again, with fine-tuned weights where there are any."""

    run: str
    """Run folder."""

    def __post_init__(self) -> None:
        check_texts(self)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune the network of a finished run under its policy; the weights go into the run folder."""

    run: str
    """Run folder."""
    epochs: int = 3
    """Passes over the training split."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: float = 2e-3
    """Of the weights, its largest value."""
    clip_rate: float = 0.0
    """Learning rate of the clip values; with 0 they stay as calibrated."""
    codebook_rate: float = 0.0
    """Learning rate of k-means codebooks, in a run with METRIC=size."""
    distill: float = 0.0
    """Share of the loss that compares with the float network's answers."""
    flip: bool = False
    """Whether images are mirrored at random."""
    seed: int = 0
    """Of the order of the images."""

    def __post_init__(self) -> None:
        check_texts(self)
        check_seed(self.seed)
        check_range(1, 10**5, epochs=self.epochs)
        check_range(1, 2**20, SIZES, batch_size=self.batch_size)
        for name in ("learning_rate", "clip_rate", "codebook_rate"):
            if not 0 <= getattr(self, name) <= MOST_RATE:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number from 0 to {MOST_RATE:g}")
        self.tuning  # noqa: B018 - checks that one of the rates is above 0, and distill

    @property
    def tuning(self) -> Tuning:
        """Rates and sizes of the fine-tuning."""
        names = {field.name for field in dataclasses.fields(Tuning)}
        return Tuning(**{name: value for name, value in dataclasses.asdict(self).items() if name in names})


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write what runs found as one page, report.html, and as figures for papers."""

    run: tuple[str, ...]
    """Run folders of finished searches, several to be shown side by side."""
    out: str | None = None
    """Folder to write to. Default: the first run folder. A report that is there is replaced."""

    def __post_init__(self) -> None:
        check_texts(self)


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Write what each layer of a network costs on a machine, at every pair of bit-widths."""

    out: str
    """File to write, .csv, .npy or .parquet; never overwritten."""
    model: str = "mobilenet_v2"
    """A network of the zoo, or module:function that returns (apply, params, example batch)."""
    hw: str = "edge"
    """edge, cloud, bitfusion or another machine by name, or the path of a machine's .yaml file."""
    image_size: int = 224
    """Height and width of the images, for a network of the zoo."""
    classes: int = 1000
    """Number of classes, for a network of the zoo."""

    def __post_init__(self) -> None:
        _check_network(self)

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

    def __post_init__(self) -> None:
        _check_network(self)


def _check_network(config: TableConfig | HardwareConfig) -> None:
    """Raises a ValueError for a network of the zoo that no memory holds."""
    check_texts(config)
    check_range(1, MOST_PIXELS, SIZES, image_size=config.image_size)
    check_range(1, MOST_CLASSES, SIZES, classes=config.classes)


def free_folder(name: str) -> Path:
    """Returns the first of `name`, `name-2`, `name-3` ... that is not there yet."""
    numbered = (Path(name if n == 1 else f"{name}-{n}") for n in range(1, 1 << 20))
    return next(path for path in numbered if not os.path.lexists(path))
