"""Draws rooflines as a plotly figure; `haqjax.report.static.roofline` as a matplotlib one."""

import numpy as np
import plotly.graph_objects as go

from haqjax.report.interactive.style import HOVER, as_json, lay_out
from haqjax.report.palette import INK, KINDS
from haqjax.report.run_data import LayerSpeeds, RunData, describe_layers, find_roofs, layer_kinds

SYMBOLS = {"depthwise": "diamond", "pointwise (1×1)": "circle", "other": "triangle-up"}
DASHES = {8: "solid", 4: "dash", 2: "dot"}  # of the roofs, by bits


def roofline_chart(run_data: RunData) -> go.Figure | None:
    """Draws each layer at 8 bits, hollow, and under the policy, filled, below the machine's limits at 8, 4, 2 bits."""
    rooflines = run_data.rooflines
    if rooflines is None:
        return None
    figure = go.Figure()
    for bits, (intensity, speed) in find_roofs(rooflines).items():
        line = {"color": INK, "width": 1.4, "dash": DASHES[bits]}
        style = {"mode": "lines", "line": line, "name": f"limit at {bits} bits", "hoverinfo": "skip"}
        figure.add_scatter(x=as_json(intensity), y=as_json(speed), **style)
    (x0, y0, _), (x1, y1, _) = rooflines.before, rooflines.after
    x, y = (as_json(np.stack([a, b, np.full_like(a, np.nan)], axis=1).ravel()) for a, b in ((x0, x1), (y0, y1)))
    line = {"color": "#a6a6a6", "width": 0.7}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    _add_layers(figure, run_data, rooflines.before, "at 8 bits", filled=False)
    _add_layers(figure, run_data, rooflines.after, "under the policy", filled=True)
    figure.update_xaxes(type="log", title_text="operations per byte of DRAM traffic", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", title_text="operations per second", exponentformat="power", dtick=1)
    return lay_out(figure, 460)


def _add_layers(figure: go.Figure, run_data: RunData, speeds: LayerSpeeds, when: str, *, filled: bool) -> None:
    kinds = np.array(layer_kinds(run_data.layers.depthwise, run_data.layers.pointwise))
    descriptions = describe_layers(run_data)
    for kind, symbol in SYMBOLS.items():
        at = np.flatnonzero(kinds == kind)
        if not at.size:
            continue
        texts = [
            f"{descriptions[i]}<br><i>{when}: limited by {speeds.limit[i]}</i><br>{speeds.intensity[i]:.3g} operations "
            f"a byte, {speeds.speed[i] / 1e9:.3g} G operations a second"
            for i in at
        ]
        color = KINDS[kind] if filled else "white"
        figure.add_scatter(
            x=as_json(speeds.intensity[at]),
            y=as_json(speeds.speed[at]),
            mode="markers",
            marker={"symbol": symbol, "size": 8, "color": color, "line": {"color": INK, "width": 1}},
            name=kind,
            legendgroup=kind,
            hovertext=texts,
            showlegend=filled,
            **HOVER,
        )
