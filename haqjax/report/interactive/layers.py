"""Draws layers, their bits or costs, as a plotly figure; `haqjax.report.static.layers` as a matplotlib one."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from haqjax.report.interactive.style import HOVER, LOOKS, as_json, lay_out, make_panels
from haqjax.report.names import as_plotly
from haqjax.report.palette import INK, KINDS
from haqjax.report.run_data import RunData, describe_layers, label_layers, layer_kinds
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS
from haqjax.units import unit_of

BEHIND = {"color": "#ebebeb", "line": {"color": "#737373", "width": 0.7}}  # the bar at 8 bits
OUTLINE = {"color": "white", "line": {"color": INK, "width": 0.8}}  # not searched


def bits_chart(run_data: RunData) -> go.Figure:
    """Draws the bits of each layer: weights upwards and, where the search chose any, activations downwards."""
    pinned = run_data.layers.pinned
    columns = [WEIGHT] if pinned[:, ACTIVATION].all() else [WEIGHT, ACTIVATION]
    figure = make_panels(len(columns), gap=0.015)
    float_height = WIDTHS + 2  # of a tensor left as it is
    as_float = (run_data.policy[:, columns] > WIDTHS).any()
    ticks = {2: "2", 4: "4", 6: "6", 8: "8"} | ({float_height: "32"} if as_float else {})
    for row, column in enumerate(columns, start=1):
        bits = run_data.policy[:, column]
        heights = np.where(bits > WIDTHS, float_height, bits)
        _add_bars(figure, row, run_data, heights, 0.78, fixed=pinned[:, column])
        top = max(ticks) + 0.5
        sides = [0, top + 0.8] if column == WEIGHT else [top, 0]  # above: room for the marks of the ends
        title = ("weight bits", "activation bits")[column]
        figure.update_yaxes(row=row, title_text=title, range=sides, tickvals=list(ticks), ticktext=list(ticks.values()))
    _mark_ends(figure, len(run_data.layers.names))
    return _name_layers(lay_out(figure, 200 + 150 * len(columns)), run_data, len(columns))


def _mark_ends(figure: go.Figure, count: int) -> None:
    """Says above the bars which layer is the first and which the last."""
    style = {"y": 1, "xref": "x", "yref": "y domain", "showarrow": False, "yanchor": "top", "font": {"size": 11}}
    for at, text, side, shift in ((0, "first", "left", -4), (count - 1, "last", "right", 4))[:count]:
        figure.add_annotation(x=at, text=text, xanchor=side, xshift=shift, **style)


def cost_chart(run_data: RunData) -> go.Figure | None:
    """Draws the cost of each layer under the policy, in front of that at 8 bits; a panel a resource."""
    count = len(run_data.layer_costs)
    if not count:
        return None
    figure = make_panels(count, gap=0.06)
    bar = {"x": _label(run_data), "hovertext": describe_layers(run_data), "width": 0.92} | HOVER
    for row, (resource, (before, after)) in enumerate(run_data.layer_costs.items(), start=1):
        unit, scale = unit_of(resource, before)
        legend = {"name": "at 8 bits", "legendgroup": "8", "showlegend": row == 1}
        figure.add_trace(go.Bar(y=as_json(before / scale), marker=BEHIND, **legend, **bar), row=row, col=1)
        _add_bars(figure, row, run_data, after / scale, 0.56, prefix="found, ")
        figure.update_yaxes(row=row, title_text=f"{resource} ({unit})", rangemode="tozero")
    return _name_layers(lay_out(figure, 200 + 150 * count), run_data, count)


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
    """Draws a bar a layer, a trace a kind of layer, and those that the search could not change as outlines."""
    texts, names = describe_layers(run_data), _label(run_data)
    kinds = layer_kinds(run_data.layers.depthwise, run_data.layers.pointwise)
    groups = np.where(np.zeros(len(names), bool) if fixed is None else fixed, "not searched", kinds)
    for group in (*KINDS, "not searched"):
        at, name = np.flatnonzero(groups == group), f"{prefix}{group}"
        if at.size:
            bars = go.Bar(
                x=[names[i] for i in at],
                y=as_json(heights[at]),
                width=width,
                marker=LOOKS.get(group, OUTLINE),
                name=name,
                legendgroup=group,
                showlegend=all(trace.name != name for trace in figure.data),
                hovertext=[texts[i] for i in at],
                **HOVER,
            )
            figure.add_trace(bars, row=row, col=1)


def _label(run_data: RunData) -> list[str]:
    return [as_plotly(name) for name in label_layers(run_data.layers)]


def _name_layers(figure: go.Figure, run_data: RunData, rows: int) -> go.Figure:
    """Writes names below the last panel, as many as there is room for."""
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=_label(run_data), showgrid=False)
    figure.update_xaxes(row=rows, tickangle=-90, tickfont_size=9)
    return figure.update_layout(barmode="overlay", bargap=0)
