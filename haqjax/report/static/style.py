"""Style that all matplotlib figures have in common; the plotly one is `haqjax.report.interactive.style`."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from haqjax.files import write_bytes
from haqjax.report.names import as_label
from haqjax.report.palette import HATCHED, KINDS
from haqjax.report.run_data import shorten_names

WIDTH = 7.2  # inches, both columns of a page
POINT = 1 / 72  # inches
FEWEST = 20  # a network of fewer layers leaves room at the right
TEXT, SMALL = 8, 5.5  # points
GRID = "0.85"
LEGEND: dict[str, Any] = {"loc": "outside upper left", "fontsize": TEXT, "frameon": False}
TITLE: dict[str, Any] = {"alignment": "left", "title_fontproperties": {"size": TEXT + 1, "weight": "bold"}}
HATCHES = {HATCHED: {"hatch": "/////"}}
LOOKS: dict[str, dict[str, Any]] = {kind: {"facecolor": c} | HATCHES.get(kind, {}) for kind, c in KINDS.items()}
OUTLINE: dict[str, Any] = {"facecolor": "white", "hatch": None}  # over the look of a kind: not searched


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
    """Returns a figure as a file's content; the same figure gives the same bytes of .svg.

    >>> as_bytes(Figure(figsize=(1, 1)), "svg") == as_bytes(Figure(figsize=(1, 1)), "svg")
    True
    """
    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_usetex(False)  # where a user's settings ask for TeX, a name would be a program
    with rc_context({"svg.hashsalt": "haqjax", "text.usetex": False}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()


def outline_axes(axes: Axes, label: str) -> None:
    """Gives axes thin lines, a light grid, and a label for the heights."""
    axes.set_ylabel(label, fontsize=TEXT)
    axes.tick_params(labelsize=TEXT, width=0.5, color="0.4")
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.5, color="0.4")


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Writes the names upright under the bars, every n-th where there is no room for all."""
    room = (WIDTH - 0.6) / max(len(names), FEWEST)
    every = int(np.ceil(1.25 * SMALL * POINT / room))
    axes.set_xticks(
        range(0, len(names), every), [as_label(name, 24) for name in shorten_names(names)[::every]], rotation=90
    )
    axes.tick_params(axis="x", labelsize=SMALL, pad=2)


def make_patch(name: str, look: dict[str, Any]) -> Patch:
    """Makes an entry of a legend that looks like a bar."""
    return Patch(edgecolor="0.15", linewidth=0.5, label=name, **look)
