"""Draws accuracy against cost: a front, or the cheapest policy that is accurate enough."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from haqjax.policies.feasibility import SHOWN
from haqjax.report.static.bits import TEXT, WIDTH, outline_axes
from haqjax.report.tables import standard_error

FOUND, EVEN, EVALUATED = "#123a5e", "#c8590a", "#8fb3d3"  # told apart by lightness and by shape, too
TITLE: dict[str, Any] = {"alignment": "left", "title_fontproperties": {"size": TEXT + 1, "weight": "bold"}}


class Marks(NamedTuple):
    """Some policies in the plane of cost and accuracy."""

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
    """Draws what accuracy costs.

    Args:
      resource: of the cost, a field of `haqjax.types.Cost`.
      found, uniform: policies of the search and of the same bits everywhere, measured on the report split.
      evaluated: all policies that the search evaluated, on the images that it selects with.
      images: of the report split; accuracies measured on it have bars of one standard error.
      float_accuracy: that of the network before quantisation, on the report split.
      named: which of the found policies is ringed.
      least: the accuracy that was asked for, on the images that the search selects with.
      title: a line above the figure.

    Returns:
      A figure 7.2 inches wide; see `haqjax.report.save`.

    >>> figure = front_figure("latency", Marks([0.001, 0.002], [0.8, 0.9]), Marks([0.0015], [0.7]), Marks([], []), 100)
    >>> uniform, found = figure.axes[0].containers
    >>> figure.axes[0].get_xlabel(), found.lines[0].get_xdata().tolist()
    ('latency (ms)', [1.0, 2.0])
    """
    scale, unit = SHOWN[resource]
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    outline_axes(axes, "accuracy (%)")
    known = np.isfinite(evaluated.accuracy)
    axes.scatter(
        *_place(Marks(np.asarray(evaluated.cost)[known], np.asarray(evaluated.accuracy)[known]), scale), s=7,
        c=EVALUATED, linewidths=0, label="evaluated (search split)",
    )  # fmt: skip
    _draw_marks(axes, uniform, scale, images, EVEN, "s", (0, (5, 2)), "uniform bits (report split)")
    _draw_marks(axes, found, scale, images, FOUND, "o", "-", "found (report split)")
    if named is not None:
        x, y = _place(found, scale)
        ring: dict[str, Any] = {"marker": "o", "ms": 11, "mfc": "none", "mec": FOUND, "mew": 1.2, "ls": ""}
        axes.plot(x[named], y[named], **ring, label="the policy of policy.json")
    for value, label, style in (
        (float_accuracy, "float network (report split)", (0, (1, 1.5))),
        (least, "least that was asked (search split)", (0, (4, 1.5, 1, 1.5))),
    ):
        if value is not None:
            axes.axhline(100 * value, color="0.35", lw=1.0, ls=style, label=f"{label}, {100 * value:.1f} %")
    axes.set_xlabel(f"{resource} ({unit})", fontsize=TEXT)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=3, fontsize=TEXT, frameon=False, title=title, **TITLE)
    return figure


def _place(marks: Marks, scale: float) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F"]]:
    return scale * np.asarray(marks.cost, float), 100 * np.asarray(marks.accuracy, float)


def _draw_marks(
    axes: Axes, marks: Marks, scale: float, images: int, color: str, marker: str, style: Any, label: str
) -> None:
    """Points with bars of one standard error, joined in order of cost."""
    x, y = _place(marks, scale)
    bars = [100 * standard_error(value, images) for value in np.asarray(marks.accuracy, float)]
    order = np.argsort(x, kind="stable")
    axes.errorbar(
        x[order], y[order], yerr=np.array(bars)[order], color=color, marker=marker, ms=4, lw=1.3, elinewidth=0.8,
        capsize=2, ls=style, label=label,
    )  # fmt: skip
