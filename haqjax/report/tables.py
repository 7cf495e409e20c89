"""Tables for people: policies side by side."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from haqjax.types import Cost

# Units that a person reads, the largest first, with their size in the SI unit (bytes for sizes).
UNITS = {
    "latency": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
    "energy": (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)),
    "size": (("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)),
    "bops": (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)),
    "memory": (("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)),
}


class Row(NamedTuple):
    """A policy to compare."""

    name: str
    accuracy: float  # in 0..1
    images: int  # that the accuracy was measured on
    cost: Cost  # s, J (NaN where the machine has no energy model), bytes


def standard_error(accuracy: float, images: int) -> float:
    """The standard error of an accuracy measured on independent images: that of a binomial proportion.

    Args:
      accuracy: in 0..1.
      images: how many there were.

    >>> standard_error(0.9, 400)
    0.015
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)


def comparison_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Lays out accuracy and costs of some policies, each cost also as a ratio to the first row's.

    Args:
      rows: the policies; the first is what the others are measured against, by custom 8 bits throughout.
      title: a line above the table.

    Returns:
      A table of at most 100 columns for Rich to print; a resource that no row has a figure for is left out.

    >>> rows = [Row("8 bits", 0.9, 400, Cost(0.002, np.nan, 4096)), Row("found", 0.88, 400, Cost(0.0012, np.nan, 2048))]
    >>> print(as_text(comparison_table(rows)))
           accuracy (%)   latency (ms)     size (KiB)
     ─────────────────────────────────────────────────────
      8 bits     90.0 ± 1.5   2.00 (1.00x)   4.00 (1.00x)
      found      88.0 ± 1.6   1.20 (0.60x)   2.00 (0.50x)
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    columns = comparison_columns(rows)
    for at, heading in enumerate(columns):
        table.add_column(heading, justify="right" if at else "left", no_wrap=bool(at))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def comparison_columns(rows: Sequence[Row], references: Sequence[int] | None = None) -> dict[str, list[str]]:
    """The cells of a comparison, by the heading of their column.

    Args:
      rows: the policies.
      references: for each row, which row its costs are a ratio to; by default the first.

    >>> row = Row("8 bits", 0.9, 400, Cost(0.002, np.nan, 4096))
    >>> comparison_columns([row, row._replace(name="found", cost=Cost(0.001, np.nan, 4096))])["latency (ms)"]
    ['2.00 (1.00x)', '1.00 (0.50x)']
    """
    columns = {"": [row.name for row in rows], "accuracy (%)": [_accuracy(row) for row in rows]}
    against = [0] * len(rows) if references is None else references
    for resource in UNITS:
        values = [np.nan if spent is None else float(spent) for spent in (getattr(row.cost, resource) for row in rows)]
        if np.isfinite(values).any():
            unit, scale = unit_of(resource, values)
            columns[f"{resource} ({unit})"] = [
                _cost(value, values[other], scale) for value, other in zip(values, against, strict=True)
            ]
    return columns


def unit_of(resource: str, values: Sequence[float] | Float[np.ndarray, "n"]) -> tuple[str, float]:
    """The largest unit in which the largest finite value is at least 1, else the smallest, with its size in SI units.

    >>> unit_of("latency", [0.002, 0.0005])
    ('ms', 0.001)
    """
    units, finite = UNITS[resource], np.asarray(values, float)[np.isfinite(values)]
    return next((unit for unit in units if finite.size and finite.max() >= unit[1]), units[-1])


def as_text(table: Table, width: int = 100) -> str:
    """A table as plain text, for a file or a terminal without colours; lines end without blanks."""
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, legacy_windows=False, force_jupyter=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _accuracy(row: Row) -> str:
    return f"{100 * row.accuracy:.1f} ± {100 * standard_error(row.accuracy, row.images):.1f}"


def _cost(value: float, reference: float, scale: float) -> str:
    if not np.isfinite(value):
        return "-"
    ratio = f" ({value / reference:.2f}x)" if np.isfinite(reference) and reference > 0 else ""
    return f"{value / scale:.2f}{ratio}"
