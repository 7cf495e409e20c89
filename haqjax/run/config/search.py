"""Options of a search, by theme, and the checks that need no computation."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from haqjax.files import check_free
from haqjax.models import MODELS, is_own, is_pretrained_source
from haqjax.quantizers.calibration import ROUNDINGS
from haqjax.quantizers.clipping import METHODS
from haqjax.run.config.aim import Aim, read_aim
from haqjax.run.config.options import (
    SIZES,
    check_image_size,
    check_one_of,
    check_range,
    check_seed,
    check_texts,
    check_types,
    with_options,
)
from haqjax.run.hosts import read_hosts
from haqjax.searchers import SEARCHERS
from haqjax.searchers.haq import EXTENSIONS
from haqjax.searchers.loop import BY_GRADIENT

BY_ACCURACY = ("haq", "random", "uniform")  # searches that need no loss: a policy given up says enough
ONE_BUDGET = "give one, such as budget 0.6, or leave it out"


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """The network."""

    model: str = "mobilenet_v2"
    """mobilenet_v1, mobilenet_v2, resnet50, resnet20 or resnet56; or module:function, which returns a network of your
    own, see docs/howto/own-network.md."""
    weights: str | None = None
    """Trained weights: a folder that the train command wrote, a .safetensors file, timm:NAME or hf:OWNER/REPOSITORY.
    Default: train on first use, then reuse."""

    def __post_init__(self) -> None:
        if not is_own(self.model):
            check_one_of("model", self.model, MODELS)

    @property
    def pretrained(self) -> bool:
        """True where the weights come from others, in a file or from a hub."""
        return self.weights is not None and is_pretrained_source(self.weights)

    def check_files(self) -> None:
        """Raises a ValueError where the weights are not there."""
        if self.weights is not None and not (self.pretrained or Path(self.weights).is_dir()):
            raise ValueError(
                f"weights {self.weights!r} is no folder: give one that `python -m haqjax train` wrote, a .safetensors "
                "file, timm:NAME or hf:OWNER/REPOSITORY"
            )


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Data to train on, to search by, to report on."""

    data: str = "digits"
    """digits (needs no download), tfds:NAME for a prepared set of TensorFlow Datasets, folder:PATH for images in
    train/CLASS/ and validation/CLASS/, npz:FILE for arrays, or own for what a network of your own brings along."""
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
    search_images: int | None = None
    """Images to search by, at most. Default: all of the search split."""
    report_images: int | None = None
    """Images to report on, at most. Default: all of the report split."""

    def __post_init__(self) -> None:
        check_image_size(self.data, self.image_size)
        check_range(1, 2**31, search_images=self.search_images, report_images=self.report_images)
        check_range(0, 1024, workers=self.workers)


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """The machine, and the question: within a budget, a front, or the cheapest that is accurate enough."""

    hw: str = "edge"
    """edge, cloud, bitfusion or another machine by name, or the path of a machine (.yaml) or of a table (.csv, .npy,
    .parquet)."""
    metric: str = "latency"
    """What the budget limits: latency, energy, size, bops or memory (peak, of activations), or several with commas
    between. With size alone, weights are searched as k-means codebooks and activations are left alone."""
    budget: str | None = None
    """Fraction of what the network costs with 8 bits everywhere, or a limit with its unit (3ms, 900KiB); one for each
    metric, with commas between, or one for all. Default: none, which finds a front of the metric."""
    max_drop: float | None = None
    """Points of accuracy that may be lost: finds the policy that costs least of the first metric; further metrics have
    budgets."""
    front: str | None = None
    """A resource: finds a policy for each of several budgets of it, those of BUDGET (0.3,0.4,0.5), or else 8 from the
    least to what 8 bits cost. Default: the metric, where neither a budget nor a drop is given."""
    layers: str = ""
    """Rules on layers by name, with semicolons between: 'stem=8; *.depthwise=4-8; classifier=8/4,8'."""
    tie: str = ""
    """Layers that must have the same bits: patterns joined by +, with semicolons between groups."""


@dataclasses.dataclass(frozen=True)
class QuantizerOptions:
    """Post-training quantisation: clip values and rounding."""

    calibration: str = "mse"
    """How clip values are chosen: mse, max, percentile or kl."""
    rounding: str = "output"
    """How weights are rounded: nearest, or output (levels of least error at each layer's output, by COMQ; minutes to
    calibrate, and better below 6 bits)."""

    def __post_init__(self) -> None:
        check_one_of("calibration", self.calibration, METHODS)
        check_one_of("rounding", self.rounding, ROUNDINGS)


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation of policies."""

    batch_size: int | None = None
    """Images evaluated at a time. Default of this and the next: on one accelerator what a short timing finds fastest,
    remembered for its kind; else what suits the kind of device, and one policy."""
    policies_at_once: int | None = None
    """Policies evaluated side by side."""
    cuts: int | None = None
    """Places in the network at which ilp keeps the activations of the widest policy, to go on from there when it probes
    single layers: 3 save half of a probe's time and take memory. On one device."""
    race: float | None = None
    """Give up a policy once it cannot become the best, with at most this chance of an error; 0: only where it is
    certain. For haq, random and uniform, which go by accuracy."""
    finetune_steps: int = 0
    """Batches of fine-tuning under each policy before it is evaluated."""

    def __post_init__(self) -> None:
        check_range(1, 2**20, SIZES, batch_size=self.batch_size)
        check_range(1, 2**16, SIZES, policies_at_once=self.policies_at_once)
        check_range(1, 1000, cuts=self.cuts)
        check_range(0, 10**6, finetune_steps=self.finetune_steps)
        if self.race is not None and not 0 <= self.race < 1:
            raise ValueError(f"race is {self.race}: give the chance of an error, from 0 to below 1")
        if self.cuts and self.finetune_steps:
            raise ValueError(f"cuts {self.cuts} are for the search 'ilp', without fine-tuning: leave them out")


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """The search."""

    search: str = "ilp"
    """How to search; see docs/search.md. The paper's agent is haq."""
    extensions: str | None = None
    """Extensions to haq, with commas between: start, swap, costs, retain, twin, loss; see docs/search.md."""
    episodes: int = 400
    """Policies to evaluate, all in all and at most."""
    patience: int = 25
    """Rounds without a better policy after which a search ends, within each budget; ilp also ends once it expects no
    gain of a tenth of a standard error from any policy that is left. 0: only after the last of the episodes."""
    parallel: int = 4
    """Policies a round; the agent learns after each round."""
    seed: int = 0
    """Of the search; the splits of the data and the float network do not depend on it."""
    warm_start: str | None = None
    """Run folder of a search by an agent: this search's agent starts with what that one learned."""

    def __post_init__(self) -> None:
        check_one_of("search", self.search, SEARCHERS)
        for extension in self.extension_names:
            check_one_of("extension", extension, EXTENSIONS)
        check_seed(self.seed)
        check_range(1, 10**7, SIZES, episodes=self.episodes)
        check_range(0, 10**7, patience=self.patience)
        check_range(1, 2**16, SIZES, parallel=self.parallel)

    @property
    def extension_names(self) -> tuple[str, ...]:
        """Names of the extensions."""
        return tuple(name.strip() for name in (self.extensions or "").split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The run folder, and the processes that fill it."""

    resume: str | None = None
    """Run folder of a search that was stopped: it goes on from where it was, to the same result as if it had not been.
    Of the other options only EPISODES may differ."""
    out: str | None = None
    """Run folder to write; never overwritten. Default: a new one under runs/."""
    hosts: str | None = None
    """Processes that search together, each started with the same options: ADDRESS:PORT,PROCESS/PROCESSES with the
    address of the first, or auto for what the launcher says (SLURM, Open MPI, TPU pods). Default: this one alone, with
    all its devices."""

    def __post_init__(self) -> None:
        if self.hosts is not None:
            read_hosts(self.hosts)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Search the bits of every layer of a network for a machine and a budget, and write a run folder."""

    network: NetworkOptions = NetworkOptions()
    data: DataOptions = DataOptions()
    target: TargetOptions = TargetOptions()
    quantizer: QuantizerOptions = QuantizerOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    method: MethodOptions = MethodOptions()
    run: RunOptions = RunOptions()

    @classmethod
    def of(cls, **options: Any) -> "SearchConfig":
        """Makes a configuration of options by name, whichever record they belong to.

        Raises:
          ValueError: a value that is not of its option's type, or that the search cannot be run with.
          TypeError: an option that there is not.

        >>> SearchConfig.of(model="resnet20", budget="0.5").target.budget
        '0.5'
        """
        check_types(cls(), options)
        return with_options(cls(), options)

    def __post_init__(self) -> None:
        check_texts(self)
        if self.run.resume is None:  # else the options that the run was started with have been checked
            self._check_together()

    def _check_together(self) -> None:
        """Raises a ValueError for options of several records that do not go together."""
        aim, method, evaluation = self.aim, self.method, self.evaluation
        if method.search != "haq" and method.extension_names:
            raise ValueError(f"extensions {method.extensions!r} are to the search 'haq', not to {method.search!r}")
        if method.search != "haq" and method.warm_start is not None:
            raise ValueError(f"warm_start {method.warm_start!r} is for the search 'haq', which has an agent to start")
        if "costs" in method.extension_names and aim.metrics == ("memory",):
            raise ValueError(
                "the extension 'costs' is for resources that are sums over layers: leave it out with memory"
            )
        if "start" in method.extension_names and aim.resource is not None:
            raise ValueError(f"the extension 'start' is for a search within one budget: {ONE_BUDGET}")
        if method.warm_start is not None and aim.resource is not None:
            raise ValueError(f"warm_start is for a search within one budget: {ONE_BUDGET}")
        if evaluation.cuts and method.search != "ilp":
            raise ValueError(f"cuts {evaluation.cuts} are for the search 'ilp', without fine-tuning: leave them out")
        if method.search in BY_GRADIENT and self.by_codebook:
            raise ValueError(f"the search {method.search!r} needs linear weights: with size alone, choose another")
        by_accuracy = method.search in BY_ACCURACY and "loss" not in method.extension_names
        one = by_accuracy and not evaluation.finetune_steps and aim.resource is None
        if evaluation.race is not None and not one:
            raise ValueError(
                f"race {evaluation.race:g} is for {', '.join(BY_ACCURACY)}, within one budget, without fine-tuning and "
                f"the extension 'loss': {ONE_BUDGET}"
            )

    def check_files(self) -> None:
        """Raises a ValueError of one line for weights that are not there, or an OUT that is."""
        self.network.check_files()
        if self.run.out is not None:
            check_free(self.run.out)

    @functools.cached_property
    def aim(self) -> Aim:
        """The question that is asked."""
        return read_aim(self.target, self.method.episodes)

    @property
    def by_codebook(self) -> bool:
        """True where weights are stored as codebooks and activations are left alone: size is all that counts."""
        return self.aim.metrics == ("size",)
