"""How the figures of a report look on a screen: what all of them share."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

MODEBAR = 28  # pixels that the buttons take at the top
INK, GRID = "#262626", "#dedede"
HOVER = {"hovertemplate": "%{hovertext}<extra></extra>"}  # what is told of a point is all that is shown
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 12, "color": INK}
AXIS: dict[str, Any] = {"gridcolor": GRID, "linecolor": "#666666", "zeroline": False, "automargin": True}
TITLE = {"title_font_size": 12, "title_standoff": 6}


def panels(count: int, gap: float, *, shared: bool = True) -> go.Figure:
    """Axes above each other, `gap` of the height apart."""
    return make_subplots(rows=count, cols=1, shared_xaxes=shared, vertical_spacing=gap)


def lay_out(figure: go.Figure, height: int) -> go.Figure:
    """Gives a figure its height in pixels; it is as wide as the page. A finger scrolls the page, not the figure."""
    figure.update_xaxes(**AXIS, **TITLE)
    figure.update_yaxes(**AXIS, **TITLE)
    top = 1 - MODEBAR / height
    return figure.update_layout(
        template="none", height=height, font=FONT, dragmode=False, hovermode="closest", paper_bgcolor="white",
        plot_bgcolor="white", margin={"l": 48, "r": 10, "t": 60, "b": 36},
        legend={"orientation": "h", "x": 0, "y": top, "yanchor": "top", "yref": "container", "font": {"size": 11}},
        hoverlabel={"align": "left", "bgcolor": "white", "bordercolor": INK, "font": {"size": 12, "color": INK}},
    )  # fmt: skip


def plain(values: Float[np.ndarray, "n"]) -> list[float | None]:
    """Numbers as JSON has them: Plotly draws nothing where there is none.

    >>> plain(np.array([0.5, np.nan]))
    [0.5, None]
    """
    return [float(value) if np.isfinite(value) else None for value in np.asarray(values, float)]
