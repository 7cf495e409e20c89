"""Tables of policies side by side, for people."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from haqjax.report.names import as_cell
from haqjax.types import Cost
from haqjax.units import RESOURCES, unit_of


class Row(NamedTuple):
    """One policy of a comparison."""

    name: str
    accuracy: float  # in 0..1
    images: int  # that the accuracy was measured on
    cost: Cost  # s, J (NaN where the machine has no energy model), bytes


def standard_error(accuracy: float, images: int) -> float:
    """Returns the standard error of an accuracy measured on independent images: that of a binomial proportion.

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
      rows: the policies; the others are compared with the first, by custom 8 bits throughout.
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
    table = Table(title=title and as_cell(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    columns = comparison_columns(rows)
    for at, heading in enumerate(columns):
        table.add_column(heading, justify="right" if at else "left", no_wrap=bool(at))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(as_cell, cells))
    return table


def comparison_columns(rows: Sequence[Row], references: Sequence[int] | None = None) -> dict[str, list[str]]:
    """Returns the cells of a comparison, by the heading of their column.

    Args:
      rows: the policies.
      references: for each row, which row its costs are a ratio to; by default the first.

    >>> row = Row("8 bits", 0.9, 400, Cost(0.002, np.nan, 4096))
    >>> comparison_columns([row, row._replace(name="found", cost=Cost(0.001, np.nan, 4096))])["latency (ms)"]
    ['2.00 (1.00x)', '1.00 (0.50x)']
    """
    errors = [100 * standard_error(row.accuracy, row.images) for row in rows]
    accuracies = [f"{100 * row.accuracy:.1f} ± {error:.1f}" for row, error in zip(rows, errors, strict=True)]
    columns = {"": [row.name for row in rows], "accuracy (%)": accuracies}
    against = [0] * len(rows) if references is None else references
    for resource in RESOURCES:
        costs = [getattr(row.cost, resource) for row in rows]
        values = [np.nan if cost is None else float(cost) for cost in costs]
        if np.isfinite(values).any():
            unit, scale = unit_of(resource, values)
            columns[f"{resource} ({unit})"] = [
                _cost(value, values[other], scale) for value, other in zip(values, against, strict=True)
            ]
    return columns


def as_text(table: Table, width: int = 100) -> str:
    """Prints a table as plain text, for a file or a terminal without colours; lines end without blanks."""
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, legacy_windows=False, force_jupyter=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _cost(value: float, reference: float, scale: float) -> str:
    if not np.isfinite(value):
        return "-"
    ratio = f" ({value / reference:.2f}x)" if np.isfinite(reference) and reference > 0 else ""
    return f"{value / scale:.2f}{ratio}"
