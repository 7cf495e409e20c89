"""Draws layers to be looked at on a screen: each one tells its numbers when it is pointed at."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from haqjax.report.interactive.style import HOVER, INK, lay_out, panels, plain
from haqjax.report.run_data import RunData, describe, kinds, labels
from haqjax.report.static.bits import KINDS
from haqjax.report.static.roofline import MARKS, Place, roofs
from haqjax.report.tables import unit_of
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS

BEFORE = {"color": "#ebebeb", "line": {"color": "#737373", "width": 0.7}}  # the bar behind
FIXED = {"color": "white", "line": {"color": INK, "width": 0.8}}
DASHES = {8: "solid", 4: "dash", 2: "dot"}  # of the roofs, by bits
SYMBOLS = {"D": "diamond", "o": "circle", "^": "triangle-up"}  # Plotly's names of Matplotlib's marks


def bits_chart(run_data: RunData) -> go.Figure:
    """The bits of each layer: weights upwards and, where the search chose any, activations downwards."""
    pinned = run_data.layers.pinned
    columns = [WEIGHT] if pinned[:, ACTIVATION].all() else [WEIGHT, ACTIVATION]
    figure = panels(len(columns), gap=0.015)
    beyond = WIDTHS + 2  # the height of a tensor left as it is
    ticks = {2: "2", 4: "4", 6: "6", 8: "8"} | ({beyond: "32"} if (run_data.policy[:, columns] > WIDTHS).any() else {})
    for row, column in enumerate(columns, start=1):
        bits = run_data.policy[:, column]
        _add_bars(figure, row, run_data, np.where(bits > WIDTHS, beyond, bits), 0.78, fixed=pinned[:, column])
        top = max(ticks) + 0.5
        sides = [0, top + 0.8] if column == WEIGHT else [top, 0]  # above: room for the marks of the ends
        title = ("weight bits", "activation bits")[column]
        figure.update_yaxes(row=row, title_text=title, range=sides, tickvals=list(ticks), ticktext=list(ticks.values()))
    _mark_ends(figure, run_data)
    return _name_layers(lay_out(figure, 200 + 150 * len(columns)), run_data, len(columns))


def cost_chart(run_data: RunData) -> go.Figure | None:
    """The cost of each layer under the policy, in front of that at 8 bits; a panel a resource."""
    if not run_data.spent:
        return None
    figure = panels(len(run_data.spent), gap=0.06)
    told, names = describe(run_data), labels(run_data.layers)
    for row, (resource, (before, after)) in enumerate(run_data.spent.items(), start=1):
        unit, scale = unit_of(resource, before)
        behind = go.Bar(
            x=names, y=plain(before / scale), width=0.92, marker=BEFORE, name="at 8 bits", legendgroup="8",
            hovertext=told, showlegend=row == 1, **HOVER,
        )  # fmt: skip
        figure.add_trace(behind, row=row, col=1)
        _add_bars(figure, row, run_data, after / scale, 0.56, prefix="found, ")
        figure.update_yaxes(row=row, title_text=f"{resource} ({unit})", rangemode="tozero")
    return _name_layers(lay_out(figure, 200 + 150 * len(run_data.spent)), run_data, len(run_data.spent))


def roofline_chart(run_data: RunData) -> go.Figure | None:
    """Where each layer stands under the machine's limits: hollow at 8 bits, filled under the policy."""
    lines = run_data.rooflines
    if lines is None:
        return None
    figure = go.Figure()
    for bits, (reach, speed) in roofs(lines).items():
        stroke = {"color": INK, "width": 1.4, "dash": DASHES[bits]}
        name = f"limit at {bits} bits"
        figure.add_scatter(x=plain(reach), y=plain(speed), mode="lines", line=stroke, name=name, hoverinfo="skip")
    (x0, y0, _), (x1, y1, _) = lines.before, lines.after
    ways = [plain(np.stack([a, b, np.full_like(a, np.nan)], axis=1).ravel()) for a, b in ((x0, x1), (y0, y1))]
    stroke = {"color": "#a6a6a6", "width": 0.7}
    figure.add_scatter(x=ways[0], y=ways[1], mode="lines", line=stroke, hoverinfo="skip", showlegend=False)
    for when, place in (("at 8 bits", lines.before), ("under the policy", lines.after)):
        _add_places(figure, run_data, place, when, filled=place is lines.after)
    figure.update_xaxes(type="log", title_text="operations per byte of DRAM traffic", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", title_text="operations per second", exponentformat="power", dtick=1)
    return lay_out(figure, 460)


def _add_bars(
    figure: go.Figure,
    row: int,
    run_data: RunData,
    heights: Float[np.ndarray, "L"],
    width: float,
    *,
    fixed: Bool[np.ndarray, "L"] | None = None,
    prefix: str = "",
) -> None:
    """A bar a layer, a trace a kind of layer: what the search could not change is an outline."""
    told, names = describe(run_data), labels(run_data.layers)
    groups = np.where(np.zeros(len(names), bool) if fixed is None else fixed, "not searched", kinds(run_data.layers))
    for group in (*KINDS, "not searched"):
        if not (at := np.flatnonzero(groups == group)).size:
            continue
        style = FIXED if group == "not searched" else _kind_style(group)
        bars = go.Bar(
            x=[names[i] for i in at], y=plain(heights[at]), width=width, marker=style, name=f"{prefix}{group}",
            legendgroup=group, hovertext=[told[i] for i in at], showlegend=_is_new(figure, f"{prefix}{group}"), **HOVER,
        )  # fmt: skip
        figure.add_trace(bars, row=row, col=1)


def _kind_style(kind: str) -> dict:
    color = KINDS[kind]["facecolor"]
    style = {"color": color, "line": {"color": INK, "width": 0.6}}
    hatched = {"shape": "/", "bgcolor": color, "fgcolor": INK, "size": 5, "solidity": 0.2}
    return style | ({"pattern": hatched} if "hatch" in KINDS[kind] else {})


def _is_new(figure: go.Figure, name: str) -> bool:
    return all(trace.name != name for trace in figure.data)


def _add_places(figure: go.Figure, run_data: RunData, place: Place, when: str, *, filled: bool) -> None:
    names, told = np.array(kinds(run_data.layers)), describe(run_data)
    for kind, mark in MARKS.items():
        if not (at := np.flatnonzero(names == kind)).size:
            continue
        color = KINDS[kind]["facecolor"] if filled else "white"
        style = {"symbol": SYMBOLS[mark], "size": 8, "color": color, "line": {"color": INK, "width": 1}}
        said = [
            f"{told[i]}<br><i>{when}: limited by {place.limit[i]}</i><br>{place.intensity[i]:.3g} operations a byte, "
            f"{place.speed[i] / 1e9:.3g} G operations a second"
            for i in at
        ]
        figure.add_scatter(
            x=plain(place.intensity[at]), y=plain(place.speed[at]), mode="markers", marker=style, name=kind,
            legendgroup=kind, hovertext=said, showlegend=filled, **HOVER,
        )  # fmt: skip


def _mark_ends(figure: go.Figure, run_data: RunData) -> None:
    """Says above the bars which layer is the first and which the last."""
    names = labels(run_data.layers)
    for at, text, side in ((0, "first", "left"), (len(names) - 1, "last", "right"))[: len(names)]:
        figure.add_annotation(
            x=at, y=1, xref="x", yref="y domain", text=text, showarrow=False, xanchor=side, yanchor="top",
            xshift=-4 if side == "left" else 4, font={"size": 11},
        )  # fmt: skip


def _name_layers(figure: go.Figure, run_data: RunData, rows: int) -> go.Figure:
    """Names below the last panel, as many as there is room for."""
    names = labels(run_data.layers)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=names, showgrid=False)
    figure.update_xaxes(row=rows, tickangle=-90, tickfont_size=9)
    return figure.update_layout(barmode="overlay", bargap=0)
