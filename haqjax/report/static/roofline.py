"""Draws rooflines as a matplotlib figure; `haqjax.report.interactive.roofline` as a plotly one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from haqjax.report.names import as_label
from haqjax.report.run_data import Rooflines, find_roofs, layer_kinds
from haqjax.report.static.style import GRID, LEGEND, LOOKS, TEXT, TITLE, WIDTH, outline_axes

MARKS = {"depthwise": "D", "pointwise (1×1)": "o", "other": "^"}
DASHES = {8: "-", 4: "--", 2: ":"}  # of the roofs, by bits


def roofline_figure(
    rooflines: Rooflines, depthwise: Bool[np.ndarray, "L"], pointwise: Bool[np.ndarray, "L"], title: str = ""
) -> Figure:
    """Draws each layer at 8 bits, hollow, and under the policy, filled, below the machine's limits at 8, 4, 2 bits.

    >>> from haqjax.report.run_data import LayerSpeeds
    >>> flags = np.array([True, False])
    >>> before = LayerSpeeds(np.array([2.0, 90.0]), np.array([1e9, 4e10]), ("weights", "compute"))
    >>> figure = roofline_figure(Rooflines(before, before, {8: 5e10}, 1e9), flags, ~flags)
    >>> [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    ['limit at 8 bits', 'depthwise', 'pointwise (1×1)']
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = _add_log_axes(figure, "operations per byte of DRAM traffic; hollow: at 8 bits, filled: under the policy")
    for bits, (intensity, speed) in find_roofs(rooflines).items():
        axes.plot(intensity, speed, DASHES[bits], color="0.3", linewidth=1, label=f"limit at {bits} bits")
    before, after = rooflines.before, rooflines.after
    ends = zip(before.intensity, after.intensity, before.speed, after.speed, strict=True)
    for x0, x1, y0, y1 in ends:
        axes.plot([x0, x1], [y0, y1], color="0.75", linewidth=0.5, zorder=1)
    kinds = np.array(layer_kinds(depthwise, pointwise))
    style: dict[str, Any] = {"markeredgecolor": "0.15", "markeredgewidth": 0.5, "markersize": 4.5}
    for kind, mark in MARKS.items():
        if (at := kinds == kind).any():
            axes.plot(before.intensity[at], before.speed[at], mark, color="white", **style)
            color = LOOKS[kind]["facecolor"]
            axes.plot(after.intensity[at], after.speed[at], mark, color=color, label=kind, **style)
    figure.legend(ncols=6, title=as_label(title), **LEGEND, **TITLE)
    return figure


def limits_figure(
    intensity: Float[np.ndarray, "L"],
    speed: Float[np.ndarray, "L"],
    peak: float,
    bandwidth: float,
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws each layer's operations a second over its operations per byte, under the two limits; has no plotly twin.

    Args:
      intensity: operations per byte from or to DRAM.
      speed: operations a second that a layer attains.
      peak: operations a second that the machine attains at most.
      bandwidth: bytes a second that it moves at most.
      depthwise, pointwise: the layers drawn as such; the rest is "other".
      title: a line above the figure.

    >>> flags = np.array([True, False])
    >>> figure = limits_figure(np.array([2.0, 90.0]), np.array([1e9, 4e10]), 5e10, 1e9, flags, ~flags)
    >>> len(figure.axes)
    1
    """
    figure = Figure(figsize=(WIDTH * 0.6, 3.2), layout="constrained")
    axes = _add_log_axes(figure, "operations per byte of DRAM traffic")
    line = np.geomspace(np.nanmin(intensity) / 2, max(np.nanmax(intensity), peak / bandwidth) * 2, 50)
    axes.plot(line, np.minimum(peak, line * bandwidth), color="0.3", linewidth=1)
    kinds = np.array(layer_kinds(depthwise, pointwise))
    style: dict[str, Any] = {"markeredgecolor": "0.15", "markeredgewidth": 0.4, "markersize": 4.5}
    for kind, mark in MARKS.items():
        if (at := kinds == kind).any():
            axes.plot(intensity[at], speed[at], mark, color=LOOKS[kind]["facecolor"], label=kind, **style)
    axes.legend(fontsize=TEXT, frameon=False, loc="lower right")
    axes.set_title(as_label(title), fontsize=TEXT + 1, fontweight="bold", loc="left")
    return figure


def latency_figure(
    fractions: Mapping[str, Float[np.ndarray, "L"]],
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws the fraction of the latency that each layer takes, a panel an entry (such as "8 bits"); has no plotly twin.

    >>> flags = np.array([True, False])
    >>> figure = latency_figure({"8 bits": np.array([0.3, 0.7])}, flags, ~flags)
    >>> len(figure.axes)
    1
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 1.3 * len(fractions)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(fractions), sharex=True))
    kinds = layer_kinds(depthwise, pointwise)
    for axes, (name, of_layers) in zip(panels, fractions.items(), strict=True):
        outline_axes(axes, f"{as_label(name, 24)}: % of latency")
        for at, fraction in enumerate(of_layers):
            axes.bar(at, 100 * fraction, width=0.8, edgecolor="0.15", linewidth=0.4, **LOOKS[kinds[at]])
        axes.grid(axis="y", color=GRID, linewidth=0.5)
    panels[-1].set_xlabel("layer, in order of execution", fontsize=TEXT)
    panels[0].set_title(as_label(title), fontsize=TEXT + 1, fontweight="bold", loc="left")
    return figure


def _add_log_axes(figure: Figure, label: str) -> Axes:
    axes = figure.add_subplot(xscale="log", yscale="log")
    outline_axes(axes, "operations per second")
    axes.set_xlabel(label, fontsize=TEXT)
    return axes
