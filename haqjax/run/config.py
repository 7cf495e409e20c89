"""What a person may ask of a run, and the checks that need no computation."""

import dataclasses
from pathlib import Path

from haqjax.files import check_free
from haqjax.hardware import Machine, machine
from haqjax.models import MODELS, is_pretrained_source
from haqjax.quantize.calibrate import ROUNDINGS
from haqjax.quantize.ranges import METHODS
from haqjax.run.limits import read_limits, read_metrics
from haqjax.search import SEARCHERS
from haqjax.train import Tuning

SIZE_WEIGHTS_ONLY = ((2, 8), (8, 8))  # a size budget leaves activations at 8 bits: they take no room in storage
ALL = ((2, 2), (8, 8))


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
    """edge, cloud, bitfusion or another machine by name, or the path of a machine (.yaml) or of a table (.csv, .npy,
    .parquet)."""
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
    splits: tuple[str, ...] = ()
    """Two or three names of splits, instead of train, validation and test."""
    workers: int | None = None
    """Processes that decode images. Default: threads of this one."""
    metric: str = "latency"
    """What the budget limits: latency, energy, size, bops or memory (peak, of activations), or several with commas
    between. With size alone, weights are searched as k-means codes and activations are left alone."""
    budget: str = "0.6"
    """Fraction of what the network costs with 8 bits everywhere, or a limit with its unit (3ms, 900KiB); one for each
    metric, with commas between, or one for all."""
    layers: str = ""
    """Rules on layers by name, with semicolons between: 'stem=8; *.depthwise=4-8; classifier=8/4,8'."""
    tie: str = ""
    """Layers that must have the same bits: patterns joined by +, with semicolons between groups."""
    search: str = "haq"
    """How to search; see docs/search.md."""
    episodes: int = 400
    """Policies to evaluate."""
    parallel: int = 4
    """Policies a round; the agent learns after each round."""
    calibration: str = "mse"
    """How clip values are chosen: mse, max, percentile or kl."""
    rounding: str = "nearest"
    """How weights are rounded: nearest, or output (levels of least error at each layer's output; minutes to
    calibrate, and better below 6 bits)."""
    seed: int = 0
    """Of the search; the splits of the data and the float network do not depend on it."""
    search_images: int | None = None
    """Images to search by, at most. Default: all of the split."""
    report_images: int | None = None
    """Images to report on, at most. Default: all of the split."""
    weights: str | None = None
    """Trained weights: a folder that the train command wrote, a .safetensors file, timm:NAME or hf:OWNER/REPOSITORY.
    Default: train on first use, then reuse."""
    finetune_steps: int = 0
    """Batches of fine-tuning under each policy before it is judged."""
    warm_start: str | None = None
    """Run folder of a search by an agent: this search's agent starts with what that one learned."""
    resume: str | None = None
    """Run folder of a search that was stopped: it goes on from where it was, to the same result as if it had not been.
    Of the other options only EPISODES may differ."""
    out: str | None = None
    """Run folder to write; never overwritten. Default: a new one under runs/."""

    def check(self) -> None:
        """Raises a ValueError of one line for bad input; see `TrainConfig.check`."""
        _check_one_of("model", self.model, MODELS)
        _check_one_of("search", self.search, SEARCHERS)
        _check_one_of("calibration", self.calibration, METHODS)
        _check_one_of("rounding", self.rounding, ROUNDINGS)
        read_limits(self.metric, self.budget)
        _check_seed(self.seed)
        for name, least in (("episodes", 1), ("parallel", 1), ("search_images", 1), ("report_images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: give at least {least}")
        if self.finetune_steps < 0:
            raise ValueError(f"finetune_steps is {self.finetune_steps}: give 0 or more")
        if self.warm_start is not None and self.search != "haq":
            raise ValueError(f"warm_start {self.warm_start!r} is for the search 'haq', which has an agent to start")
        if self.weights is not None and not (is_pretrained_source(self.weights) or Path(self.weights).is_dir()):
            raise ValueError(
                f"weights {self.weights!r} is no folder: give one that `python -m haqjax train` wrote, a .safetensors "
                "file, timm:NAME or hf:OWNER/REPOSITORY"
            )
        if self.out is not None:
            check_free(self.out)

    @property
    def machine(self) -> Machine:
        return machine(self.hw)

    @property
    def widths(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Fewest and most bits of (weights, activations) between the first and the last layer."""
        return SIZE_WEIGHTS_ONLY if self.by_codebook else ALL

    @property
    def by_codebook(self) -> bool:
        """Whether weights are stored as k-means codes and activations are left alone: size is all that counts."""
        return self.metrics == ("size",)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The resources that the budget limits."""
        return read_metrics(self.metric)

    @property
    def aim(self) -> str:
        """The budget for people to read."""
        limits = read_limits(self.metric, self.budget)
        texts = str(self.budget).split(",") * (len(limits) if "," not in str(self.budget) else 1)
        told = zip(self.metrics, texts, limits, strict=True)
        return ", ".join(
            f"{name} at most {text.strip()}{' of 8 bits' if key == name else ''}" for name, text, key in told
        )


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

    def check(self) -> None:
        """Raises a ValueError of one line for bad input."""
        _check_seed(self.seed)
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs {self.epochs} and batch_size {self.batch_size} must be above 0")
        self.tuning  # noqa: B018 - checks the rates

    @property
    def tuning(self) -> Tuning:
        """How to fine-tune."""
        names = {field.name for field in dataclasses.fields(Tuning)}
        return Tuning(**{name: value for name, value in dataclasses.asdict(self).items() if name in names})


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
