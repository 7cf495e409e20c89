"""Draws a search as a matplotlib figure; `haqjax.report.interactive.search` as a plotly one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from haqjax.report.names import as_label
from haqjax.report.palette import BEST, EVALUATED, UNIFORM
from haqjax.report.static.style import LEGEND, TEXT, TITLE, WIDTH, outline_axes
from haqjax.units import unit_of

DASHES, MARKS = ("-", "--", ":", "-.", (0, (8, 2))), "osD^P"  # of runs
REFERENCES: dict[str, dict[str, Any]] = {  # policies that others are compared with, distinguished by shape
    "8 bits": {"marker": "s", "color": "0.2"},
    "best uniform": {"marker": "^", "color": UNIFORM},
    "found": {"marker": "*", "color": "black"},
}


def search_figure(
    accuracy: Float[np.ndarray, "E"],
    feasible: Bool[np.ndarray, "E"],
    best_so_far: Float[np.ndarray, "E"],
    float_accuracy: float | None = None,
    uniform_accuracy: float | None = None,
    title: str = "",
    *,
    reward: tuple[Float[np.ndarray, "E"], Float[np.ndarray, "E"]] | None = None,
) -> Figure:
    """Draws the accuracy of each episode's policy, the best so far, and what it is compared with.

    Args:
      accuracy: in 0..1, on the search split.
      feasible: whether the episode's policy fits the budget.
      best_so_far: the best accuracy of a policy that fits, NaN before there is one.
      float_accuracy: that of the network before quantisation, on the same images.
      uniform_accuracy: that of the best uniform policy that fits.
      title: a line above the figure.
      reward: the reward of each episode, and the best so far; in a panel of their own.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> figure = search_figure(np.array([0.4, 0.8]), np.array([True, True]), np.array([0.4, 0.8]), 0.9)
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['best so far, 80.0 %', 'float network, 90.0 %']
    """
    count = 1 if reward is None else 2
    figure = Figure(figsize=(WIDTH, 1.2 + 1.6 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    axes = panels[0]
    outline_axes(axes, "accuracy, search split (%)")
    episodes, feasible = np.arange(1, len(accuracy) + 1), np.asarray(feasible, bool)
    percent, best = 100 * np.asarray(accuracy, float), 100 * np.asarray(best_so_far, float)
    axes.scatter(episodes[feasible], percent[feasible], s=9, c=EVALUATED, linewidths=0, label="policy of an episode")
    if not feasible.all():
        axes.scatter(episodes[~feasible], percent[~feasible], s=14, c="0.45", marker="x", lw=0.8, label="over budget")
    last = f", {best[-1]:.1f} %" if len(best) and np.isfinite(best[-1]) else ""
    axes.plot(episodes, best, color=BEST, lw=1.8, drawstyle="steps-post", label=f"best so far{last}")
    for name, value, color, style in (
        ("float network", float_accuracy, "0.2", (0, (1, 1.5))),
        ("best uniform in the budget", uniform_accuracy, UNIFORM, (0, (5, 2))),
    ):
        if value is not None:
            axes.axhline(100 * value, color=color, lw=1.2, ls=style, label=f"{name}, {100 * value:.1f} %")
    if reward is not None:
        _draw_reward(panels[1], episodes, *reward, feasible)
    panels[-1].set_xlabel("episode", fontsize=TEXT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.015)
    figure.legend(ncols=3, title=as_label(title), **LEGEND, **TITLE)
    return figure


def _draw_reward(axes: Axes, episodes: np.ndarray, reward: np.ndarray, best: np.ndarray, feasible: np.ndarray) -> None:
    outline_axes(axes, "reward")
    axes.scatter(episodes[feasible], reward[feasible], s=9, c=EVALUATED, linewidths=0)
    axes.scatter(episodes[~feasible], reward[~feasible], s=14, c="0.45", marker="x", lw=0.8)
    axes.plot(episodes, best, color=BEST, lw=1.8, drawstyle="steps-post")


class PolicyCosts(NamedTuple):
    """Costs of the evaluated policies in one resource, in its SI unit."""

    cost: Float[np.ndarray, "E"]
    front: Int[np.ndarray, "F"]  # the policies on the front, the cheapest first
    limit: float | None  # the budget, where there is one
    references: Mapping[str, tuple[float, float]]  # (cost, accuracy) by a key of REFERENCES


def policies_figure(
    accuracy: Float[np.ndarray, "E"], feasible: Bool[np.ndarray, "E"], costs: Mapping[str, PolicyCosts], title: str = ""
) -> Figure:
    """Draws the accuracy of every evaluated policy over its cost, and marks the front of those that no other one beats.

    Args:
      accuracy: in 0..1, on the search split.
      feasible: whether a policy fits the budget.
      costs: by resource, a field of `Cost`; a panel each.
      title: a line above the figure.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> cost, accuracy = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.9, 0.7])
    >>> figure = policies_figure(accuracy, np.ones(3, bool), {"latency": PolicyCosts(cost, np.array([0, 1]), None, {})})
    >>> figure.axes[0].get_xlabel(), figure.axes[0].lines[0].get_xdata().tolist()
    ('latency (s)', [1.0, 2.0])
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 2.4 * len(costs)), layout="constrained")
    panels = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
    for axes, (resource, of) in zip(panels, costs.items(), strict=True):
        _draw_policies(axes, 100 * np.asarray(accuracy, float), np.asarray(feasible, bool), resource, of)
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=7, title=as_label(title), **LEGEND, **TITLE)
    return figure


def _draw_policies(axes: Axes, percent: np.ndarray, feasible: np.ndarray, resource: str, of: PolicyCosts) -> None:
    outline_axes(axes, "accuracy, search split (%)")
    unit, scale = unit_of(resource, of.cost)
    axes.set_xlabel(f"{resource} ({unit})", fontsize=TEXT)
    at, front = np.asarray(of.cost) / scale, of.front
    axes.scatter(at[feasible], percent[feasible], s=9, c=EVALUATED, linewidths=0, label="policy")
    if not feasible.all():
        axes.scatter(at[~feasible], percent[~feasible], s=14, c="0.45", marker="x", lw=0.8, label="over budget")
    line: dict[str, Any] = {"lw": 1.4, "ms": 4, "mfc": "white", "drawstyle": "steps-post"}
    axes.plot(at[front], percent[front], "o-", color=BEST, label="front", **line)
    for name, (cost, accuracy) in of.references.items():
        axes.scatter(cost / scale, 100 * accuracy, s=42, zorder=3, linewidths=0, label=name, **REFERENCES[name])
    if of.limit is not None:
        axes.axvline(of.limit / scale, color="0.3", lw=1, ls=(0, (5, 2)), label="budget")


def runs_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], cost_name: str) -> Figure:
    """Draws several searches: the best accuracy so far of each, and its front.

    Args:
      curves: by name of the run: best so far by episode, and cost and accuracy of its front; accuracies in 0..1.
      cost_name: label of the costs.

    >>> curve = np.array([0.5, 0.9]), np.array([0.4, 0.6]), np.array([0.5, 0.9])
    >>> [len(axes.lines) for axes in runs_figure({"a": curve, "b": curve}, "latency").axes]
    [2, 2]
    """
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    above, below = figure.subplots(2, 1)
    for at, (name, (best, cost, accuracy)) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": BEST, "lw": 1.4, "ls": DASHES[at % len(DASHES)], "drawstyle": "steps-post"}
        above.plot(np.arange(1, len(best) + 1), 100 * best, label=as_label(name, 40), **style)
        below.plot(
            cost, 100 * accuracy, marker=MARKS[at % len(MARKS)], ms=4.5, mfc="white", label=as_label(name, 40), **style
        )
    for axes, label in ((above, "episode"), (below, cost_name)):
        outline_axes(axes, "accuracy, search split (%)")
        axes.set_xlabel(label, fontsize=TEXT)
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*below.get_legend_handles_labels(), ncols=3, **LEGEND)
    return figure
