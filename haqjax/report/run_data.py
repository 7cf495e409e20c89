"""What a report shows of a run, as plain arrays on the host."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from haqjax.report.static.bits import layer_kinds, short_names
from haqjax.report.static.costs import Spent
from haqjax.report.static.roofline import Rooflines
from haqjax.report.tables import Row, unit_of
from haqjax.searchers.base import Record
from haqjax.searchers.front import front
from haqjax.types import ACTIVATION, WEIGHT, Cost


class Layers(NamedTuple):
    """What the layers are."""

    names: tuple[str, ...]
    shapes: tuple[str, ...]  # for people, such as "3×3, 16 → 32"; empty where they are not known
    macs: Int[np.ndarray, "L"] | None  # multiply-accumulates for one image
    depthwise: Bool[np.ndarray, "L"]
    pointwise: Bool[np.ndarray, "L"]
    pinned: Bool[np.ndarray, "L 2"]  # what the search could not change


class Episodes(NamedTuple):
    """What was evaluated, an entry an episode."""

    accuracy: Float[np.ndarray, "E"]  # on the search split
    reward: Float[np.ndarray, "E"]  # the reward
    best: Float[np.ndarray, "E"]  # accuracy of the best that fits so far, since the budget changed; NaN before it
    feasible: Bool[np.ndarray, "E"]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run."""

    name: str  # of its folder
    title: str
    layers: Layers
    policy: Int[np.ndarray, "L 2"]
    rows: tuple[Row, ...]  # 8 bits, uniform, found, and whatever else was measured, on the report split
    front: tuple[Row, ...]  # where several budgets were searched: 8 bits, then found and uniform within each of them
    searched: Mapping[str, float]  # accuracies on the search split: float, 8_bits, uniform, policy
    costs: Mapping[str, Cost]  # of 8_bits, uniform, policy
    budget: Mapping[str, float]  # the most of each resource that is limited
    spent: Mapping[str, Spent]  # by resource; empty where the layers cannot be priced
    rooflines: Rooflines | None
    episodes: Episodes | None
    best: int | None  # the episode that the policy is of
    configuration: Mapping[str, str]
    notes: tuple[str, ...] = ()  # what a reader must know, and what is not shown and why


def labels(layers: Layers) -> list[str]:
    """A short name for each layer, each another: with its number, from 1.

    >>> flags = np.zeros(2, bool)
    >>> labels(Layers(("a.conv.kernel", "b.conv.kernel"), ("", ""), None, flags, flags, np.zeros((2, 2), bool)))
    ['1 a', '2 b']
    """
    return [f"{at} {name}" for at, name in enumerate(short_names(layers.names), start=1)]


def kinds(layers: Layers) -> list[str]:
    """The kind of each layer, a key of `haqjax.report.static.bits.KINDS`."""
    return layer_kinds(layers.depthwise, layers.pointwise)


def describe(run_data: RunData) -> list[str]:
    """All that is known of each layer, as lines of HTML with <br> between them."""
    layers = run_data.layers
    told = []
    for at, name in enumerate(layers.names):
        place = {0: ", first", len(layers.names) - 1: ", last"}.get(at, "")
        weight, activation = run_data.policy[at, WEIGHT], run_data.policy[at, ACTIVATION]
        lines = [f"<b>{at + 1} {html.escape(name)}</b>", f"{kinds(layers)[at]}{place} {layers.shapes[at]}".strip()]
        lines += [f"{layers.macs[at] / 1e6:.3g} M multiply-accumulates"] if layers.macs is not None else []
        lines += [f"weights {weight} bits, activations {activation} bits"]
        for resource, spent in run_data.spent.items():
            unit, scale = unit_of(resource, spent.before)
            before, after = spent.before[at] / scale, spent.after[at] / scale
            lines += [f"{resource} {before:.3g} → {after:.3g} {unit} ({after / before:.2f}x)"]
        told.append("<br>".join(lines))
    return told


def describe_policies(run_data: RunData) -> list[str]:
    """What is known of each episode's policy, as lines of HTML with <br> between them; none without episodes."""
    episodes = run_data.episodes
    if episodes is None:
        return []
    known = {name: values for name, values in episodes.cost._asdict().items() if values is not None}
    units = {name: unit_of(name, values) for name, values in known.items() if np.isfinite(values).any()}
    told = []
    for at, accuracy in enumerate(episodes.accuracy):
        chosen = ", the one found" if at == run_data.best else ""
        lines = [
            f"<b>episode {at + 1}{chosen}</b>",
            f"accuracy {100 * accuracy:.1f} %, reward {episodes.reward[at]:.4f}",
        ]
        lines += [f"{name} {known[name][at] / scale:.4g} {unit}" for name, (unit, scale) in units.items()]
        told.append("<br>".join(lines + ([] if episodes.feasible[at] else ["over budget"])))
    return told


def front_resources(run_data: RunData, always: str | None = None) -> list[str]:
    """The resources that the budget limits, and `always`, as far as the costs of episodes are known."""
    if run_data.episodes is None or not len(run_data.episodes.accuracy):
        return []
    asked = dict.fromkeys([*run_data.budget, *([always] if always else [])])
    costs = {name: getattr(run_data.episodes.cost, name) for name in asked}
    return [name for name, values in costs.items() if values is not None and np.isfinite(values).any()]


def find_front(episodes: Episodes, resource: str) -> Int[np.ndarray, "F"]:
    """The episodes that no other one beats, within the budget or not; see `haqjax.searchers.front.front`."""
    count = len(episodes.accuracy)
    nothing: Any = np.zeros((count, 0, 2))
    told: dict[str, Any] = dict.fromkeys(Record._fields, nothing)
    told |= {"accuracy": episodes.accuracy, "cost": episodes.cost, "feasible": np.ones(count, bool)}
    return front(Record(**told), resource)


def references(run_data: RunData, resource: str) -> dict[str, tuple[float, float]]:
    """(cost, accuracy on the search split) of the policies that others are compared with."""
    names = {"8 bits": "8_bits", "best uniform": "uniform", "found": "policy"}
    return {
        label: (float(getattr(run_data.costs[name], resource)), run_data.searched[name])
        for label, name in names.items()
    }


def best_reward(episodes: Episodes) -> Float[np.ndarray, "E"]:
    """The greatest reward so far of a policy that fits; NaN throughout where the budget changed on the way."""
    known = episodes.best[np.isfinite(episodes.best)]
    if (np.diff(known) < 0).any():
        return np.full(len(episodes.reward), np.nan)
    return best_so_far(episodes.reward, episodes.feasible)


def best_so_far(values: Float[np.ndarray, "E"], feasible: Bool[np.ndarray, "E"]) -> Float[np.ndarray, "E"]:
    """The greatest finite value of a feasible episode up to each one; NaN before the first.

    >>> best_so_far(np.array([0.9, 0.5, 0.7]), np.array([False, True, True])).tolist()
    [nan, 0.5, 0.7]
    """
    best = np.maximum.accumulate(np.where(feasible & np.isfinite(values), values, -np.inf))
    return np.where(np.isfinite(best), best, np.nan)
