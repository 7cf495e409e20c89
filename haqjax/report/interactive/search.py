"""Draws searches to be looked at on a screen: each policy tells its numbers when it is pointed at."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int

from haqjax.report.interactive.style import HOVER, INK, lay_out, panels, plain
from haqjax.report.run_data import RunData, best_reward, describe_policies, find_front, front_resources, references
from haqjax.report.static.search import DOTS, LINE
from haqjax.report.tables import unit_of

FITS = {"symbol": "circle", "size": 5, "color": DOTS, "line": {"color": "#3d6a92", "width": 0.5}}
OVER = {"symbol": "x-thin", "size": 7, "color": "#737373", "line": {"color": "#737373", "width": 1.4}}
FRONT = {"symbol": "circle-open", "size": 9, "color": LINE, "line": {"width": 1.8}}
REFERENCES = {"8 bits": ("square", "#333333"), "best uniform": ("triangle-up", "#c8590a"), "found": ("star", "#000000")}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # of runs
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def search_chart(run_data: RunData) -> go.Figure | None:
    """Accuracy and reward of each episode, and the best so far."""
    episodes = run_data.episodes
    if episodes is None or not len(episodes.accuracy):
        return None
    figure, numbers = panels(2, gap=0.06), np.arange(1, 1 + len(episodes.accuracy))
    stroke = {"color": LINE, "width": 2, "shape": "hv"}
    panel = (1, 100 * episodes.accuracy, 100 * episodes.best), (2, episodes.reward, best_reward(episodes))
    for row, values, best in panel:
        _add_policies(figure, row, run_data, numbers, values)
        line = {"mode": "lines", "line": stroke, "name": "best so far", "hoverinfo": "skip", "legendgroup": "best"}
        figure.add_trace(go.Scatter(x=plain(numbers), y=plain(best), showlegend=row == 1, **line), row=row, col=1)
    for name, key, dash in (("float network", "float", "dot"), ("best uniform in the budget", "uniform", "dash")):
        stroke = {"color": INK, "width": 1.2, "dash": dash}
        level = go.Scatter(
            x=[1, len(numbers)], y=[100 * run_data.searched[key]] * 2, mode="lines", line=stroke, name=name
        )
        figure.add_trace(level, row=1, col=1)
    figure.update_yaxes(row=1, title_text="accuracy (%)")
    figure.update_yaxes(row=2, title_text="reward")
    figure.update_xaxes(row=2, title_text="episode")
    return lay_out(figure, 470)


def front_chart(run_data: RunData) -> go.Figure | None:
    """Accuracy over cost of every policy that was evaluated; a panel for each resource that the budget limits."""
    episodes, resources = run_data.episodes, front_resources(run_data)
    if episodes is None or not resources:
        return None
    figure = panels(len(resources), gap=0.3 / len(resources), shared=False)
    for row, resource in enumerate(resources, start=1):
        cost, percent = np.asarray(getattr(episodes.cost, resource)), 100 * episodes.accuracy
        unit, scale = unit_of(resource, cost)
        _add_policies(figure, row, run_data, cost / scale, percent)
        at = find_front(episodes, resource)
        figure.add_trace(_front(run_data, at, cost[at] / scale, percent[at], row == 1), row=row, col=1)
        for name, (spent, reached) in references(run_data, resource).items():
            symbol, color = REFERENCES[name]
            style = {"symbol": symbol, "color": color, "size": 12, "line": {"color": "white", "width": 1}}
            said = f"<b>{name}</b><br>accuracy {100 * reached:.1f} %<br>{resource} {spent / scale:.4g} {unit}"
            mark = go.Scatter(x=[spent / scale], y=[100 * reached], mode="markers", marker=style, name=name,
                              legendgroup=name, hovertext=[said], showlegend=row == 1, **HOVER)  # fmt: skip
            figure.add_trace(mark, row=row, col=1)
        _add_budget(figure, row, run_data.budget.get(resource, np.inf) / scale)
        figure.update_xaxes(row=row, title_text=f"{resource} ({unit})")
        figure.update_yaxes(row=row, title_text="accuracy (%)")
    return lay_out(figure, 120 + 290 * len(resources))


def runs_chart(runs: Sequence[RunData], resource: str) -> go.Figure | None:
    """The best so far of each run, and its front over the share of the 8-bit cost; None where nothing was recorded."""
    figure = panels(2, gap=0.2, shared=False)
    for at, run_data in enumerate(runs):
        episodes = run_data.episodes
        if episodes is None or resource not in front_resources(run_data, always=resource):
            continue
        style: dict[str, Any] = {
            "line": {"color": INK, "width": 1.6, "dash": DASHES[at % len(DASHES)], "shape": "hv"},
            "name": run_data.name, "legendgroup": run_data.name,
        }  # fmt: skip
        numbers = list(range(1, 1 + len(episodes.best)))
        figure.add_trace(go.Scatter(x=numbers, y=plain(100 * episodes.best), mode="lines", **style), row=1, col=1)
        front, told = find_front(episodes, resource), describe_policies(run_data)
        share = np.asarray(getattr(episodes.cost, resource)) / float(getattr(run_data.costs["8_bits"], resource))
        marker = {
            "symbol": SYMBOLS[at % len(SYMBOLS)],
            "size": 8,
            "color": "white",
            "line": {"color": INK, "width": 1.4},
        }
        said = [f"<b>{run_data.name}</b><br>{told[i]}" for i in front]
        points = go.Scatter(
            x=plain(share[front]), y=plain(100 * episodes.accuracy[front]), mode="lines+markers", marker=marker,
            hovertext=said, showlegend=False, **style, **HOVER,
        )  # fmt: skip
        figure.add_trace(points, row=2, col=1)
    figure.update_xaxes(row=1, title_text="episode")
    figure.update_xaxes(row=2, title_text=f"{resource}, share of that at 8 bits")
    figure.update_yaxes(title_text="accuracy (%)")
    return lay_out(figure, 620) if figure.data else None


def _add_policies(
    figure: go.Figure, row: int, run_data: RunData, x: Float[np.ndarray, "E"] | Int[np.ndarray, "E"], y: np.ndarray
) -> None:
    told = describe_policies(run_data)
    for name, style, at in _fitting(run_data.episodes.feasible):  # type: ignore[union-attr]
        points = go.Scatter(
            x=plain(x[at]), y=plain(y[at]), mode="markers", marker=style, name=name, legendgroup=name,
            hovertext=[told[i] for i in at], showlegend=row == 1, **HOVER,
        )  # fmt: skip
        figure.add_trace(points, row=row, col=1)


def _fitting(feasible: Bool[np.ndarray, "E"]) -> Iterator[tuple[str, dict, np.ndarray]]:
    """The policies that fit the budget and those that do not, as far as there are any."""
    for name, style, at in (("policy", FITS, feasible), ("over budget", OVER, ~feasible)):
        if at.any():
            yield name, style, np.flatnonzero(at)


def _front(run_data: RunData, at: np.ndarray, x: np.ndarray, y: np.ndarray, named: bool) -> go.Scatter:
    told, stroke = describe_policies(run_data), {"color": LINE, "width": 1.6, "shape": "hv"}
    return go.Scatter(
        x=plain(x), y=plain(y), mode="lines+markers", line=stroke, marker=FRONT, name="front", legendgroup="front",
        hovertext=[told[i] for i in at], showlegend=named, **HOVER,
    )  # fmt: skip


def _add_budget(figure: go.Figure, row: int, limit: float) -> None:
    if np.isfinite(limit):
        stroke = {"color": INK, "width": 1, "dash": "dash"}
        figure.add_vline(x=limit, line=stroke, annotation={"text": "budget", "font": {"size": 11}}, row=row, col=1)
