"""Figures of a report by name: each with its words, and drawn for paper (matplotlib) as for a screen (plotly)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from haqjax.report.interactive.layers import bits_chart, cost_chart
from haqjax.report.interactive.roofline import roofline_chart
from haqjax.report.interactive.search import policies_chart, runs_chart, search_chart
from haqjax.report.run_data import RunData, best_reward, find_front, front_resources, reference_points
from haqjax.report.static.layers import bits_figure, cost_figure
from haqjax.report.static.roofline import roofline_figure
from haqjax.report.static.search import PolicyCosts, policies_figure, runs_figure, search_figure


class Picture(NamedTuple):
    """A figure of a run in both forms; None where the run lacks the data."""

    title: str
    caption: str
    static: Callable[[RunData], Figure | None]
    interactive: Callable[[RunData], go.Figure | None]


def _draw_bits(run_data: RunData) -> Figure:
    of = run_data.layers
    return bits_figure(of.names, run_data.policy, of.depthwise, of.pinned, run_data.title, pointwise=of.pointwise)


def _draw_costs(run_data: RunData) -> Figure | None:
    if not run_data.layer_costs:
        return None
    of = run_data.layers
    return cost_figure(of.names, run_data.layer_costs, of.depthwise, of.pointwise, run_data.title)


def _draw_roofline(run_data: RunData) -> Figure | None:
    if run_data.rooflines is None:
        return None
    return roofline_figure(run_data.rooflines, run_data.layers.depthwise, run_data.layers.pointwise, run_data.title)


def _draw_search(run_data: RunData) -> Figure | None:
    episodes = run_data.episodes
    if episodes is None or not len(episodes.accuracy):
        return None
    accuracy, feasible, level = episodes.accuracy, episodes.feasible, run_data.search_accuracy
    reward = episodes.reward, best_reward(episodes)
    return search_figure(
        accuracy, feasible, episodes.best, level["float"], level["uniform"], run_data.title, reward=reward
    )


def _draw_policies(run_data: RunData) -> Figure | None:
    episodes, resources = run_data.episodes, front_resources(run_data)
    if episodes is None or not resources:
        return None
    costs = {
        name: PolicyCosts(
            np.asarray(getattr(episodes.cost, name)),
            find_front(episodes, name),
            run_data.budget.get(name),
            reference_points(run_data, name),
        )
        for name in resources
    }
    return policies_figure(episodes.accuracy, episodes.feasible, costs, run_data.title)


PICTURES = {
    "bits": Picture(
        "Bits of each layer",
        "Weights upwards and activations downwards, in the order of execution. Outlines were not searched.",
        _draw_bits,
        bits_chart,
    ),
    "costs": Picture(
        "Cost of each layer",
        "Under the policy, in front of the same layer at 8 bits.",
        _draw_costs,
        cost_chart,
    ),
    "roofline": Picture(
        "Roofline",
        "Hollow marks are layers at 8 bits, filled ones the same layers under the policy. Lines are what the machine "
        "can do at most with 8, 4 and 2 bits. Bytes that the model moves for free do not count.",
        _draw_roofline,
        roofline_chart,
    ),
    "search": Picture(
        "Search",
        "Accuracy of the policy of each episode on the search split, and the reward: how much better it is than the "
        "float network, or its loss for a search that goes by the loss.",
        _draw_search,
        search_chart,
    ),
    "policies": Picture(
        "Front",
        "Every policy that was evaluated. Rings mark those that no other one beats: none is as accurate and cheaper, "
        "or as cheap and more accurate.",
        _draw_policies,
        policies_chart,
    ),
}


def draw_runs(runs: Sequence[RunData]) -> Figure | None:
    """Draws several searches in one matplotlib figure; None where none of them has episodes."""
    resource, curves = _common_resource(runs), {}
    for run_data in runs:
        episodes = run_data.episodes
        if episodes is not None and resource in front_resources(run_data, always=resource):
            at, full = find_front(episodes, resource), float(getattr(run_data.costs["8_bits"], resource))
            cost = np.asarray(getattr(episodes.cost, resource))[at] / full
            curves[run_data.name] = episodes.best, cost, episodes.accuracy[at]
    return runs_figure(curves, f"{resource}, fraction of that at 8 bits") if curves else None


def chart_runs(runs: Sequence[RunData]) -> go.Figure | None:
    """Draws several searches in one plotly figure; None where none of them has episodes."""
    return runs_chart(runs, _common_resource(runs))


def _common_resource(runs: Sequence[RunData]) -> str:
    """Chooses the resource that fronts are compared by: the first that all runs limit, else the latency."""
    common = [name for name in runs[0].budget if all(name in run_data.budget for run_data in runs)]
    return [*common, "latency"][0]
