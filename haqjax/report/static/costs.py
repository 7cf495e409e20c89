"""Draws what each layer costs, at 8 bits and under a policy."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from haqjax.report.static.bits import FEWEST, KINDS, TEXT, TITLE, WIDTH, layer_kinds, name_layers, outline_axes
from haqjax.report.tables import unit_of

BEFORE: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.45", "linewidth": 0.5}  # the bar behind


class Spent(NamedTuple):
    """What each layer costs of one resource, in its SI unit."""

    before: Float[np.ndarray, "L"]  # at 8 bits
    after: Float[np.ndarray, "L"]  # under the policy


def cost_figure(
    names: Sequence[str],
    spent: Mapping[str, Spent],
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws the cost of each layer: under the policy as a bar in front of the one at 8 bits, a panel a resource.

    Args:
      names: one name a layer.
      spent: by resource, a field of `Cost` that adds up over layers.
      depthwise, pointwise: the layers drawn as such; the rest is "other".
      title: a line above the figure.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> flags, spent = np.array([True, False]), Spent(np.array([2e-3, 4e-3]), np.array([1e-3, 3e-3]))
    >>> axes = cost_figure(["dw", "fc"], {"latency": spent}, flags, ~flags).axes[0]
    >>> axes.get_ylabel(), [float(bar.get_height()) for bar in axes.patches]
    ('latency (ms)', [2.0, 4.0, 1.0, 3.0])
    """
    kinds = layer_kinds(np.asarray(depthwise), pointwise)
    figure = Figure(figsize=(WIDTH, 1.1 + 1.3 * len(spent)), layout="constrained")
    panels = figure.subplots(len(spent), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (resource, (before, after)) in zip(panels, spent.items(), strict=True):
        unit, scale = unit_of(resource, before)
        outline_axes(axes, f"{resource} ({unit})")
        axes.bar(range(len(names)), before / scale, width=0.9, **BEFORE)
        for at, height in enumerate(after / scale):
            axes.bar(at, height, width=0.56, edgecolor="0.15", linewidth=0.5, **KINDS[kinds[at]])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.8, max(len(names), FEWEST) - 0.2)
    name_layers(panels[-1], names)
    patches = [Patch(label="at 8 bits", **BEFORE)]
    there = {kind: style for kind, style in KINDS.items() if kind in kinds}
    patches += [Patch(edgecolor="0.15", linewidth=0.5, label=f"found, {kind}", **there[kind]) for kind in there]
    figure.legend(
        handles=patches, loc="outside upper left", ncols=4, fontsize=TEXT, frameon=False, title=title, **TITLE
    )
    return figure
