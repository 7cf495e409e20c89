"""Draws a search as a plotly figure; `haqjax.report.static.search` as a matplotlib one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from haqjax.report.interactive.style import HOVER, as_json, lay_out, make_panels
from haqjax.report.names import as_plotly
from haqjax.report.palette import BEST, EVALUATED, INK, UNIFORM
from haqjax.report.run_data import (
    RunData,
    best_reward,
    describe_policies,
    find_front,
    front_resources,
    reference_points,
)
from haqjax.units import unit_of

FITS = {"symbol": "circle", "size": 5, "color": EVALUATED, "line": {"color": "#3d6a92", "width": 0.5}}
OVER = {"symbol": "x-thin", "size": 7, "color": "#737373", "line": {"color": "#737373", "width": 1.4}}
FRONT = {"symbol": "circle-open", "size": 9, "color": BEST, "line": {"width": 1.8}}
REFERENCES = {"8 bits": ("square", "#333333"), "best uniform": ("triangle-up", UNIFORM), "found": ("star", "#000000")}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # of runs
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def search_chart(run_data: RunData) -> go.Figure | None:
    """Draws the accuracy and the reward of each episode, and the best so far."""
    episodes = run_data.episodes
    if episodes is None or not len(episodes.accuracy):
        return None
    figure, order = make_panels(2, gap=0.06), np.arange(1, 1 + len(episodes.accuracy))
    style: dict[str, Any] = {"mode": "lines", "name": "best so far", "hoverinfo": "skip", "legendgroup": "best"}
    style["line"] = {"color": BEST, "width": 2, "shape": "hv"}
    panels = (100 * episodes.accuracy, 100 * episodes.best), (episodes.reward, best_reward(episodes))
    for row, (values, best) in enumerate(panels, start=1):
        _add_policies(figure, row, run_data, order, values)
        figure.add_trace(go.Scatter(x=as_json(order), y=as_json(best), showlegend=row == 1, **style), row=row, col=1)
    for name, key, dash in (("float network", "float", "dot"), ("best uniform in the budget", "uniform", "dash")):
        level = {"y": [100 * run_data.search_accuracy[key]] * 2, "line": {"color": INK, "width": 1.2, "dash": dash}}
        figure.add_trace(go.Scatter(x=[1, len(order)], mode="lines", name=name, **level), row=1, col=1)
    figure.update_yaxes(row=1, title_text="accuracy (%)")
    figure.update_yaxes(row=2, title_text="reward")
    figure.update_xaxes(row=2, title_text="episode")
    return lay_out(figure, 470)


def policies_chart(run_data: RunData) -> go.Figure | None:
    """Draws the accuracy of every evaluated policy over its cost; a panel for each resource that the budget limits."""
    episodes, resources = run_data.episodes, front_resources(run_data)
    if episodes is None or not resources:
        return None
    figure, texts = make_panels(len(resources), gap=0.3 / len(resources), shared=False), describe_policies(run_data)
    for row, resource in enumerate(resources, start=1):
        cost, percent = np.asarray(getattr(episodes.cost, resource)), 100 * episodes.accuracy
        unit, scale = unit_of(resource, cost)
        _add_policies(figure, row, run_data, cost / scale, percent)
        at = find_front(episodes, resource)
        front = go.Scatter(
            x=as_json(cost[at] / scale),
            y=as_json(percent[at]),
            mode="lines+markers",
            line={"color": BEST, "width": 1.6, "shape": "hv"},
            marker=FRONT,
            name="front",
            legendgroup="front",
            hovertext=[texts[i] for i in at],
            showlegend=row == 1,
            **HOVER,
        )
        figure.add_trace(front, row=row, col=1)
        _add_references(figure, row, run_data, resource, unit, scale)
        if np.isfinite(limit := run_data.budget.get(resource, np.inf)):
            line = {"color": INK, "width": 1, "dash": "dash"}
            label = {"text": "budget", "font": {"size": 11}}
            figure.add_vline(x=limit / scale, line=line, annotation=label, row=row, col=1)
        figure.update_xaxes(row=row, title_text=f"{resource} ({unit})")
        figure.update_yaxes(row=row, title_text="accuracy (%)")
    return lay_out(figure, 120 + 290 * len(resources))


def _add_policies(
    figure: go.Figure, row: int, run_data: RunData, x: Float[np.ndarray, "E"] | Int[np.ndarray, "E"], y: np.ndarray
) -> None:
    """Draws the policies that fit the budget and those that do not, as far as there are any."""
    texts, feasible = describe_policies(run_data), run_data.episodes.feasible  # type: ignore[union-attr]
    for name, style, chosen in (("policy", FITS, feasible), ("over budget", OVER, ~feasible)):
        at = np.flatnonzero(chosen)
        if at.size:
            points = go.Scatter(
                x=as_json(x[at]),
                y=as_json(y[at]),
                mode="markers",
                marker=style,
                name=name,
                legendgroup=name,
                hovertext=[texts[i] for i in at],
                showlegend=row == 1,
                **HOVER,
            )
            figure.add_trace(points, row=row, col=1)


def _add_references(figure: go.Figure, row: int, run_data: RunData, resource: str, unit: str, scale: float) -> None:
    for name, (cost, accuracy) in reference_points(run_data, resource).items():
        symbol, color = REFERENCES[name]
        text = f"<b>{name}</b><br>accuracy {100 * accuracy:.1f} %<br>{resource} {cost / scale:.4g} {unit}"
        point = go.Scatter(
            x=[cost / scale],
            y=[100 * accuracy],
            mode="markers",
            marker={"symbol": symbol, "color": color, "size": 12, "line": {"color": "white", "width": 1}},
            name=name,
            legendgroup=name,
            hovertext=[text],
            showlegend=row == 1,
            **HOVER,
        )
        figure.add_trace(point, row=row, col=1)


def runs_chart(runs: Sequence[RunData], resource: str) -> go.Figure | None:
    """Draws the best so far of each run, and its front over the fraction of the 8-bit cost; None without episodes."""
    figure = make_panels(2, gap=0.2, shared=False)
    for at, run_data in enumerate(runs):
        episodes = run_data.episodes
        if episodes is None or resource not in front_resources(run_data, always=resource):
            continue
        line = {"color": INK, "width": 1.6, "dash": DASHES[at % len(DASHES)], "shape": "hv"}
        style: dict[str, Any] = {"line": line, "name": as_plotly(run_data.name, 60), "legendgroup": str(at)}
        order = list(range(1, 1 + len(episodes.best)))
        figure.add_trace(go.Scatter(x=order, y=as_json(100 * episodes.best), mode="lines", **style), row=1, col=1)
        front, texts = find_front(episodes, resource), describe_policies(run_data)
        fraction = np.asarray(getattr(episodes.cost, resource)) / float(getattr(run_data.costs["8_bits"], resource))
        symbol = SYMBOLS[at % len(SYMBOLS)]
        points = go.Scatter(
            x=as_json(fraction[front]),
            y=as_json(100 * episodes.accuracy[front]),
            mode="lines+markers",
            marker={"symbol": symbol, "size": 8, "color": "white", "line": {"color": INK, "width": 1.4}},
            hovertext=[f"<b>{as_plotly(run_data.name)}</b><br>{texts[i]}" for i in front],
            showlegend=False,
            **style,
            **HOVER,
        )
        figure.add_trace(points, row=2, col=1)
    figure.update_xaxes(row=1, title_text="episode")
    figure.update_xaxes(row=2, title_text=f"{resource}, fraction of that at 8 bits")
    figure.update_yaxes(title_text="accuracy (%)")
    return lay_out(figure, 620) if figure.data else None
