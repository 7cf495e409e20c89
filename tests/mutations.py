"""Seeded damage to input files, and the law that every reader keeps: success, or one short line.

    for at, damaged in enumerate(damage(path.read_bytes(), 300, seed=0, ways=TEXT_WAYS)):
        path.write_bytes(damaged)
        found = read_or_refuse(lambda: read(path), damaged)  # None where it was refused

Bytes: `flip`, `insert`, `delete`, `duplicate`, `truncate`. Text: `change_line`, `change_word`, `change_cell`. Values:
`change_value` of what JSON and YAML hold, with `as_json` and `as_yaml` for whole files; `change_array` of arrays;
`change_npy`, `change_npz`, `change_parquet` and `change_safetensors` of their files. All take a generator first, and
are pure but for its state.
"""

import copy
import io
import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml

Draw = np.random.Generator
Way = Callable[[Draw, bytes], bytes]

LONGEST = 500  # characters of a message
WORK, WAIT = 5.0, 30.0  # seconds of a reading: of processors, of the clock
WORDS = (
    *("nan", "inf", "-inf", "-1", "0", "-0.0", "1e308", "1e-320", "1e400", "9" * 400),
    *(str(2**62), str(2**63), str(2**64), "", " ", "a,b", "1,5", '"', "'", "$(id)", "`id`", "*a", "&a"),
    *("!!python/name:os.system", "{}", "[]", "[1, 2]"),
    *("true", "yes", "null", "~", "8.0", "8.5", "0x8", "1_0", "0o7", "١", "²", "é", "-", "=1+1", "../../etc/passwd"),
    *("x" * 5000, "[" * 2000, "{" * 2000, "\x00", "\x1b[2J", "\ufeff", "\u202e", "\u2028", "\r", "\n", "\t"),
    *("$x^2$", "$\\frac{", "<b>", "[bold]"),
)  # fmt: skip
VALUES = (
    *(None, True, False, 0, -1, 1, 1.5, 8.0, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 10**400),
    *(-(10**400), 2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), [], {}, [1, 2], [[]], {"a": 1}, {"": None}),
    [None] * 100,
    *WORDS,
)  # fmt: skip


def read_or_refuse(read: Callable[[], Any], given: Any = None) -> Any:
    """Runs a reading; a refusal must be a ValueError of one printable line of at most 500 characters, and gives None.

    Args:
      read: the reading, which must end after 5 s of work.
      given: what it reads, for the message of a failed test.
    """
    try:
        with _alarm():
            return read()
    except ValueError as error:
        said = str(error)
        assert 0 < len(said) <= LONGEST and said.isprintable(), f"{said[:1000]!r} on reading {str(given)[:2000]}"
        return None
    except BaseException as error:
        error.add_note(f"on reading {str(given)[:2000]}")
        raise


class TooSlow(BaseException):
    """Raised in a reading that does not end; no reader catches it."""


@contextmanager
def _alarm() -> Iterator[None]:
    """Ends a hang, so that a test fails and does not wait: 5 s of work, or 30 s of waiting on a busy machine.

    Works in the main thread, where tests run.
    """

    def end(*_: Any) -> None:
        raise TooSlow(f"over {WORK} s of work, or over {WAIT} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, WORK), (signal.SIGALRM, signal.ITIMER_REAL, WAIT))
    before = [(number, timer, signal.signal(number, end)) for number, timer, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, timer, handler in before:
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def damage(data: bytes, count: int, seed: int, ways: Sequence[Way]) -> Iterator[bytes]:
    """Damages a file so many times: each time by one way, or now and then by two or three, one after another."""
    for at in range(count):
        draw, damaged = np.random.default_rng([seed, at]), data
        for _ in range(draw.choice([1, 2, 3], p=[0.8, 0.15, 0.05])):
            damaged = pick(draw, ways)(draw, damaged)
        yield damaged


def pick(draw: Draw, some: Sequence[Any]) -> Any:
    """Picks one of a sequence, whatever the types in it."""
    return some[int(draw.integers(len(some)))]


# Bytes


def _span(draw: Draw, data: bytes, most: int = 64) -> tuple[int, int]:
    """Picks a part of a file; every third time in its first or last 200 bytes, where headers and footers are."""
    size = len(data)
    edges = [int(draw.integers(size + 1)), min(int(draw.integers(200)), size), max(size - int(draw.integers(200)), 0)]
    start = edges[int(draw.choice([0, 0, 1, 2]))]
    return start, min(size, start + 1 + int(draw.integers(pick(draw, (1, 4, most)))))


def flip(draw: Draw, data: bytes) -> bytes:
    """Replaces some bytes in a row by any others."""
    start, stop = _span(draw, data)
    return data[:start] + draw.bytes(stop - start) + data[stop:]


def insert(draw: Draw, data: bytes) -> bytes:
    start, _ = _span(draw, data)
    return (
        data[:start]
        + pick(draw, (draw.bytes(7), b"\x00", b"\xff\xff\xff\xff", b'"', b"\n", b"\xef\xbb\xbf"))
        + data[start:]
    )


def delete(draw: Draw, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + data[stop:]


def duplicate(draw: Draw, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:stop] + data[start:stop] + data[stop:]


def truncate(draw: Draw, data: bytes) -> bytes:
    return data[: _span(draw, data)[0]]


# Text


def _split(data: bytes) -> list[str]:
    return data.decode(errors="surrogateescape").splitlines(keepends=True)


def _join(lines: Sequence[str]) -> bytes:
    return "".join(lines).encode(errors="surrogateescape")


def change_line(draw: Draw, data: bytes) -> bytes:
    """Deletes, repeats, moves, indents or empties a line."""
    lines = _split(data) or [""]
    at = int(draw.integers(len(lines)))
    line = lines[at]
    new = pick(draw, ([], [line, line], ["  " + line], ["\n"], [line.rstrip("\n")], [line, "\n"], ["#" + line]))
    if draw.random() < 0.2:
        lines.insert(int(draw.integers(len(lines))), line)
    lines[at : at + 1] = new
    return _join(lines)


def change_word(draw: Draw, data: bytes) -> bytes:
    """Replaces a word or a number of a text by a nasty one."""
    text = data.decode(errors="surrogateescape")
    found = list(re.finditer(r"[^\s,:;=\"'\[\]{}()]+", text))
    if not found:
        return _join([pick(draw, WORDS)])
    word = pick(draw, found)
    return _join([text[: word.start()], pick(draw, WORDS), text[word.end() :]])


def change_cell(draw: Draw, data: bytes) -> bytes:
    """Replaces, drops, repeats or quotes a cell of a CSV file; every fourth time in its header."""
    lines = _split(data)
    if not lines:
        return data
    at = 0 if draw.random() < 0.25 else int(draw.integers(len(lines)))
    cells = lines[at].rstrip("\r\n").split(",")
    cell = int(draw.integers(len(cells)))
    word = pick(draw, WORDS)
    quoted = '"' + word.replace('"', '""') + '"'
    spaced = f" {cells[cell]} "
    cells[cell : cell + 1] = pick(draw, ([word], [quoted], [], [cells[cell]] * 2, [cells[cell], word], [spaced]))
    lines[at] = ",".join(cells) + "\n"
    return _join(lines)


# Values


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Lists the path of every value inside another one, the whole of it first."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _places(entry, (*at, key))


def change_value(draw: Draw, value: Any) -> Any:
    """Replaces, drops, renames, repeats or wraps one value inside a document of mappings, lists, numbers and text."""
    document = copy.deepcopy(value)
    *way, last = pick(draw, [place for place in _places(document) if place] or [(None,)])
    if last is None:
        return pick(draw, VALUES)
    holder = document
    for key in way:
        holder = holder[key]
    kind = pick(draw, ("replace", "replace", "replace", "drop", "wrap", "add", "whole"))
    if kind == "whole" and draw.random() < 0.2:
        return pick(draw, VALUES)
    if kind == "drop":
        del holder[last]
    elif kind == "add" and isinstance(holder, dict):
        holder[pick(draw, WORDS)] = pick(draw, VALUES)
    elif kind == "add":
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder[last] = [holder[last]] if kind == "wrap" else copy.deepcopy(pick(draw, VALUES))
    return document


def as_json(draw: Draw, data: bytes) -> bytes:
    """Changes a value of a JSON file."""
    return _dump(draw, data, json.loads, json.dumps)


def as_yaml(draw: Draw, data: bytes) -> bytes:
    """Changes a value of a YAML file."""
    return _dump(draw, data, yaml.safe_load, lambda value: yaml.safe_dump(value, allow_unicode=True))


def _dump(draw: Draw, data: bytes, parse: Callable, dump: Callable[[Any], str]) -> bytes:
    try:
        value = parse(data)
    except (ValueError, RecursionError, yaml.YAMLError, TypeError):  # another way has damaged it already
        return flip(draw, data)
    return dump(change_value(draw, value)).encode(errors="surrogatepass")


# Arrays


TYPES = ("f2", "f4", "f8", "i1", "i8", "u8", "?", "c16", "m8[s]", "M8[s]", "S3", "U3", "V4", "O", ">i4")


def change_array(draw: Draw, array: np.ndarray) -> np.ndarray:
    """Gives an array another type, another shape, or a nasty number."""
    array = np.array(array.real if np.iscomplexobj(array) else array)
    numbers = (np.nan, np.inf, -np.inf, -1, 0, 1e308, 5e-324, 2**62, 10.5)

    def with_number() -> np.ndarray:
        changed = array.astype(pick(draw, (float, array.dtype)) if array.dtype.kind in "fiub" else float, copy=True)
        if changed.size:
            with np.errstate(all="ignore"):
                changed.flat[int(draw.integers(changed.size))] = np.asarray(pick(draw, numbers)).astype(changed.dtype)
        return changed

    def with_type() -> np.ndarray:
        kind = pick(draw, TYPES)
        with np.errstate(all="ignore"):
            return array.astype(kind)

    def with_shape() -> np.ndarray:
        flat = array.reshape(-1)
        shapes = [flat, flat[:0], array[None], array[..., None], array[:-1] if array.ndim else array]
        return pick(draw, shapes + ([flat[0].reshape(())] if flat.size else []))

    try:
        return pick(draw, (with_number, with_number, with_type, with_shape))()
    except (ValueError, TypeError, OverflowError):  # a type that these numbers cannot have
        return array.reshape(-1)[:0]


def change_npy(draw: Draw, data: bytes) -> bytes:
    """Changes the array of an .npy file, or the text of its header, whose length is kept right."""
    if draw.random() < 0.5:
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception:  # another way has damaged it already; NumPy raises errors of many types
            return flip(draw, data)
        out = io.BytesIO()
        np.save(
            out, change_array(draw, array) if not array.dtype.names else array[: int(draw.integers(1 + len(array)))]
        )
        return out.getvalue()
    size = int.from_bytes(data[8:10], "little")
    header = change_word(draw, data[10 : 10 + size])[:60000]
    return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + size :]


def change_npz(draw: Draw, data: bytes) -> bytes:
    """Changes, drops, renames or adds an array of an .npz file."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = dict(found)
    except Exception:
        return flip(draw, data)
    name = pick(draw, [*arrays, "more"])
    kind = pick(draw, ("change", "change", "change", "drop", "rename"))
    array = arrays.pop(name, np.zeros(3))
    if kind != "drop":
        arrays["other" if kind == "rename" else name] = change_array(draw, array)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def change_parquet(draw: Draw, data: bytes) -> bytes:
    """Changes the values or the type of a column of a Parquet file, drops it, or gives it another name."""
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        at = int(draw.integers(table.num_columns))
        name, values = table.column_names[at], table.column(at).to_pylist()
        kind = pick(draw, ("value", "value", "array", "drop", "rename", "rows"))
        if kind == "rows":
            table = table.slice(0, int(draw.integers(1 + len(table))))
        elif kind in ("value", "array"):
            changed = change_value(draw, values) if kind == "value" else change_array(draw, np.array(values)).tolist()
            table = table.set_column(at, name, pyarrow.array(changed))
        else:
            table = table.remove_column(at)
            table = table if kind == "drop" else table.append_column(pick(draw, WORDS), pyarrow.array(values))
        out = io.BytesIO()
        pyarrow.parquet.write_table(table, out)
        return out.getvalue()
    except Exception:  # damaged already, or no such column
        return flip(draw, data)


def change_safetensors(draw: Draw, data: bytes) -> bytes:
    """Changes a value in the header of a safetensors file, whose length is kept right."""
    size = int.from_bytes(data[:8], "little")
    header = as_json(draw, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


BYTE_WAYS: tuple[Way, ...] = (flip, insert, delete, duplicate, truncate)
TEXT_WAYS: tuple[Way, ...] = (*BYTE_WAYS, change_line, change_word, change_word, change_word)
JSON_WAYS: tuple[Way, ...] = (*TEXT_WAYS, *[as_json] * 8)
YAML_WAYS: tuple[Way, ...] = (*TEXT_WAYS, *[as_yaml] * 8)
CSV_WAYS: tuple[Way, ...] = (*TEXT_WAYS, *[change_cell] * 8)
NPY_WAYS: tuple[Way, ...] = (*BYTE_WAYS, *[change_npy] * 5)
NPZ_WAYS: tuple[Way, ...] = (*BYTE_WAYS, *[change_npz] * 5)
PARQUET_WAYS: tuple[Way, ...] = (*BYTE_WAYS, *[change_parquet] * 8)
SAFETENSORS_WAYS: tuple[Way, ...] = (*BYTE_WAYS, *[change_safetensors] * 5)
