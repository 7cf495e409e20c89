"""Every figure of a report: what it is called, what it shows, how it is drawn for paper and for a screen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from haqjax.report.interactive.layers import bits_chart, cost_chart, roofline_chart
from haqjax.report.interactive.search import front_chart, runs_chart, search_chart
from haqjax.report.run_data import RunData, best_reward, find_front, front_resources, references
from haqjax.report.static.bits import bits_figure
from haqjax.report.static.costs import cost_figure
from haqjax.report.static.roofline import move_figure
from haqjax.report.static.search import Costs, front_figure, runs_figure, search_figure


class Picture(NamedTuple):
    """A figure, where a run has what it shows."""

    title: str
    caption: str
    still: Callable[[RunData], Figure | None]
    chart: Callable[[RunData], go.Figure | None]


def draw_bits(run_data: RunData) -> Figure:
    """The bits of each layer."""
    of = run_data.layers
    return bits_figure(of.names, run_data.policy, of.depthwise, of.pinned, run_data.title, pointwise=of.pointwise)


def draw_costs(run_data: RunData) -> Figure | None:
    """What each layer costs."""
    of = run_data.layers
    return cost_figure(of.names, run_data.spent, of.depthwise, of.pointwise, run_data.title) if run_data.spent else None


def draw_roofline(run_data: RunData) -> Figure | None:
    """Where each layer stands under the machine's limits."""
    if run_data.rooflines is None:
        return None
    return move_figure(run_data.rooflines, run_data.layers.depthwise, run_data.layers.pointwise, run_data.title)


def draw_search(run_data: RunData) -> Figure | None:
    """Accuracy and reward over episodes."""
    episodes = run_data.episodes
    if episodes is None or not len(episodes.accuracy):
        return None
    accuracy, feasible, level = episodes.accuracy, episodes.feasible, run_data.searched
    reward = episodes.reward, best_reward(episodes)
    return search_figure(
        accuracy, feasible, episodes.best, level["float"], level["uniform"], run_data.title, reward=reward
    )


def draw_front(run_data: RunData) -> Figure | None:
    """Accuracy over what the budget limits."""
    episodes, resources = run_data.episodes, front_resources(run_data)
    if episodes is None or not resources:
        return None
    costs = {
        name: Costs(
            np.asarray(getattr(episodes.cost, name)),
            find_front(episodes, name),
            run_data.budget.get(name),
            references(run_data, name),
        )
        for name in resources
    }
    return front_figure(episodes.accuracy, episodes.feasible, costs, run_data.title)


PICTURES = {
    "bits": Picture(
        "Bits of each layer",
        "Weights upwards and activations downwards, in the order of execution. Outlines were not searched.",
        draw_bits,
        bits_chart,
    ),
    "costs": Picture(
        "Cost of each layer",
        "Under the policy, in front of the same layer at 8 bits.",
        draw_costs,
        cost_chart,
    ),
    "roofline": Picture(
        "Roofline",
        "Hollow marks are layers at 8 bits, filled ones the same layers under the policy. Lines are what the machine "
        "can do at most with 8, 4 and 2 bits. Bytes that the model moves for free do not count.",
        draw_roofline,
        roofline_chart,
    ),
    "search": Picture(
        "Search",
        "Accuracy of the policy of each episode on the images that the search selects with, and the reward: how much "
        "better it is than the float network, or its loss for a search that goes by the loss.",
        draw_search,
        search_chart,
    ),
    "policies": Picture(
        "Front",
        "Every policy that was evaluated. Rings mark those that no other one beats: none is as accurate and cheaper, "
        "or as cheap and more accurate.",
        draw_front,
        front_chart,
    ),
}


def common_resource(runs: Sequence[RunData]) -> str:
    """What the fronts of several runs are compared by: the first resource that all of them limit, else the latency."""
    shared = [name for name in runs[0].budget if all(name in run_data.budget for run_data in runs)]
    return [*shared, "latency"][0]


def draw_runs(runs: Sequence[RunData]) -> Figure | None:
    """Several searches in one figure."""
    resource, curves = common_resource(runs), {}
    for run_data in runs:
        episodes = run_data.episodes
        if episodes is not None and resource in front_resources(run_data, always=resource):
            at, full = find_front(episodes, resource), float(getattr(run_data.costs["8_bits"], resource))
            cost = np.asarray(getattr(episodes.cost, resource))[at] / full
            curves[run_data.name] = episodes.best, cost, episodes.accuracy[at]
    return runs_figure(curves, f"{resource}, share of that at 8 bits") if curves else None


def chart_runs(runs: Sequence[RunData]) -> go.Figure | None:
    """The same for a screen."""
    return runs_chart(runs, common_resource(runs))
