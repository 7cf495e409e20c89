"""Draws layers, their bits or costs, as a matplotlib figure; `haqjax.report.interactive.layers` as a plotly one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from haqjax.report.names import as_label
from haqjax.report.run_data import LayerCosts, layer_kinds
from haqjax.report.static.style import (
    FEWEST,
    LEGEND,
    LOOKS,
    OUTLINE,
    SMALL,
    TITLE,
    WIDTH,
    make_patch,
    name_layers,
    outline_axes,
)
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS
from haqjax.units import unit_of

BEHIND: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.45", "linewidth": 0.5}  # the bar at 8 bits


def bits_figure(
    names: Sequence[str],
    policy: Int[np.ndarray, "L 2"],
    depthwise: Bool[np.ndarray, "L"],
    pinned: Bool[np.ndarray, "L"] | Bool[np.ndarray, "L 2"],
    title: str = "",
    *,
    pointwise: Bool[np.ndarray, "L"] | None = None,
) -> Figure:
    """Draws the bits of each layer, in the order of execution: weights upwards, activations downwards.

    Where no layer's activations were searched, the weights alone are drawn.

    Args:
      names: one name a layer.
      policy: bit-widths; 32, a tensor left as it is, is drawn above 8 and called 32.
      depthwise: the layers drawn as depthwise convolutions.
      pinned: the layers, or the single entries, that the search could not change: drawn as outlines.
      title: a line above the figure.
      pointwise: the layers drawn as 1x1 convolutions; the rest is "other".

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    Raises:
      ValueError: the lengths differ.

    >>> figure = bits_figure(
    ...     ["stem", "dw"], np.array([[8, 8], [4, 6]]), np.array([False, True]), np.array([True, False])
    ... )
    >>> [[int(bar.get_height()) for bar in axes.patches] for axes in figure.axes]
    [[8, 4], [8, 6]]
    """
    policy, pinned = np.asarray(policy), np.asarray(pinned)
    if policy.shape != (len(names), 2) or len(depthwise) != len(names) or len(pinned) != len(names):
        raise ValueError(f"{len(names)} names, a policy {policy.shape}, {len(depthwise)} and {len(pinned)} flags")
    kinds = layer_kinds(np.asarray(depthwise), pointwise)
    fixed = np.broadcast_to(pinned.reshape(len(names), -1), policy.shape)
    columns = [WEIGHT] if fixed[:, ACTIVATION].all() else [WEIGHT, ACTIVATION]
    figure = Figure(figsize=(WIDTH, 1.2 + 1.2 * len(columns)), layout=ConstrainedLayoutEngine(hspace=0, h_pad=0.01))
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for column, axes in zip(columns, panels, strict=True):
        _draw_bits(axes, policy[:, column], kinds, fixed[:, column], ("weight bits", "activation bits")[column])
    _mark_ends(panels[0], len(names))
    if ACTIVATION in columns:  # its bars hang from the line between the panels
        panels[ACTIVATION].invert_yaxis()
        panels[ACTIVATION].spines["bottom"].set_visible(False)
    name_layers(panels[-1], names)
    drawn = {kinds[at] for at in np.flatnonzero(~fixed[:, columns].all(axis=1))}
    looks = {kind: look for kind, look in LOOKS.items() if kind in drawn}
    looks |= {"not searched": OUTLINE} if fixed.any() else {}
    figure.legend(
        handles=[make_patch(*item) for item in looks.items()], ncols=4, title=as_label(title), **LEGEND, **TITLE
    )
    return figure


def _draw_bits(axes: Axes, bits: np.ndarray, kinds: Sequence[str], fixed: np.ndarray, label: str) -> None:
    outline_axes(axes, label)
    float_height = WIDTHS + 2  # of a tensor left as it is
    ticks = {2: "2", 4: "4", 6: "6", 8: "8"} | ({float_height: "32"} if (bits > WIDTHS).any() else {})
    for at, height in enumerate(np.where(bits > WIDTHS, float_height, bits).tolist()):
        look = LOOKS[kinds[at]] | (OUTLINE if fixed[at] else {})
        axes.bar(at, height, width=0.74, edgecolor="0.15", linewidth=0.5, **look)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(0, max(ticks) + 0.6)
    axes.set_xlim(-0.8, max(len(bits), FEWEST) - 0.2)


def _mark_ends(axes: Axes, count: int) -> None:
    """Says above the bars which layer is the first and which the last."""
    for at, text, side in ((0, "first", "left"), (count - 1, "last", "right"))[:count]:
        edge = at - 0.37 if side == "left" else at + 0.37  # of the bar
        axes.annotate(text, (edge, 1), xycoords=("data", "axes fraction"), fontsize=SMALL, ha=side, va="bottom")


def cost_figure(
    names: Sequence[str],
    costs: Mapping[str, LayerCosts],
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws the cost of each layer: under the policy as a bar in front of the one at 8 bits, a panel a resource.

    Args:
      names: one name a layer.
      costs: by resource, a field of `Cost` that adds up over layers.
      depthwise, pointwise: the layers drawn as such; the rest is "other".
      title: a line above the figure.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> flags, costs = np.array([True, False]), LayerCosts(np.array([2e-3, 4e-3]), np.array([1e-3, 3e-3]))
    >>> axes = cost_figure(["dw", "fc"], {"latency": costs}, flags, ~flags).axes[0]
    >>> axes.get_ylabel(), [float(bar.get_height()) for bar in axes.patches]
    ('latency (ms)', [2.0, 4.0, 1.0, 3.0])
    """
    kinds = layer_kinds(np.asarray(depthwise), pointwise)
    figure = Figure(figsize=(WIDTH, 1.1 + 1.3 * len(costs)), layout="constrained")
    panels = figure.subplots(len(costs), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (resource, (before, after)) in zip(panels, costs.items(), strict=True):
        unit, scale = unit_of(resource, before)
        outline_axes(axes, f"{resource} ({unit})")
        axes.bar(range(len(names)), before / scale, width=0.9, **BEHIND)
        for at, height in enumerate(after / scale):
            axes.bar(at, height, width=0.56, edgecolor="0.15", linewidth=0.5, **LOOKS[kinds[at]])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.8, max(len(names), FEWEST) - 0.2)
    name_layers(panels[-1], names)
    patches = [make_patch(f"found, {kind}", look) for kind, look in LOOKS.items() if kind in kinds]
    behind = Patch(label="at 8 bits", **BEHIND)
    figure.legend(handles=[behind, *patches], ncols=4, title=as_label(title), **LEGEND, **TITLE)
    return figure
