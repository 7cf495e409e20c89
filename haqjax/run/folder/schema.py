"""Types of the JSON files of a run folder: what a search, a front and a fine-tuning write, and a reader may rely on."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from haqjax.widths import CODEBOOK, LINEAR

Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 32]  # 32: left in floating point
Count = Annotated[int, Meta(ge=0, le=2**53)]
Images = Annotated[int, Meta(ge=1, le=2**53)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Accuracy = Annotated[float, Meta(ge=0, le=1.000001)]  # a mean of float32 may end just above 1
Amount = Annotated[float, Meta(ge=0, le=1e300)]  # s, J, bytes or bit operations
Fraction = Annotated[float, Meta(gt=0, le=1e300)]  # of what 8 bits cost
ResourceName = Literal["latency", "energy", "size", "bops", "memory"]


class Amounts(Struct, frozen=True):
    """Costs of one policy, in the units of the names; None where they are not known."""

    latency_s: Amount | None = None
    energy_j: Amount | None = None
    size_bytes: Amount | None = None
    bops: Amount | None = None
    memory_bytes: Amount | None = None


class Limits(Amounts, frozen=True):
    """Most of each resource; None where there is no limit."""

    fraction: Fraction | dict[ResourceName, Fraction] | None = None


class LayerBits(Struct, frozen=True):
    """Widths of one layer."""

    name: Text
    weight_bits: Bits
    activation_bits: Bits


LayerList = Annotated[tuple[LayerBits, ...], Meta(min_length=1, max_length=100_000)]


class PolicyCosts(Struct, frozen=True):
    """Costs of the policies that are compared."""

    eight: Amounts = field(name="8_bits")
    uniform: Amounts
    policy: Amounts


class PolicyAccuracies(Struct, frozen=True):
    """Accuracies of the policies that are compared, on one split."""

    float_: Accuracy = field(name="float")
    eight: Accuracy = field(name="8_bits")
    uniform: Accuracy
    policy: Accuracy
    images: Images


class SplitAccuracies(Struct, frozen=True):
    """Accuracies on both splits."""

    search: PolicyAccuracies
    report: PolicyAccuracies


class NamedPoint(Struct, frozen=True):
    """The policy of a front that stands in `policy.json`."""

    resource: ResourceName
    named: Count
    rule: Text


class PolicyFile(Struct, frozen=True):
    """`policy.json`: the policy that a search found."""

    network: Text
    hardware: Text
    weights: Text  # fingerprint of the float parameters
    budget: Limits
    search: Text
    seed: Seed
    episodes: Count
    best_episode: Count | None  # from 0
    interrupted: bool
    layers: LayerList
    uniform_bits: Bits
    costs: PolicyCosts
    accuracies: SplitAccuracies
    data: Text | None = None
    metric: Text | None = None
    max_drop: Annotated[float, Meta(ge=0, lt=100)] | None = None  # points of accuracy
    not_finite: Count = 0
    episodes_limit: Count | None = None
    converged: bool = False  # the search ended before its limit, as no further gain was to be expected
    front: NamedPoint | None = None

    def __post_init__(self) -> None:
        _check_below("best_episode", self.best_episode, "episodes", self.episodes)
        _check_below("not_finite", self.not_finite, "episodes", self.episodes + 1)
        check_names(self.layers)


class Accuracies(Struct, frozen=True):
    """Accuracies of one policy."""

    search: Accuracy
    report: Accuracy


class UniformPoint(Struct, frozen=True):
    """The uniform policy within one budget."""

    bits: Bits
    costs: Amounts
    accuracies: Accuracies


class FrontBudget(Amounts, frozen=True, kw_only=True):
    """One budget of a front."""

    fraction: Fraction


class FrontPoint(Struct, frozen=True):
    """What was found within one budget of a front."""

    budget: FrontBudget
    costs: Amounts
    accuracies: Accuracies
    uniform: UniformPoint
    episode: Count = 0
    layers: LayerList | None = None

    def __post_init__(self) -> None:
        check_names(self.layers or ())


class FrontFile(Struct, frozen=True):
    """`front.json`, as far as it is read again: a policy within each of several budgets."""

    policies: Annotated[tuple[FrontPoint, ...], Meta(min_length=1, max_length=10_000)]
    resource: ResourceName | None = None
    named: Count = 0
    episodes: Count | None = None

    def __post_init__(self) -> None:
        _check_below("named", self.named, "the number of policies", len(self.policies))
        for at, point in enumerate(self.policies):
            _check_below(f"policies[{at}].episode", point.episode, "episodes", self.episodes)


class TunedAccuracies(Struct, frozen=True):
    """Accuracies on the report split, before and after a fine-tuning."""

    before: Accuracy
    after: Accuracy
    images: Images


class TunedFile(Struct, frozen=True):
    """`finetune.json`, as far as it is read again; the options of the fine-tuning stand there too."""

    report: TunedAccuracies


class EpisodeRow(Struct, frozen=True):
    """A row of `episodes.csv`; None where a number is not known."""

    episode: Count
    accuracy: Accuracy | None
    reward: Annotated[float, Meta(ge=-1e300, le=1e300)] | None
    feasible: bool
    best_accuracy: Accuracy | None
    latency_s: Amount | None = None
    energy_j: Amount | None = None
    size_bytes: Amount | None = None
    bops: Amount | None = None
    memory_bytes: Amount | None = None
    budget_latency_s: Amount | None = None
    budget_energy_j: Amount | None = None
    budget_size_bytes: Amount | None = None
    budget_bops: Amount | None = None
    budget_memory_bytes: Amount | None = None


def check_names(layers: tuple[LayerBits, ...]) -> None:
    """Raises a ValueError for two layers of one name."""
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        twice = next(at for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"layers[{twice}].name is {names[twice]!r}, as of a layer before it")


def check_kind(layers: tuple[LayerBits, ...], by_codebook: bool) -> None:
    """Raises a ValueError for widths that the run's quantiser does not have.

    Args:
      by_codebook: weights are k-means codebooks and activations are left alone; else both have linear levels.

    >>> check_kind((LayerBits("stem", 1, 8),), by_codebook=False)
    Traceback (most recent call last):
    ValueError: layers[0].weight_bits is 1, expected 2 to 8, or 32 for what is left in floating point
    """
    least = CODEBOOK if by_codebook else LINEAR
    for at, layer in enumerate(layers):
        for name, fewest in zip(("weight_bits", "activation_bits"), least, strict=True):
            if (bits := getattr(layer, name)) < fewest:
                expected = f"{fewest} to 8, or 32 for what is left in floating point"
                raise ValueError(f"layers[{at}].{name} is {bits}, expected {expected}")


def _check_below(name: str, value: int | None, limit: str, most: int | None) -> None:
    if value is not None and most is not None and value >= most:
        raise ValueError(f"{name} is {value}, expected less than {limit}, {most}")
