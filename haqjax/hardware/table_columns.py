"""Measured tables from the columns of a file: every cell is checked, all rows at once."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as compute
from jaxtyping import Bool, Float, Int

from haqjax.hardware.measured import Measured, warn
from haqjax.hardware.spec import LARGEST, MOST, SMALLEST
from haqjax.hardware.table_formats import Columns
from haqjax.reading import quote
from haqjax.text import escape
from haqjax.types import WIDTHS

SECONDS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6, "latency_ns": 1e-9}
JOULES = {"energy_j": 1.0, "energy_mj": 1e-3, "energy_uj": 1e-6, "energy_nj": 1e-9}
SHAPE = ("kernel", "stride", "in_channels", "out_channels", "groups", "out_size")
NEEDED = ("layer", "weight_bits", "activation_bits")
BATCH = "batch"  # images that a latency and an energy are of
LAYERS = 1 << 18  # at most: the tables of costs take a KiB a layer
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
WHOLE = re.compile(r"([0-9]+)\.0*")


def measure_columns(path: Path, columns: Columns) -> Measured:
    """Reads a measured table off the columns of a file.

    Raises:
      ValueError: see `haqjax.hardware.table_files.load_table`.
    """
    latency_unit, energy_unit = check_header(path, list(columns.values))
    names, layer = _number_layers(path, columns)
    weight, activation = (_read_whole(columns, name, WIDTHS) for name in NEEDED[1:])
    at = (layer * WIDTHS + weight - 1) * WIDTHS + activation - 1
    _refuse(columns, _find_repeats(at), lambda row: f"layer {quote(names[layer[row]])} stands here again")
    return Measured(
        str(path),
        names,
        _read_shapes(columns, names, layer),
        len(names),
        at,
        _read_costs(columns, latency_unit, SECONDS),
        None if energy_unit is None else _read_costs(columns, energy_unit, JOULES, needed=False),
        _read_batch(columns) if BATCH in columns.values else None,
    )


def check_header(path: Path, names: list[str]) -> tuple[str, str | None]:
    """Finds the columns of latency and, if there is one, energy.

    Raises:
      ValueError: a column is unknown, missing, or says the same as another one.
    """
    units = [[name for name in names if name in known] for known in (SECONDS, JOULES)]
    for given in units:
        if len(given) > 1:
            raise ValueError(f"{escape(path)}: columns {', '.join(given)} say the same thing twice")
    missing = [name for name in NEEDED if name not in names] + ([] if units[0] else [f"one of {', '.join(SECONDS)}"])
    unknown = [name for name in names if name not in (*NEEDED, *SECONDS, *JOULES, *SHAPE, BATCH)]
    if unknown:
        raise ValueError(_describe_unknown(path, unknown[0], missing))
    if missing:
        raise ValueError(f"{escape(path)}: missing column {', '.join(missing)}")
    return units[0][0], units[1][0] if units[1] else None


def _describe_unknown(path: Path, name: str, missing: list[str]) -> str:
    hint = ""
    if ";" in name or "\t" in name:
        hint = "; columns are parted by commas"
    elif name == "":
        hint = " without a name (pandas writes its index so: save with index=False)"
    elif missing:
        hint = f"; missing: {missing[0]}"
    return (
        f"{escape(path)}: unknown column {quote(name)}{hint}; a table has {', '.join(NEEDED)}, latency_ and energy_ "
        f"with a unit ({', '.join(SECONDS)}; {', '.join(JOULES)}), {', '.join(SHAPE)}, {BATCH}"
    )


def _refuse(columns: Columns, bad: Bool[np.ndarray, "N"], text: Callable[[int], str]) -> None:
    """Raises for the first row that is bad."""
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{columns.place(row)}: {text(row)}")


def _cell(columns: Columns, name: str, row: int) -> str:
    value = columns.values[name][row].as_py()
    return quote(value) if value is not None else "missing"


def _number_layers(path: Path, columns: Columns) -> tuple[tuple[str, ...], Int[np.ndarray, "N"]]:
    """Numbers the layers in the order of their first rows."""
    column = columns.values["layer"]
    _refuse(columns, _find_missing(column), lambda row: "layer is missing")
    found = _as_text(column).dictionary_encode()
    if not len(column) or len(found.dictionary) > LAYERS:
        raise ValueError(f"{escape(path)}: has {len(found.dictionary)} layers, expected 1 to {LAYERS}")
    return tuple(found.dictionary.to_pylist()), found.indices.to_numpy().astype(np.int64)


def _find_missing(column: pyarrow.Array) -> Bool[np.ndarray, "N"]:
    return column.is_null().to_numpy(zero_copy_only=False)


def _find_blank(column: pyarrow.Array) -> Bool[np.ndarray, "N"]:
    """Finds the cells that say nothing: of an energy that was not measured."""
    if pyarrow.types.is_floating(column.type):
        return np.isnan(_as_numbers(column))
    written = compute.is_in(compute.utf8_lower(column), pyarrow.array(["", "nan"]))
    return _find_missing(column) | written.to_numpy(zero_copy_only=False)


def _as_text(column: pyarrow.Array) -> pyarrow.Array:
    return column if pyarrow.types.is_string(column.type) else column.cast(pyarrow.string())


def _as_whole(text: str) -> str:
    """Writes "8.0", as pandas does where a column has a gap, as "8"."""
    found = WHOLE.fullmatch(text)
    return found[1] if found else text


def _as_numbers(column: pyarrow.Array) -> Float[np.ndarray, "N"]:
    """Reads plain decimal numbers; NaN for all else."""
    if pyarrow.types.is_string(column.type):
        try:
            column = column.cast(pyarrow.float64())  # which reads plain decimals, nan and inf
        except pyarrow.ArrowInvalid:
            plain = compute.match_substring_regex(column, NUMBER)
            column = compute.if_else(plain, compute.utf8_ltrim(column, "+"), None).cast(pyarrow.float64())
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def _read_whole(columns: Columns, name: str, most: int) -> Int[np.ndarray, "N"]:
    numbers = _as_numbers(columns.values[name])
    bad = ~((numbers >= 1) & (numbers <= most) & (numbers == np.floor(numbers)))
    _refuse(
        columns, bad, lambda row: f"{name} is {_cell(columns, name, row)}, expected a whole number from 1 to {most}"
    )
    return numbers.astype(np.int64)


def _read_costs(columns: Columns, name: str, units: dict[str, float], *, needed: bool = True) -> Float[np.ndarray, "N"]:
    """Reads costs in SI units; NaN where there is none and none is needed."""
    column, unit = columns.values[name], next(iter(units)).rpartition("_")[2]
    costs = _as_numbers(column) * units[name]
    blank = np.zeros(len(costs), bool) if needed else _find_blank(column)
    bad = ~blank & ~((costs >= SMALLEST) & (costs <= LARGEST))
    _refuse(
        columns,
        bad,
        lambda row: (
            f"{name} is {_cell(columns, name, row)}, expected a finite number above 0 with a decimal point "
            f"({SMALLEST:g} to {LARGEST:g} {unit})"
        ),
    )
    if blank.any() and not blank.all():
        warn(f"{columns.place(int(np.argmax(blank)))}: {name} is missing, so that no energy of the table is used")
    return costs


def _find_repeats(at: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Finds the rows whose layer and bits stand in an earlier row."""
    order = np.argsort(at, kind="stable")
    again = np.zeros(len(at), bool)
    again[order[1:]] = at[order[1:]] == at[order[:-1]]
    return again


def _read_shapes(columns: Columns, names: tuple[str, ...], layer: Int[np.ndarray, "N"]) -> dict[str, tuple[str, ...]]:
    """Reads the columns of the shape, which are the same in all rows of a layer."""
    first = np.empty(len(names), np.int64)
    first[layer[::-1]] = np.arange(len(layer))[::-1]
    shapes = {}
    for name in (each for each in SHAPE if each in columns.values):
        texts, kinds = _read_texts(columns, name)
        other = kinds != kinds[first[layer]]
        text = f"stands here again with another {name}"
        _refuse(columns, other, lambda row, text=text: f"layer {quote(names[layer[row]])} {text}")  # type: ignore[misc]
        shapes[name] = tuple(texts[kinds[first]].tolist())
    return shapes


def _read_texts(columns: Columns, name: str) -> tuple[np.ndarray, Int[np.ndarray, "N"]]:
    """Reads a column as few different texts, and the number of that in each row; "8.0" is 8."""
    column = columns.values[name]
    _refuse(columns, _find_missing(column), lambda row: f"{name} is missing")
    found = _as_text(column).dictionary_encode()
    texts = np.array([_as_whole(text) for text in found.dictionary.to_pylist()], object)
    texts, kinds = np.unique(texts, return_inverse=True)
    return texts, kinds[found.indices.to_numpy()]


def _read_batch(columns: Columns) -> int:
    """Reads the batch, which is the same in all rows: costs of different batches cannot be compared."""
    batch = _read_whole(columns, BATCH, MOST)
    _refuse(
        columns,
        batch != batch[0],
        lambda row: f"{BATCH} is {batch[row]}, but {batch[0]} in the first row: a table is of one batch size",
    )
    return int(batch[0])
