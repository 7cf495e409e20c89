"""Data of a run that figures are drawn from, in matplotlib as in plotly: plain arrays on the host."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from haqjax.report.names import as_plotly
from haqjax.report.palette import KINDS
from haqjax.report.tables import Row
from haqjax.searchers.base import Record
from haqjax.searchers.front import non_dominated
from haqjax.types import ACTIVATION, WEIGHT, Cost
from haqjax.units import unit_of

ROOF_BITS = (8, 4, 2)  # of both operands, for the roofs of a roofline
REFERENCES = {"8 bits": "8_bits", "best uniform": "uniform", "found": "policy"}  # to compare other policies with


class Layers(NamedTuple):
    """Properties of the layers that do not depend on their bits."""

    names: tuple[str, ...]
    shapes: tuple[str, ...]  # for people, such as "3×3, 16 → 32"; empty where they are not known
    macs: Int[np.ndarray, "L"] | None  # multiply-accumulates for one image
    depthwise: Bool[np.ndarray, "L"]
    pointwise: Bool[np.ndarray, "L"]
    pinned: Bool[np.ndarray, "L 2"]  # what the search could not change


class LayerCosts(NamedTuple):
    """Costs of the layers in one resource, in its SI unit."""

    before: Float[np.ndarray, "L"]  # at 8 bits
    after: Float[np.ndarray, "L"]  # under the policy


class LayerSpeeds(NamedTuple):
    """Places of the layers in a roofline."""

    intensity: Float[np.ndarray, "L"]  # operations (two a multiply-accumulate) per byte from or to DRAM
    speed: Float[np.ndarray, "L"]  # operations a second
    limit: tuple[str, ...]  # the slowest part: compute, weights, activations or outputs


class Rooflines(NamedTuple):
    """A network at 8 bits and under a policy, and the limits of the machine."""

    before: LayerSpeeds
    after: LayerSpeeds
    peaks: Mapping[int, float]  # operations a second at most, by the bits of both operands
    bandwidth: float  # bytes a second at most


class Episodes(NamedTuple):
    """Evaluated policies, an entry an episode."""

    accuracy: Float[np.ndarray, "E"]  # on the search split
    reward: Float[np.ndarray, "E"]
    best: Float[np.ndarray, "E"]  # accuracy of the best that fits so far, since the budget changed; NaN before it
    feasible: Bool[np.ndarray, "E"]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class RunData:
    """A finished run, as far as a report shows it."""

    name: str  # of its folder
    title: str
    layers: Layers
    policy: Int[np.ndarray, "L 2"]
    rows: tuple[Row, ...]  # 8 bits, uniform, found, and whatever else was measured, on the report split
    front: tuple[Row, ...]  # where several budgets were searched: 8 bits, then found and uniform within each of them
    search_accuracy: Mapping[str, float]  # on the search split: float, 8_bits, uniform, policy
    costs: Mapping[str, Cost]  # of 8_bits, uniform, policy
    budget: Mapping[str, float]  # the most of each resource that is limited
    layer_costs: Mapping[str, LayerCosts]  # by resource; empty where the costs of layers are not known
    rooflines: Rooflines | None
    episodes: Episodes | None
    best: int | None  # the episode that the policy is of
    configuration: Mapping[str, str]
    notes: tuple[str, ...] = ()  # for the reader: what is not shown and why
    batch: int | None = None  # images that a latency and an energy are of; None where it is not known


def shorten_names(names: Sequence[str], most: int = 24) -> list[str]:
    """Shortens names to at most 24 letters, and drops the end that is common to all.

    >>> shorten_names(["stem.conv.kernel", "head.conv.kernel"])
    ['stem', 'head']
    """
    parts = [name.replace("/", ".").split(".") for name in names]
    while len(names) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    joined = [".".join(part) for part in parts]
    return [name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}" for name in joined]


def label_layers(layers: Layers) -> list[str]:
    """Gives each layer a short name that no other one has: with its number, from 1.

    >>> flags = np.zeros(2, bool)
    >>> label_layers(Layers(("a.conv.kernel", "b.conv.kernel"), ("", ""), None, flags, flags, np.zeros((2, 2), bool)))
    ['1 a', '2 b']
    """
    return [f"{at} {name}" for at, name in enumerate(shorten_names(layers.names), start=1)]


def layer_kinds(depthwise: Bool[np.ndarray, "L"], pointwise: Bool[np.ndarray, "L"] | None) -> list[str]:
    """Returns the kind of each layer, a key of `haqjax.report.palette.KINDS`.

    >>> layer_kinds(np.array([True, False]), None)
    ['depthwise', 'other']
    """
    one_by_one = np.zeros_like(depthwise) if pointwise is None else np.asarray(pointwise)
    first, second, rest = KINDS
    return np.where(depthwise, first, np.where(one_by_one, second, rest)).tolist()


def describe_layers(run_data: RunData) -> list[str]:
    """Describes each layer by its numbers, as lines of plotly's text with <br> between them."""
    layers = run_data.layers
    kinds, texts = layer_kinds(layers.depthwise, layers.pointwise), []
    for at, name in enumerate(layers.names):
        place = {0: ", first", len(layers.names) - 1: ", last"}.get(at, "")
        weight, activation = run_data.policy[at, WEIGHT], run_data.policy[at, ACTIVATION]
        lines = [f"<b>{at + 1} {as_plotly(name)}</b>", f"{kinds[at]}{place} {as_plotly(layers.shapes[at])}".strip()]
        lines += [f"{layers.macs[at] / 1e6:.3g} M multiply-accumulates"] if layers.macs is not None else []
        lines += [f"weights {weight} bits, activations {activation} bits"]
        for resource, costs in run_data.layer_costs.items():
            unit, scale = unit_of(resource, costs.before)
            before, after = costs.before[at] / scale, costs.after[at] / scale
            lines += [f"{resource} {before:.3g} → {after:.3g} {unit} ({after / before:.2f}x)"]
        texts.append("<br>".join(lines))
    return texts


def describe_policies(run_data: RunData) -> list[str]:
    """Describes each episode's policy by its numbers, as `describe_layers` does; empty without episodes."""
    episodes = run_data.episodes
    if episodes is None:
        return []
    known = {name: values for name, values in episodes.cost._asdict().items() if values is not None}
    units = {name: unit_of(name, values) for name, values in known.items() if np.isfinite(values).any()}
    texts = []
    for at, accuracy in enumerate(episodes.accuracy):
        chosen = ", the one found" if at == run_data.best else ""
        lines = [
            f"<b>episode {at + 1}{chosen}</b>",
            f"accuracy {100 * accuracy:.1f} %, reward {episodes.reward[at]:.4f}",
        ]
        lines += [f"{name} {known[name][at] / scale:.4g} {unit}" for name, (unit, scale) in units.items()]
        texts.append("<br>".join(lines + ([] if episodes.feasible[at] else ["over budget"])))
    return texts


def front_resources(run_data: RunData, always: str | None = None) -> list[str]:
    """Lists the resources that the budget limits, and `always`, as far as the costs of episodes are known."""
    if run_data.episodes is None or not len(run_data.episodes.accuracy):
        return []
    asked = dict.fromkeys([*run_data.budget, *([always] if always else [])])
    costs = {name: getattr(run_data.episodes.cost, name) for name in asked}
    return [name for name, values in costs.items() if values is not None and np.isfinite(values).any()]


def find_front(episodes: Episodes, resource: str) -> Int[np.ndarray, "F"]:
    """Finds the episodes that no other one beats, feasible or not; see `haqjax.searchers.front.non_dominated`."""
    count = len(episodes.accuracy)
    nothing: Any = np.zeros((count, 0, 2))
    fields: dict[str, Any] = dict.fromkeys(Record._fields, nothing)
    fields |= {"accuracy": episodes.accuracy, "cost": episodes.cost, "feasible": np.ones(count, bool)}
    return non_dominated(Record(**fields), resource)


def reference_points(run_data: RunData, resource: str) -> dict[str, tuple[float, float]]:
    """Returns (cost, accuracy on the search split) of the policies that others are compared with."""
    return {
        label: (float(getattr(run_data.costs[name], resource)), run_data.search_accuracy[name])
        for label, name in REFERENCES.items()
    }


def find_roofs(rooflines: Rooflines) -> dict[int, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]]:
    """Draws each limit as a line: operations per byte, and operations a second at most there; by bits."""
    intensity = np.concatenate([rooflines.before.intensity, rooflines.after.intensity])
    ridges = [peak / rooflines.bandwidth for peak in rooflines.peaks.values()]
    line = np.geomspace(np.nanmin(intensity) / 2, max(np.nanmax(intensity), *ridges, 0.0) * 2, 60)
    line = np.unique(np.concatenate([line, ridges]))
    return {bits: (line, np.minimum(peak, line * rooflines.bandwidth)) for bits, peak in rooflines.peaks.items()}


def best_reward(episodes: Episodes) -> Float[np.ndarray, "E"]:
    """Returns the greatest reward so far of a policy that fits; NaN throughout where the budget changed on the way.

    >>> reward, feasible = np.array([0.9, 0.5, 0.7]), np.array([False, True, True])
    >>> best_reward(Episodes(reward, reward, np.array([np.nan, 0.5, 0.7]), feasible, Cost(None, None, None))).tolist()
    [nan, 0.5, 0.7]
    """
    known = episodes.best[np.isfinite(episodes.best)]
    if (np.diff(known) < 0).any():
        return np.full(len(episodes.reward), np.nan)
    fits = episodes.feasible & np.isfinite(episodes.reward)
    best = np.maximum.accumulate(np.where(fits, episodes.reward, -np.inf))
    return np.where(np.isfinite(best), best, np.nan)
