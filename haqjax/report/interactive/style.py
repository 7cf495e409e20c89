"""Style that all plotly figures have in common; the matplotlib one is `haqjax.report.static.style`."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from haqjax.report.palette import HATCHED, INK, KINDS

MODEBAR = 28  # pixels that the buttons take at the top
GRID = "#dedede"
HOVER = {"hovertemplate": "%{hovertext}<extra></extra>"}  # nothing but the text of a point
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 12, "color": INK}
AXIS: dict[str, Any] = {"gridcolor": GRID, "linecolor": "#666666", "zeroline": False, "automargin": True}
TITLE = {"title_font_size": 12, "title_standoff": 6}
HATCH = {"shape": "/", "bgcolor": KINDS[HATCHED], "fgcolor": INK, "size": 5, "solidity": 0.2}
LOOKS: dict[str, dict[str, Any]] = {
    kind: {"color": color, "line": {"color": INK, "width": 0.6}} | ({"pattern": HATCH} if kind == HATCHED else {})
    for kind, color in KINDS.items()
}


def make_panels(count: int, gap: float, *, shared: bool = True) -> go.Figure:
    """Makes axes above each other, `gap` of the height apart."""
    return make_subplots(rows=count, cols=1, shared_xaxes=shared, vertical_spacing=gap)


def lay_out(figure: go.Figure, height: int) -> go.Figure:
    """Gives a figure its height in pixels; it is as wide as the page. A finger scrolls the page, not the figure."""
    figure.update_xaxes(**AXIS, **TITLE)
    figure.update_yaxes(**AXIS, **TITLE)
    top = 1 - MODEBAR / height
    return figure.update_layout(
        template="none",
        height=height,
        font=FONT,
        dragmode=False,
        hovermode="closest",
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 48, "r": 10, "t": 60, "b": 36},
        legend={"orientation": "h", "x": 0, "y": top, "yanchor": "top", "yref": "container", "font": {"size": 11}},
        hoverlabel={"align": "left", "bgcolor": "white", "bordercolor": INK, "font": {"size": 12, "color": INK}},
    )


def as_json(values: Float[np.ndarray, "n"] | Int[np.ndarray, "n"]) -> list[float | None]:
    """Returns numbers as JSON has them: plotly draws nothing where there is None.

    >>> as_json(np.array([0.5, np.nan]))
    [0.5, None]
    """
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values, float)]
