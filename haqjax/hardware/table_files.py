"""Cost tables in files: CSV, NumPy, Parquet.

A CSV or Parquet file has one line a layer and pair of widths: `layer`, `weight_bits`, `activation_bits`,
`latency_<unit>`, perhaps `energy_<unit>`, perhaps the columns of `SHAPE`, which are then compared with the network's,
perhaps `batch`, the images that latency and energy are of, the same in all lines. Any other column is refused.
The .npy file that `save_table` writes holds the same. A plain integer array [L, 8, 8] is read as HAQ's format: clock
cycles at 200 MHz.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from haqjax.files import check_free, write_bytes, write_text
from haqjax.hardware.measured import Measured, index_names, shape_text
from haqjax.hardware.table_columns import BATCH, LAYERS, SHAPE, check_header, measure_columns
from haqjax.hardware.table_formats import load_array, read_csv, read_npy, read_parquet
from haqjax.reading import quote
from haqjax.text import escape
from haqjax.types import WIDTHS, CostTable, LayerTable

SUFFIXES = (".csv", ".npy", ".parquet")
HAQ_CLOCK = 200e6  # Hz, of the table that HAQ's authors released


def load_table(path: str | Path) -> Measured:
    """Reads a measured table.

    Args:
      path: a .csv, .npy or .parquet file.

    Returns:
      The table, checked for itself; `measured.estimate` checks it against a network.

    Raises:
      ValueError: it is no such file; a column or its unit is missing, unknown or there twice; a row has more or fewer
        cells than the header; a value is not a positive number; an entry stands twice; a width is not in 1..8; rows
        are of different batches. A cost that falls as bits rise is a warning: a search assumes that fewer bits cost
        less. Batches of several images are a warning, too: costs are of the whole batch.
    """
    path = Path(path)
    _check_suffix(path)
    if path.suffix == ".npy":
        return _load_npy(path)
    return measure_columns(path, read_csv(path, check_header) if path.suffix == ".csv" else read_parquet(path))


def save_table(path: str | Path, table: CostTable, layers: LayerTable, batch: int | None = None) -> None:
    """Writes a table with the names and shapes of its layers; `machine(path)` reads it back.

    Args:
      path: a .csv, .npy or .parquet file that does not exist yet.
      table: costs in s and J; entries that are not finite are left out.
      layers: the network that the table is of.
      batch: images that the costs are of, such as `machine.batch`; None leaves it open.

    Raises:
      ValueError: the file exists, or has another suffix, or no folder to be in; the table is of another number of
        layers; two layers have the same name but for spaces around it.
    """
    path = check_new(path)
    if len(table) != len(layers):
        raise ValueError(f"a table of {len(table)} layers is not of a network of {len(layers)}")
    _check_names(layers)
    rows = list(_rows(table, layers, batch))
    header = _header(batch)
    if path.suffix == ".npy":
        numbers = 4 if batch is None else 5
        lengths = [max(len(str(row[i])) for row in rows) for i in range(len(header) - numbers)]
        kinds = [f"U{n}" for n in lengths] + ["i4"] * (numbers - 4) + ["i1", "i1", "f8", "f8"]
        array = io.BytesIO()
        np.save(array, np.array(rows, dtype=list(zip(header, kinds, strict=True))))
        write_bytes(path, array.getvalue())
        return
    if path.suffix == ".parquet":
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
        parquet = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
        write_bytes(path, parquet.getvalue())
        return
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_text(path, text.getvalue())


def check_new(path: str | Path) -> Path:
    """Checks, before any work, that a table can be written, and writes nothing.

    Raises:
      ValueError: as `save_table`.
    """
    path = check_free(path)
    _check_suffix(path)
    if not path.parent.is_dir():
        raise ValueError(f"{escape(path)} cannot be written: {escape(path.parent)} is no folder that can be written to")
    return path


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{escape(path)}: a table is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")


def _check_names(layers: LayerTable) -> None:
    index_names(layers.names, "a table")
    for name in layers.names:
        if not name.isascii() and name.encode(errors="ignore").decode() != name:
            raise ValueError(f"a table cannot name the layer {quote(name)}: it is no UTF-8 text")


def _header(batch: int | None) -> list[str]:
    of_batch = [] if batch is None else [BATCH]
    return ["layer", *SHAPE, *of_batch, "weight_bits", "activation_bits", "latency_s", "energy_j"]


def _rows(table: CostTable, layers: LayerTable, batch: int | None) -> Iterator[tuple]:
    of_batch = [] if batch is None else [batch]
    for layer, w, a in np.argwhere(np.isfinite(table.latency)):
        shape = [shape_text(layers, layer, field) for field in SHAPE]
        costs = [float(table.latency[layer, w, a]), float(table.energy[layer, w, a])]
        yield (layers.names[layer], *shape, *of_batch, int(w) + 1, int(a) + 1, *costs)


def _load_npy(path: Path) -> Measured:
    values = load_array(path)
    if values.dtype.names:
        return measure_columns(path, read_npy(path, values))
    if values.ndim != 3 or values.shape[1:] != (WIDTHS, WIDTHS) or not 1 <= len(values) <= LAYERS:
        raise ValueError(f"{escape(path)}: has shape {quote(values.shape)}, expected [layers, {WIDTHS}, {WIDTHS}]")
    if values.dtype.kind not in "iu":  # NumPy counts differences of times among the integers
        raise ValueError(
            f"{escape(path)}: has {escape(values.dtype)}, which says no unit; save it with "
            "haqjax.hardware.save_table, or as integer clock cycles at 200 MHz"
        )
    return Measured(str(path), None, {}, len(values), np.arange(values.size), values.reshape(-1) / HAQ_CLOCK, None)
