"""Draws what a search found, the bits of every layer, and says how all figures look."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from haqjax.files import write_bytes
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS

WIDTH = 7.2  # inches, both columns of a page
POINT = 1 / 72  # inches
FEWEST = 20  # a network of fewer layers leaves room at the right
TEXT, SMALL = 8, 5.5  # points
GRID = "0.85"
# Told apart by hue, by lightness and by hatching, so that neither colour blindness nor a grey print hides them.
KINDS: dict[str, dict[str, Any]] = {
    "depthwise": {"facecolor": "#f0a330", "hatch": "/////"},
    "pointwise (1×1)": {"facecolor": "#23679e"},
    "other": {"facecolor": "#a9c1d6"},
}
FIXED: dict[str, Any] = {"facecolor": "white", "hatch": None}  # drawn over the kind: an outline alone
TITLE: dict[str, Any] = {"alignment": "left", "title_fontproperties": {"size": TEXT + 1, "weight": "bold"}}


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
      A figure 7.2 inches wide; see `save`.

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
        _draw_bars(axes, policy[:, column], kinds, fixed[:, column], ("weight bits", "activation bits")[column])
    _mark_ends(panels[0], len(names))
    if ACTIVATION in columns:
        _hang(panels[ACTIVATION])
    name_layers(panels[-1], names)
    searched = np.flatnonzero(~fixed[:, columns].all(axis=1))
    _legend(figure, {kinds[at] for at in searched}, bool(fixed.any()), title)
    return figure


def save(figure: Figure, path: str | Path, dpi: int = 300) -> Path:
    """Writes a figure, whole or not at all, in the format that the name's ending says (.png, .pdf, .svg).

    Args:
      figure: the figure.
      path: where to write; its folder exists.
      dpi: dots per inch of a .png; 300 is what printers ask for.

    Returns:
      The path.

    >>> import tempfile
    >>> save(Figure(figsize=(1, 1)), Path(tempfile.mkdtemp()) / "a.png").read_bytes()[1:4]
    b'PNG'
    """
    return write_bytes(path, as_bytes(figure, Path(path).suffix.removeprefix(".") or "png", dpi))


def as_bytes(figure: Figure, ending: str, dpi: int = 300) -> bytes:
    """A figure as a file's content; the same figure gives the same bytes of .svg.

    >>> as_bytes(Figure(figsize=(1, 1)), "svg") == as_bytes(Figure(figsize=(1, 1)), "svg")
    True
    """
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "haqjax"}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()


def layer_kinds(depthwise: np.ndarray, pointwise: np.ndarray | None) -> list[str]:
    """The kind of each layer, a key of `KINDS`."""
    one_by_one = np.zeros_like(depthwise) if pointwise is None else np.asarray(pointwise)
    first, second, rest = KINDS
    return np.where(depthwise, first, np.where(one_by_one, second, rest)).tolist()


def _draw_bars(axes: Axes, bits: np.ndarray, kinds: Sequence[str], fixed: np.ndarray, label: str) -> None:
    outline_axes(axes, label)
    beyond = WIDTHS + 2  # the height of a tensor left as it is
    ticks = {2: "2", 4: "4", 6: "6", 8: "8"} | ({beyond: "32"} if (bits > WIDTHS).any() else {})
    for at, height in enumerate(np.where(bits > WIDTHS, beyond, bits).tolist()):
        style = KINDS[kinds[at]] | (FIXED if fixed[at] else {})
        axes.bar(at, height, width=0.74, edgecolor="0.15", linewidth=0.5, **style)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(0, max(ticks) + 0.6)
    axes.set_xlim(-0.8, max(len(bits), FEWEST) - 0.2)


def _mark_ends(axes: Axes, count: int) -> None:
    """Says above the bars which layer is the first and which the last."""
    for at, text, side in ((0, "first", "left"), (count - 1, "last", "right"))[:count]:
        edge = at - 0.37 if side == "left" else at + 0.37  # of the bar
        axes.annotate(text, (edge, 1), xycoords=("data", "axes fraction"), fontsize=SMALL, ha=side, va="bottom")


def _hang(axes: Axes) -> None:
    """Turns a panel upside down, its bars hanging from the line between the panels."""
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Writes the names upright under the bars, every n-th where there is no room for all."""
    room = (WIDTH - 0.6) / max(len(names), FEWEST)
    every = int(np.ceil(1.25 * SMALL * POINT / room))
    shown = range(0, len(names), every)
    axes.set_xticks(list(shown), short_names(names)[::every], rotation=90)
    axes.tick_params(axis="x", labelsize=SMALL, pad=2)


def short_names(names: Sequence[str]) -> list[str]:
    """Names with at most 24 letters, without the end that all of them share.

    >>> short_names(["stem.conv.kernel", "head.conv.kernel"])
    ['stem', 'head']
    """
    return [_shorten(name) for name in _without_common_end(names)]


def _without_common_end(names: Sequence[str]) -> list[str]:
    """Names such as a.conv.kernel and b.conv.kernel without the last parts that all of them share."""
    parts = [name.replace("/", ".").split(".") for name in names]
    while len(names) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return [".".join(part) for part in parts]


def _shorten(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def outline_axes(axes: Axes, label: str) -> None:
    """Thin lines, a light grid, and a label for the heights."""
    axes.set_ylabel(label, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT, width=0.5, color="0.4")
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.5, color="0.4")


def _legend(figure: Figure, there: Collection[str], any_fixed: bool, title: str) -> None:
    layer_costs = {kind: style for kind, style in KINDS.items() if kind in there}
    layer_costs |= {"not searched": FIXED} if any_fixed else {}
    patches = [Patch(edgecolor="0.15", linewidth=0.5, label=name, **style) for name, style in layer_costs.items()]
    figure.legend(
        handles=patches, loc="outside upper left", ncols=4, fontsize=TEXT, frameon=False, title=title, **TITLE
    )
