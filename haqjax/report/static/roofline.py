"""Draws where a network's layers stand under a machine's roofline, and where its time goes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from haqjax.report.static.bits import GRID, KINDS, TEXT, TITLE, WIDTH, layer_kinds, outline_axes

MARKS = {"depthwise": "D", "pointwise (1×1)": "o", "other": "^"}
DASHES = {8: "-", 4: "--", 2: ":"}  # of the roofs, by bits


class Place(NamedTuple):
    """Where layers stand."""

    intensity: Float[np.ndarray, "L"]  # operations (two a multiply-accumulate) per byte from or to DRAM
    speed: Float[np.ndarray, "L"]  # operations a second
    limit: tuple[str, ...]  # what takes the longest: compute, weights, activations or outputs


class Rooflines(NamedTuple):
    """A network at 8 bits and under a policy, and the limits of the machine."""

    before: Place
    after: Place
    peaks: Mapping[int, float]  # operations a second at most, by the bits of both operands
    bandwidth: float  # bytes a second at most


def roofline_figure(
    intensity: Float[np.ndarray, "L"],
    speed: Float[np.ndarray, "L"],
    peak: float,
    bandwidth: float,
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws each layer's operations a second over its operations per byte, under the two limits.

    Args:
      intensity: operations per byte from or to DRAM.
      speed: operations a second that a layer reaches.
      peak: operations a second that the machine reaches at most.
      bandwidth: bytes a second that it moves at most.
      depthwise, pointwise: the layers drawn as such; the rest is "other".
      title: a line above the figure.

    >>> flags = np.array([True, False])
    >>> figure = roofline_figure(np.array([2.0, 90.0]), np.array([1e9, 4e10]), 5e10, 1e9, flags, ~flags)
    >>> len(figure.axes)
    1
    """
    figure = Figure(figsize=(WIDTH * 0.6, 3.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    outline_axes(axes, "operations per second")
    axes.set_xlabel("operations per byte of DRAM traffic", fontsize=TEXT)
    reach = np.geomspace(min(intensity) / 2, max(max(intensity), peak / bandwidth) * 2, 50)
    axes.plot(reach, np.minimum(peak, reach * bandwidth), color="0.3", linewidth=1)
    kinds = np.array(layer_kinds(depthwise, pointwise))
    for kind, mark in MARKS.items():
        if (kinds == kind).any():
            at, colour = kinds == kind, KINDS[kind]["facecolor"]
            style: dict[str, Any] = {"markeredgecolor": "0.15", "markeredgewidth": 0.4, "markersize": 4.5}
            axes.plot(intensity[at], speed[at], mark, color=colour, label=kind, **style)
    axes.legend(fontsize=TEXT, frameon=False, loc="lower right")
    axes.set_title(title, fontsize=TEXT + 1, fontweight="bold", loc="left")
    return figure


def share_figure(
    shares: dict[str, Float[np.ndarray, "L"]],
    depthwise: Bool[np.ndarray, "L"],
    pointwise: Bool[np.ndarray, "L"],
    title: str = "",
) -> Figure:
    """Draws the share of the latency that each layer takes, one panel an entry of `shares` (such as "8 bits").

    >>> flags = np.array([True, False])
    >>> figure = share_figure({"8 bits": np.array([0.3, 0.7])}, flags, ~flags)
    >>> len(figure.axes)
    1
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 1.3 * len(shares)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(shares), sharex=True))
    kinds = layer_kinds(depthwise, pointwise)
    for axes, (name, share) in zip(panels, shares.items(), strict=True):
        outline_axes(axes, f"{name}: % of latency")
        for at, height in enumerate(share):
            axes.bar(at, 100 * height, width=0.8, edgecolor="0.15", linewidth=0.4, **KINDS[kinds[at]])
        axes.grid(axis="y", color=GRID, linewidth=0.5)
    panels[-1].set_xlabel("layer, in order of execution", fontsize=TEXT)
    panels[0].set_title(title, fontsize=TEXT + 1, fontweight="bold", loc="left")
    return figure


def move_figure(
    rooflines: Rooflines, depthwise: Bool[np.ndarray, "L"], pointwise: Bool[np.ndarray, "L"], title: str = ""
) -> Figure:
    """Draws each layer at 8 bits, hollow, and under the policy, filled, below what the machine can do at 8, 4, 2 bits.

    >>> flags = np.array([True, False])
    >>> before = Place(np.array([2.0, 90.0]), np.array([1e9, 4e10]), ("weights", "compute"))
    >>> figure = move_figure(Rooflines(before, before, {8: 5e10}, 1e9), flags, ~flags)
    >>> [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    ['limit at 8 bits', 'depthwise', 'pointwise (1×1)']
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    outline_axes(axes, "operations per second")
    axes.set_xlabel("operations per byte of DRAM traffic; hollow: at 8 bits, filled: under the policy", fontsize=TEXT)
    for bits, (reach, speed) in roofs(rooflines).items():
        axes.plot(reach, speed, DASHES[bits], color="0.3", linewidth=1, label=f"limit at {bits} bits")
    before, after = rooflines.before, rooflines.after
    ends = zip(before.intensity, after.intensity, before.speed, after.speed, strict=True)
    for x0, x1, y0, y1 in ends:
        axes.plot([x0, x1], [y0, y1], color="0.75", linewidth=0.5, zorder=1)
    names = np.array(layer_kinds(depthwise, pointwise))
    for kind, mark in MARKS.items():
        if (at := names == kind).any():
            style: dict[str, Any] = {"markeredgecolor": "0.15", "markeredgewidth": 0.5, "markersize": 4.5}
            axes.plot(before.intensity[at], before.speed[at], mark, color="white", **style)
            color = KINDS[kind]["facecolor"]
            axes.plot(after.intensity[at], after.speed[at], mark, color=color, label=kind, **style)
    figure.legend(loc="outside upper left", ncols=6, fontsize=TEXT, frameon=False, title=title, **TITLE)
    return figure


def roofs(rooflines: Rooflines) -> dict[int, tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]]:
    """Each limit as a line: operations per byte, and operations a second at most there; by bits."""
    intensity = np.concatenate([rooflines.before.intensity, rooflines.after.intensity])
    ridges = [peak / rooflines.bandwidth for peak in rooflines.peaks.values()]
    reach = np.geomspace(intensity.min() / 2, max(intensity.max(), *ridges, 0.0) * 2, 60)
    reach = np.unique(np.concatenate([reach, ridges]))
    return {bits: (reach, np.minimum(peak, reach * rooflines.bandwidth)) for bits, peak in rooflines.peaks.items()}
