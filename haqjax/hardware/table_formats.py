"""Columns of a table in a CSV, NumPy or Parquet file."""

import contextlib
import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.csv
import pyarrow.parquet

from haqjax.reading import MIB, check_regular, one_line, quote
from haqjax.text import escape

FILE_BYTES = 256 * MIB
ROWS = 1 << 21  # at most; a network of 1,000 layers has 64,000
UNPACKED_BYTES = 1 << 30  # of a Parquet file
HEADER = 10_000  # characters of a NumPy header that are read


class Columns(NamedTuple):
    """A table as its file has it."""

    values: Mapping[str, pyarrow.Array]  # by name: text, or numbers as float64; all of one length
    place: Callable[[int], str]  # of a row, counted from 0, for a message: "mine.csv, line 2"


def read_csv(path: Path, check: Callable[[Path, list[str]], Any]) -> Columns:
    """Reads a CSV file: every cell as text, without the spaces around it.

    Args:
      path: the file.
      check: raises for a header that is wrong, which is better told before what is wrong in the rows.

    Raises:
      ValueError: it is no UTF-8 text, has no header, names a column twice, or a row has more or fewer cells.
    """
    data = check_regular(path, FILE_BYTES).read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        header = next((row for row in csv.reader(_open_text(data)) if row), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(_explain(path, data, 0) or f"{escape(path)}: no CSV ({one_line(error, 200)})") from None
    names = check_names(path, [name.strip() for name in header])
    check(path, names)
    generated = [f"f{at}" for at in range(len(names))]  # pyarrow's own, so that the header is a row as all others
    try:
        found = pyarrow.csv.read_csv(
            pyarrow.BufferReader(data + b"\n"),  # which ends a last line that has no end
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(data) + 2, autogenerate_column_names=True),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(generated, pyarrow.string())),
        ).slice(1)
    except pyarrow.ArrowException as error:
        fault = _explain(path, data, len(names))
        raise ValueError(fault or f"{escape(path)}: no CSV ({one_line(error, 200)})") from None
    if data.count(b'"') % 2 and (fault := _explain(path, data, len(names))):  # a quote may be open to the end
        raise ValueError(fault)
    _check_count(path, found.num_rows)
    trimmed = [compute.utf8_trim_whitespace(column.combine_chunks()) for column in found.columns]
    return Columns(dict(zip(names, trimmed, strict=True)), lambda row: _find_line(path, data, row))


def read_npy(path: Path, values: np.ndarray) -> Columns:
    """Reads the fields of a structured array [rows].

    Raises:
      ValueError: it has other dimensions, or a field is neither text nor numbers.
    """
    if values.ndim != 1:
        raise ValueError(f"{escape(path)}: has the shape {values.shape}, expected a row a layer and pair of widths")
    names = check_names(path, list(values.dtype.names or ()))
    _check_count(path, len(values))
    return Columns({name: _as_column(path, name, values[name]) for name in names}, _row_of(path))


def load_array(path: Path) -> np.ndarray:
    """Loads the array of an .npy file, whose header is compared with its length before any memory is taken.

    Raises:
      ValueError: it is no such file, or holds Python objects.
    """
    data = check_regular(path, FILE_BYTES).read_bytes()
    if data.startswith(b"PK"):
        raise ValueError(f"{escape(path)}: an archive of arrays (.npz), expected one array: save it with numpy.save")
    file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers written by Python 2
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(file, HEADER)
    except Exception as error:  # NumPy parses the header as Python: syntax, tokens, types, depth, memory
        raise ValueError(f"{escape(path)}: not a .npy file of numbers ({type(error).__name__})") from None
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{escape(path)}: not a .npy file of numbers ({escape(dtype)} of the shape {quote(shape)})")
    rest = len(data) - file.tell()
    if rest != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{escape(path)}: its header says {quote(shape)} entries of {dtype.itemsize} bytes, but {rest} bytes follow"
        )
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def read_parquet(path: Path) -> Columns:
    """Reads a Parquet file.

    Raises:
      ValueError: it is no such file, unpacks to too much, or a column is neither text nor numbers.
    """
    data = check_regular(path, FILE_BYTES).read_bytes()
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
        rows, size = file.metadata.num_rows, sum(group.total_byte_size for group in groups)
        names = file.schema_arrow.names
        if size > UNPACKED_BYTES:
            raise ValueError(
                f"it unpacks to {size / MIB:.0f} MiB, more than the {UNPACKED_BYTES / MIB:.0f} that are read"
            )
        found: Any = None if rows > ROWS else file.read(use_threads=False)
    except Exception as error:  # a broken file is told by many types of errors
        raise ValueError(f"{escape(path)}: not a Parquet file that can be read ({one_line(error, 200)})") from None
    _check_count(path, rows)
    names = check_names(path, names)
    values = {name: _as_known(path, name, column) for name, column in zip(names, found.columns, strict=True)}
    return Columns(values, _row_of(path))


def check_names(path: Path, names: list[str]) -> list[str]:
    """Checks that no column stands twice."""
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise ValueError(f"{escape(path)}: column {quote(twice)} stands there twice")
    return names


def _check_count(path: Path, rows: int) -> None:
    if not 0 <= rows <= ROWS:
        raise ValueError(f"{escape(path)}: has {rows} rows, more than the {ROWS} that are read")


def _open_text(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")


def _explain(path: Path, data: bytes, cells: int) -> str:
    """Finds the line of a CSV file that is wrong, slowly; nothing where there is none."""
    reader, line = csv.reader(_open_text(data), strict=True), 1
    try:
        for row in reader:
            if row and len(row) != cells:
                more = ": decimals take a point, and text with a comma quotes" if len(row) > cells else ""
                return f"{escape(path)}, line {line}: {len(row)} cells, but the header has {cells}{more}"
            line = reader.line_num + 1
    except csv.Error as fault:
        return f"{escape(path)}, line {line}: no CSV ({fault})"
    except UnicodeDecodeError:
        return f"{escape(path)}, line {_find_no_text(data)}: no UTF-8 text"
    return ""


def _find_no_text(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1


def _find_line(path: Path, data: bytes, row: int) -> str:
    """Finds the line that a row of a CSV file begins at: there may be empty lines, and text of several lines."""
    reader, line, count = csv.reader(_open_text(data)), 1, -1  # the header
    with contextlib.suppress(csv.Error):  # a cell of more than csv's limit, which pyarrow has read
        for cells in reader:
            if cells and count == row:
                break
            count += bool(cells)
            line = reader.line_num + 1
    return f"{escape(path)}, line {line}"


def _row_of(path: Path) -> Callable[[int], str]:
    return lambda row: f"{escape(path)}, row {row + 1}"


def _as_column(path: Path, name: str, field: np.ndarray) -> pyarrow.Array:
    if field.ndim != 1 or field.dtype.kind not in "Uiuf":
        kind = escape(field.dtype, 60) if field.ndim == 1 else f"arrays of the shape {quote(field.shape[1:])}"
        raise ValueError(f"{escape(path)}: column {quote(name)} holds {kind}, expected text or numbers")
    if field.dtype.kind != "U":
        return pyarrow.array(field.astype(np.float64))
    try:
        return _trim(pyarrow.array(field.tolist(), pyarrow.string()))
    except Exception as error:  # no letter has such a number: a SystemError, of NumPy
        raise ValueError(f"{escape(path)}: column {quote(name)} holds no text ({one_line(error, 100)})") from None


def _trim(column: pyarrow.Array) -> pyarrow.Array:
    column.validate(full=True)  # the letters, which neither NumPy nor Parquet have looked at
    return compute.utf8_trim_whitespace(column)


def _as_known(path: Path, name: str, column: pyarrow.ChunkedArray) -> pyarrow.Array:
    kind: Any = column.type
    try:
        if pyarrow.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind):
            return column.cast(pyarrow.float64(), safe=False).combine_chunks()
        if str(kind) in ("string", "large_string", "string_view", "null"):
            return _trim(column.cast(pyarrow.string()).combine_chunks())
    except Exception as error:
        raise ValueError(f"{escape(path)}: column {quote(name)} cannot be read ({one_line(error, 100)})") from None
    raise ValueError(f"{escape(path)}: column {quote(name)} holds {escape(kind, 60)}, expected text or numbers")
