"""What a person may ask of a search, and the checks that need no computation."""

import dataclasses
from pathlib import Path

from haqjax.files import check_free
from haqjax.hardware import Machine, machine
from haqjax.models import MODELS, is_pretrained_source
from haqjax.quantizers.calibration import ROUNDINGS
from haqjax.quantizers.clipping import METHODS
from haqjax.run.config.checks import check_one_of, check_seed
from haqjax.run.config.limits import read_limits, read_metrics
from haqjax.run.distributed import read_hosts
from haqjax.searchers import SEARCHERS
from haqjax.searchers.front import BUDGETS
from haqjax.searchers.improve import EXTENSIONS
from haqjax.types import Cost

SIZE_WEIGHTS_ONLY = ((2, 8), (8, 8))  # a size budget leaves activations at 8 bits: they take no room in storage
ALL = ((2, 2), (8, 8))
USUAL_BUDGET = "0.6"
BY_ACCURACY = ("haq", "random", "uniform")  # searches that need no loss: what a given-up policy tells is enough


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
    budget: str | None = None
    """Fraction of what the network costs with 8 bits everywhere, or a limit with its unit (3ms, 900KiB); one for each
    metric, with commas between, or one for all. Default: 0.6."""
    max_drop: float | None = None
    """Points of accuracy that may be lost: finds the policy that costs least of the first metric; further metrics have
    budgets."""
    front: str | None = None
    """A resource: finds a policy for each of several budgets of it, those of BUDGET (0.3,0.4,0.5), or else 8 from the
    least to what 8 bits cost."""
    layers: str = ""
    """Rules on layers by name, with semicolons between: 'stem=8; *.depthwise=4-8; classifier=8/4,8'."""
    tie: str = ""
    """Layers that must have the same bits: patterns joined by +, with semicolons between groups."""
    search: str = "ilp"
    """How to search; see docs/search.md. The paper's agent is haq."""
    extensions: str | None = None
    """Additions to haq, with commas between: start, exchange, costs, retain, twin; see docs/search.md."""
    episodes: int = 400
    """Policies to evaluate, all in all."""
    parallel: int = 4
    """Policies a round; the agent learns after each round."""
    batch_size: int | None = None
    """Images evaluated at a time. Default of this and the next: on one accelerator what a short trial finds fastest,
    remembered for its kind; else what suits the kind of device, and one policy."""
    policies_at_once: int | None = None
    """Policies evaluated side by side. Accuracies differ in their last bits from one number to another."""
    cuts: int | None = None
    """Places in the network at which ilp keeps what the widest policy gives, to go on from there when it probes single
    layers: 3 halve a probe's time and take memory. On one device; losses differ in their last bits."""
    calibration: str = "mse"
    """How clip values are chosen: mse, max, percentile or kl."""
    rounding: str = "output"
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
    race: float | None = None
    """Give up a policy once it cannot become the best, with at most this chance of an error; 0: only where it is
    certain. For haq, random and uniform, which go by accuracy."""
    finetune_steps: int = 0
    """Batches of fine-tuning under each policy before it is judged."""
    warm_start: str | None = None
    """Run folder of a search by an agent: this search's agent starts with what that one learned."""
    resume: str | None = None
    """Run folder of a search that was stopped: it goes on from where it was, to the same result as if it had not been.
    Of the other options only EPISODES may differ."""
    out: str | None = None
    """Run folder to write; never overwritten. Default: a new one under runs/."""
    hosts: str | None = None
    """Processes that search together, each started with the same options: ADDRESS:PORT,PROCESS/PROCESSES with the
    address of the first, or auto for what the launcher says (SLURM, Open MPI, TPU pods). Default: this one alone, with
    all its devices."""

    def check(self) -> None:
        """Raises a ValueError of one line for bad input; see `TrainConfig.check`."""
        check_one_of("model", self.model, MODELS)
        check_one_of("search", self.search, SEARCHERS)
        check_one_of("calibration", self.calibration, METHODS)
        check_one_of("rounding", self.rounding, ROUNDINGS)
        self._check_aim()
        check_seed(self.seed)
        if self.hosts is not None:
            read_hosts(self.hosts)
        for name in (
            "episodes",
            "parallel",
            "search_images",
            "report_images",
            "batch_size",
            "policies_at_once",
            "cuts",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give at least 1")
        if self.finetune_steps < 0:
            raise ValueError(f"finetune_steps is {self.finetune_steps}: give 0 or more")
        self._check_method()
        if self.warm_start is not None and self.search != "haq":
            raise ValueError(f"warm_start {self.warm_start!r} is for the search 'haq', which has an agent to start")
        if self.weights is not None and not (is_pretrained_source(self.weights) or Path(self.weights).is_dir()):
            raise ValueError(
                f"weights {self.weights!r} is no folder: give one that `python -m haqjax train` wrote, a .safetensors "
                "file, timm:NAME or hf:OWNER/REPOSITORY"
            )
        if self.out is not None:
            check_free(self.out)

    def _check_method(self) -> None:
        """Whether what is asked besides the search's name goes with it."""
        for extension in self.extension_names:
            check_one_of("addition", extension, EXTENSIONS)
        if self.extension_names and self.search != "haq":
            raise ValueError(f"additions {self.extensions!r} are to the search 'haq', not to {self.search!r}")
        if "costs" in self.extension_names and self.metrics == ("memory",):
            raise ValueError(
                "the addition 'costs' is for resources that are sums over layers: leave it out with memory"
            )
        if self.cuts and (self.search != "ilp" or self.finetune_steps):
            raise ValueError(f"cuts {self.cuts} are for the search 'ilp', without fine-tuning: leave them out")
        if "start" in self.extension_names and self.resource is not None:
            raise ValueError(
                "the addition 'start' is for a search within one budget: leave it out with front or max_drop"
            )
        if self.race is None:
            return
        if not 0 <= self.race < 1:
            raise ValueError(f"race is {self.race}: give the chance of an error, from 0 to below 1")
        if self.search not in BY_ACCURACY or self.finetune_steps or self.resource is not None:
            raise ValueError(
                f"race {self.race:g} is for {', '.join(BY_ACCURACY)}, within one budget, without fine-tuning: leave it "
                "out"
            )

    def _check_aim(self) -> None:
        """Whether what is asked for is one thing, and can be read."""
        if self.front is not None:
            self._check_front(self.front)
        elif self.max_drop is not None:
            self._check_drop(self.max_drop)
        if (self.front is not None or self.max_drop is not None) and self.warm_start is not None:
            raise ValueError("warm_start is for a search within one budget: leave it out with front or max_drop")
        if self.search == "gradient" and self.by_codebook:
            raise ValueError("the search 'gradient' needs linear weights: with size alone, choose another")
        self.limits, self.budgets  # noqa: B018 - reads them

    def _check_front(self, front: str) -> None:
        check_one_of("front", front, Cost._fields)
        if self.max_drop is not None:
            raise ValueError(f"front {front!r} and max_drop {self.max_drop:g} are two questions: ask one of them")
        if self.metric not in ("latency", front):
            raise ValueError(f"a front of {front} has no metric {self.metric!r}: leave metric out")
        budgets = BUDGETS if self.budget is None else len(self.budgets)
        if len({tuple(limit.items()) for limit in self.budgets}) < len(self.budgets):
            raise ValueError(f"budget {self.budget!r} names a limit of the front twice")
        if self.episodes < budgets:
            raise ValueError(f"episodes is {self.episodes}: a front of {budgets} budgets needs at least {budgets}")

    def _check_drop(self, max_drop: float) -> None:
        if not 0 <= max_drop < 100:
            raise ValueError(f"max_drop is {max_drop}: give the points of accuracy that may be lost, from 0 to 100")
        if self.episodes < 2:
            raise ValueError(f"episodes is {self.episodes}: a search by max_drop needs at least 2")
        cheap, *others = self.metrics
        if self.budget is not None and not others:
            raise ValueError(
                f"budget {self.budget!r} with max_drop: {cheap} is what is to be cheap; leave budget out, or name what "
                f"it limits after that, such as metric {cheap},memory"
            )
        if self.budget is None and others:
            raise ValueError(f"metric {self.metric!r} with max_drop: give a budget for {', '.join(others)}")

    @property
    def extension_names(self) -> tuple[str, ...]:
        """Names of the additions."""
        return tuple(name.strip() for name in (self.extensions or "").split(",") if name.strip())

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
        """The resources that are asked about."""
        return (self.front,) if self.front is not None else read_metrics(self.metric)

    @property
    def resource(self) -> str | None:
        """What a front is of, or what is to be cheap; None in a search within one budget."""
        return None if self.front is None and self.max_drop is None else self.metrics[0]

    @property
    def limits(self) -> dict[str, float]:
        """Keyword arguments of `haqjax.budget`: what every policy has to keep to."""
        if self.front is not None:
            return {}
        if self.max_drop is None:
            return read_limits(self.metric, self._budget)
        others = self.metrics[1:]
        return read_limits(",".join(others), self._budget) if others else {}

    @property
    def budgets(self) -> list[dict[str, float]]:
        """Keyword arguments of `haqjax.budget` for each budget of a front that was given."""
        if self.front is None or self.budget is None:
            return []
        return [read_limits(self.front, text) for text in str(self.budget).split(",")]

    @property
    def _budget(self) -> str:
        return USUAL_BUDGET if self.budget is None else str(self.budget)

    @property
    def aim(self) -> str:
        """What is asked for, for people to read."""
        if self.front is not None:
            return f"front of {self.front}"
        limits, names = self.limits, self.metrics if self.max_drop is None else self.metrics[1:]
        texts = self._budget.split(",") * (1 if "," in self._budget else len(limits))
        told = [
            f"{name} at most {text.strip()}{' of 8 bits' if key == name else ''}"
            for name, text, key in zip(names, texts, limits, strict=True)
        ]
        cheap = [] if self.max_drop is None else [f"least {self.resource} within {self.max_drop:g} points of float"]
        return ", ".join(cheap + told)
