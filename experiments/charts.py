"""Charts of accuracy over cost, for the experiments."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from haqjax.report.static.style import TEXT, outline_axes

STYLES = {"uniform": ("#c8590a", "s"), "found": ("#23679e", "o")}  # colour, mark
LEAST_SPAN = 0.1  # of the values, that an axis shows at least, so that equal budgets look equal


def open_panel(axes: Axes, title: str, label: str) -> None:
    """Names the axes: accuracy upwards, cost to the right."""
    outline_axes(axes, "report split, %")
    axes.set_title(title, fontsize=TEXT, loc="left")
    axes.set_xlabel(label, fontsize=TEXT)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def plot_policies(
    axes: Axes, name: str, costs: Sequence[float], before: Sequence[float], after: Sequence[float]
) -> None:
    """Marks policies as calibrated, hollow, and fine-tuned, filled; accuracies in 0..1."""
    colour, mark = STYLES[name]
    for accuracies, face, label in ((before, "white", "as calibrated"), (after, colour, "fine-tuned")):
        marks = {"ms": 4.5, "color": colour, "markerfacecolor": face, "clip_on": False}
        axes.plot(costs, 100 * np.asarray(accuracies), mark, label=f"{name}, {label}", zorder=3, **marks)


def plot_level(axes: Axes, name: str, accuracy: float, style: str = ":") -> None:
    """Draws a line for an accuracy that costs something else, such as the float network's."""
    axes.axhline(100 * accuracy, color="0.4", lw=0.8, ls=style, label=name)


def close(figure: Figure, panels: Sequence[Axes]) -> Figure:
    """Widens axes that show next to nothing, and puts one legend above all panels."""
    for axes in panels:
        low, high = axes.get_xlim()
        middle = (low + high) / 2
        half = max(high - low, LEAST_SPAN * abs(middle)) / 2
        axes.set_xlim(middle - 1.1 * half, middle + 1.1 * half)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=TEXT, frameon=False)
    return figure
