"""Cost tables in files: CSV, NumPy, Parquet.

A CSV or Parquet file has one line a layer and pair of widths: `layer`, `weight_bits`, `activation_bits`,
`latency_<unit>`, perhaps `energy_<unit>`, perhaps the columns of `SHAPE`, which are then compared with the network's.
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

from haqjax.files import write_bytes, write_text
from haqjax.hardware.measured import Measured, shape_text
from haqjax.types import WIDTHS, CostTable, LayerTable

SECONDS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6, "latency_ns": 1e-9}
JOULES = {"energy_j": 1.0, "energy_mj": 1e-3, "energy_uj": 1e-6, "energy_nj": 1e-9}
SHAPE = ("kernel", "stride", "in_channels", "out_channels", "groups", "out_size")
SUFFIXES = (".csv", ".npy", ".parquet")
HAQ_CLOCK = 200e6  # Hz, of the table that HAQ's authors released


def load_table(path: str | Path) -> Measured:
    """Reads a measured table.

    Args:
      path: a .csv, .npy or .parquet file.

    Returns:
      The table, checked for itself; `measured.estimate` checks it against a network.

    Raises:
      ValueError: a column or its unit is missing, a value is not a positive number, an entry stands twice, a width is
        not in 1..8. A cost that falls as bits rise is a warning: a search assumes that fewer bits cost less.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no table {path}")
    _check_suffix(path)
    return {".csv": _load_csv, ".npy": _load_npy, ".parquet": _load_parquet}[path.suffix](path)


def save_table(path: str | Path, table: CostTable, layers: LayerTable) -> None:
    """Writes a table with the names and shapes of its layers; `machine(path)` reads it back.

    Args:
      path: a .csv, .npy or .parquet file that does not exist yet.
      table: costs in s and J; entries that are not finite are left out.
      layers: the network that the table is of.

    Raises:
      ValueError: the file exists, or has another suffix, or the table is of another number of layers.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; tables are not overwritten")
    _check_suffix(path)
    if len(table) != len(layers):
        raise ValueError(f"a table of {len(table)} layers is not of a network of {len(layers)}")
    rows = list(_rows(table, layers))
    if path.suffix == ".npy":
        lengths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]) - 4)]
        kinds = [f"U{n}" for n in lengths] + ["i1", "i1", "f8", "f8"]
        array = io.BytesIO()
        np.save(array, np.array(rows, dtype=list(zip(_header(), kinds, strict=True))))
        write_bytes(path, array.getvalue())
        return
    if path.suffix == ".parquet":
        columns = dict(zip(_header(), map(list, zip(*rows, strict=True)), strict=True))
        parquet = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
        write_bytes(path, parquet.getvalue())
        return
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_header(), *rows])
    write_text(path, text.getvalue())


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a table is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")


def _header() -> list[str]:
    return ["layer", *SHAPE, "weight_bits", "activation_bits", "latency_s", "energy_j"]


def _rows(table: CostTable, layers: LayerTable) -> Iterator[tuple]:
    for layer, w, a in np.argwhere(np.isfinite(table.latency)):
        shape = [shape_text(layers, layer, field) for field in SHAPE]
        costs = [float(table.latency[layer, w, a]), float(table.energy[layer, w, a])]
        yield (layers.names[layer], *shape, int(w) + 1, int(a) + 1, *costs)


def _load_npy(path: Path) -> Measured:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers") from error
    if values.dtype.names:
        header = list(values.dtype.names)
        return _from_records(path, header, [dict(zip(header, map(str, row), strict=True)) for row in values.tolist()])
    if values.ndim != 3 or values.shape[1:] != (WIDTHS, WIDTHS):
        raise ValueError(f"{path}: has shape {values.shape}, expected [layers, {WIDTHS}, {WIDTHS}]")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{path}: says no unit; save it with haqjax.hardware.save_table, or as integer clock cycles at 200 MHz"
        )
    return Measured(str(path), None, None, values / HAQ_CLOCK, np.full(values.shape, np.nan))


def _load_parquet(path: Path) -> Measured:
    try:
        found = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({str(error).partition(chr(10))[0]})") from error
    rows = [{name: "" if value is None else str(value) for name, value in row.items()} for row in found.to_pylist()]
    return _from_records(path, found.column_names, rows)


def _load_csv(path: Path) -> Measured:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            return _from_records(path, list(reader.fieldnames or []), list(reader))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV file ({error})") from error


def _from_records(path: Path, header: list[str], records: list[dict[str, str]]) -> Measured:
    latency_unit, energy_unit = _unit(path, header, SECONDS), _unit(path, header, JOULES)
    missing = [name for name in ("layer", "weight_bits", "activation_bits") if name not in header]
    if missing or latency_unit is None:
        missing += [] if latency_unit else [f"one of {', '.join(SECONDS)}"]
        raise ValueError(f"{path}: missing column {', '.join(missing)}")
    names = tuple(dict.fromkeys(record["layer"] for record in records))
    latency, energy = np.full((2, len(names), WIDTHS, WIDTHS), np.nan)
    shapes: list[dict[str, str]] = [{} for _ in names]
    known = set()
    for number, record in enumerate(records, start=2):  # the header is line 1
        where = f"{path}, line {number}"
        at = (
            names.index(record["layer"]),
            _bits(where, record, "weight_bits"),
            _bits(where, record, "activation_bits"),
        )
        shape = {field: record[field] for field in SHAPE if field in header}
        if at in known or shapes[at[0]] not in ({}, shape):
            raise ValueError(f"{where}: layer {record['layer']} stands here again with the same bits or another shape")
        known.add(at)
        shapes[at[0]] = shape
        latency[at] = _cost(where, record, latency_unit) * SECONDS[latency_unit]
        if energy_unit and record[energy_unit] not in ("", "nan", None):
            energy[at] = _cost(where, record, energy_unit) * JOULES[energy_unit]
    return Measured(str(path), names, tuple(shapes), latency, energy)


def _unit(path: Path, header: list[str], units: dict[str, float]) -> str | None:
    given = [name for name in header if name in units]
    if len(given) > 1:
        raise ValueError(f"{path}: columns {', '.join(given)} say the same thing twice")
    return given[0] if given else None


def _bits(where: str, record: dict[str, str], field: str) -> int:
    value = record[field]
    if value not in map(str, range(1, WIDTHS + 1)):
        raise ValueError(f"{where}: {field} is {value}, expected 1 to {WIDTHS}")
    return int(value) - 1


def _cost(where: str, record: dict[str, str], field: str) -> float:
    try:
        value = float(record[field])
    except (TypeError, ValueError):
        value = -1.0
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{where}: {field} is {record[field]}, expected a finite number above 0")
    return value
