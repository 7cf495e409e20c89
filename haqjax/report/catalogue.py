"""Every figure of a report: what it is called, what it shows, how it is drawn for paper and for a screen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from haqjax.report.interactive.layers import bits_chart, cost_chart, roofline_chart
from haqjax.report.interactive.search import front_chart, runs_chart, search_chart
from haqjax.report.run_data import Facts, best_gain, find_front, front_resources, references
from haqjax.report.static.bits import bits_figure
from haqjax.report.static.costs import cost_figure
from haqjax.report.static.roofline import move_figure
from haqjax.report.static.search import Costs, front_figure, runs_figure, search_figure


class Picture(NamedTuple):
    """A figure, where a run has what it shows."""

    title: str
    caption: str
    still: Callable[[Facts], Figure | None]
    chart: Callable[[Facts], go.Figure | None]


def draw_bits(facts: Facts) -> Figure:
    """The bits of each layer."""
    of = facts.layers
    return bits_figure(of.names, facts.policy, of.depthwise, of.pinned, facts.title, pointwise=of.pointwise)


def draw_costs(facts: Facts) -> Figure | None:
    """What each layer costs."""
    of = facts.layers
    return cost_figure(of.names, facts.spent, of.depthwise, of.pointwise, facts.title) if facts.spent else None


def draw_roofline(facts: Facts) -> Figure | None:
    """Where each layer stands under the machine's limits."""
    if facts.rooflines is None:
        return None
    return move_figure(facts.rooflines, facts.layers.depthwise, facts.layers.pointwise, facts.title)


def draw_search(facts: Facts) -> Figure | None:
    """Accuracy and reward over episodes."""
    episodes = facts.episodes
    if episodes is None or not len(episodes.accuracy):
        return None
    accuracy, feasible, level = episodes.accuracy, episodes.feasible, facts.searched
    gain = episodes.gain, best_gain(episodes)
    return search_figure(accuracy, feasible, episodes.best, level["float"], level["uniform"], facts.title, gain=gain)


def draw_front(facts: Facts) -> Figure | None:
    """Accuracy over what the budget limits."""
    episodes, resources = facts.episodes, front_resources(facts)
    if episodes is None or not resources:
        return None
    costs = {
        name: Costs(
            np.asarray(getattr(episodes.cost, name)),
            find_front(episodes, name),
            facts.budget.get(name),
            references(facts, name),
        )
        for name in resources
    }
    return front_figure(episodes.accuracy, episodes.feasible, costs, facts.title)


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


def common_resource(runs: Sequence[Facts]) -> str:
    """What the fronts of several runs are compared by: the first resource that all of them limit, else the latency."""
    shared = [name for name in runs[0].budget if all(name in facts.budget for facts in runs)]
    return [*shared, "latency"][0]


def draw_runs(runs: Sequence[Facts]) -> Figure | None:
    """Several searches in one figure."""
    resource, curves = common_resource(runs), {}
    for facts in runs:
        episodes = facts.episodes
        if episodes is not None and resource in front_resources(facts, always=resource):
            at, full = find_front(episodes, resource), float(getattr(facts.costs["8_bits"], resource))
            cost = np.asarray(getattr(episodes.cost, resource))[at] / full
            curves[facts.name] = episodes.best, cost, episodes.accuracy[at]
    return runs_figure(curves, f"{resource}, share of that at 8 bits") if curves else None


def chart_runs(runs: Sequence[Facts]) -> go.Figure | None:
    """The same for a screen."""
    return runs_chart(runs, common_resource(runs))
