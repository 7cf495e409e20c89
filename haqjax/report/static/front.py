"""Draws the policies chosen within several budgets as a matplotlib figure, which has no plotly twin."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from haqjax.report.names import as_label
from haqjax.report.palette import BEST, EVALUATED, UNIFORM
from haqjax.report.static.style import LEGEND, TEXT, TITLE, WIDTH, outline_axes
from haqjax.report.tables import standard_error
from haqjax.units import RESOURCES


class Marks(NamedTuple):
    """Policies as points of cost and accuracy."""

    cost: Sequence[float] | Float[np.ndarray, "F"]  # SI, bytes for sizes
    accuracy: Sequence[float] | Float[np.ndarray, "F"]  # in 0..1


def front_figure(
    resource: str,
    found: Marks,
    uniform: Marks,
    evaluated: Marks,
    images: int,
    *,
    float_accuracy: float | None = None,
    named: int | None = None,
    least: float | None = None,
    title: str = "",
) -> Figure:
    """Draws the accuracy of chosen policies over their cost: of a front, or of the cheapest that is accurate enough.

    Args:
      resource: of the cost, a field of `haqjax.types.Cost`.
      found, uniform: policies of the search, and with the same bits everywhere, measured on the report split.
      evaluated: all policies that the search evaluated, on the search split.
      images: of the report split; accuracies measured on it have bars of one standard error.
      float_accuracy: that of the network before quantisation, on the report split.
      named: which of the found policies is ringed.
      least: the accuracy that was asked for, on the search split.
      title: a line above the figure.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> figure = front_figure("latency", Marks([0.001, 0.002], [0.8, 0.9]), Marks([0.0015], [0.7]), Marks([], []), 100)
    >>> uniform, found = figure.axes[0].containers
    >>> figure.axes[0].get_xlabel(), found.lines[0].get_xdata().tolist()
    ('latency (ms)', [1.0, 2.0])
    """
    unit = RESOURCES[resource].usual
    scale = 1 / RESOURCES[resource].sizes[unit]
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    outline_axes(axes, "accuracy (%)")
    known = np.isfinite(evaluated.accuracy)
    points = _place(Marks(np.asarray(evaluated.cost)[known], np.asarray(evaluated.accuracy)[known]), scale)
    axes.scatter(*points, s=7, c=EVALUATED, linewidths=0, label="evaluated (search split)")
    squares: dict[str, Any] = {"color": UNIFORM, "marker": "s", "ls": (0, (5, 2))}
    _draw_marks(axes, uniform, scale, images, label="uniform bits (report split)", **squares)
    _draw_marks(axes, found, scale, images, color=BEST, marker="o", ls="-", label="found (report split)")
    if named is not None:
        x, y = _place(found, scale)
        ring: dict[str, Any] = {"marker": "o", "ms": 11, "mfc": "none", "mec": BEST, "mew": 1.2, "ls": ""}
        axes.plot(x[named], y[named], **ring, label="the policy of policy.json")
    for value, label, style in (
        (float_accuracy, "float network (report split)", (0, (1, 1.5))),
        (least, "least that was asked (search split)", (0, (4, 1.5, 1, 1.5))),
    ):
        if value is not None:
            axes.axhline(100 * value, color="0.35", lw=1.0, ls=style, label=f"{label}, {100 * value:.1f} %")
    axes.set_xlabel(f"{resource} ({unit})", fontsize=TEXT)
    axes.set_xlim(left=0)
    figure.legend(ncols=3, title=as_label(title), **LEGEND, **TITLE)
    return figure


def _place(marks: Marks, scale: float) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F"]]:
    return scale * np.asarray(marks.cost, float), 100 * np.asarray(marks.accuracy, float)


def _draw_marks(axes: Axes, marks: Marks, scale: float, images: int, **style: Any) -> None:
    """Draws points with bars of one standard error, joined in order of cost."""
    x, y = _place(marks, scale)
    order = np.argsort(x, kind="stable")
    bars = [100 * standard_error(value, images) for value in np.asarray(marks.accuracy, float)[order]]
    axes.errorbar(x[order], y[order], yerr=np.array(bars), ms=4, lw=1.3, elinewidth=0.8, capsize=2, **style)
