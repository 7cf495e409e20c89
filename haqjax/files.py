"""Atomic writes: files whole or not at all, folders that were not there before."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from haqjax.reading import check_text, quote

BESIDE, BELOW = 40, 512  # bytes of names that are written beside a new file or folder, and of paths below it


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes a file that other programs see complete or not at all, also after a crash.

    The bytes go to a temporary file beside `path`, are flushed to disk, and then take the name in one step.

    Args:
      path: where to write; its folder exists, and a file of that name is replaced.
      data: the content.

    Returns:
      The path.

    Raises:
      OSError: of a full disk or what else stops it; its `filename` is `path`.

    >>> import tempfile
    >>> write_bytes(Path(tempfile.mkdtemp()) / "a.bin", b"abc").read_bytes()
    b'abc'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # writes name no file, and nobody knows the temporary one
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Writes text as UTF-8, whole or not at all; see `write_bytes`.

    >>> import tempfile
    >>> write_text(Path(tempfile.mkdtemp()) / "a.txt", "8 bits").read_text()
    '8 bits'
    """
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """Writes a value as JSON, whole or not at all.

    Args:
      path: where to write.
      value: any that `plain` takes.

    >>> import tempfile
    >>> print(write_json(Path(tempfile.mkdtemp()) / "a.json", {"bits": np.array([4, 8])}).read_text())
    {
      "bits": [
        4,
        8
      ]
    }
    """
    return write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> Path:
    """Writes a value as YAML, its entries in their own order, whole or not at all.

    Args:
      path: where to write.
      value: any that `plain` takes.

    >>> import tempfile
    >>> print(write_yaml(Path(tempfile.mkdtemp()) / "a.yaml", {"seed": 0, "budget": 0.6}).read_text())
    seed: 0
    budget: 0.6
    """
    return write_text(path, yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Writes rows as a table with one line of column names, whole or not at all.

    Args:
      path: where to write.
      rows: one mapping from column to value a row.
      columns: names in order; the first row's by default.

    Raises:
      ValueError: a row has other columns.

    >>> import tempfile
    >>> rows = [{"episode": 0, "accuracy": 0.5}, {"episode": 1, "accuracy": 0.75}]
    >>> print(write_csv(Path(tempfile.mkdtemp()) / "a.csv", rows).read_text())
    episode,accuracy
    0,0.5
    1,0.75
    """
    names = list(columns if columns is not None else rows[0] if rows else [])
    for number, row in enumerate(rows):
        if set(row) != set(names):
            raise ValueError(f"row {number} of {path} has the columns {list(row)}, expected {names}")
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)
    return write_text(path, text.getvalue())


def plain(value: Any) -> Any:
    """Converts a value to what JSON, YAML and CSV can hold.

    Arrays become lists, NumPy and JAX scalars Python's, records (dataclasses, named tuples) mappings, paths text, and a
    number that is not finite `None`.

    Raises:
      ValueError: a value of another type.

    >>> plain({"latency": np.float32(0.1), "energy": np.nan, "bits": (8, 4), "out": Path("runs") / "a"})
    {'latency': 0.1, 'energy': None, 'bits': [8, 4], 'out': 'runs/a'}
    """
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        short = array.dtype in (np.float16, np.float32)  # in its own digits: 0.1, not 0.10000000149011612
        return plain((array.astype(str).astype(np.float64) if short else array).tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    raise ValueError(
        f"cannot write {quote(value)}, a {type(value).__name__}: give numbers, text, arrays, lists or mappings"
    )


def check_free(path: str | Path) -> Path:
    """Checks, before any work, that a new file or folder can be made, by making one beside it, and leaves nothing.

    Raises:
      ValueError: there is something at `path` already, or a file where a folder above it should be; a name is too long
        or has control characters; nothing can be written there.

    >>> import tempfile
    >>> check_free(Path(tempfile.mkdtemp()) / "runs" / "mine").name
    'mine'
    """
    path = _check_name(path)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists and is never overwritten: choose another name, or move it away")
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), Path(path.anchor or "."))
    _check_lengths(path, above)
    if reason := _try_writing(above):
        raise ValueError(f"{path} cannot be made: {above} is no folder that can be written to ({reason})")
    return path


def check_writable(folder: str | Path) -> Path:
    """Checks that files can be written to a folder, which is there or can be made, and leaves nothing.

    Raises:
      ValueError: as `check_free`, but for a folder that is there.

    >>> import tempfile
    >>> check_writable(tempfile.mkdtemp()).is_dir()
    True
    """
    folder = _check_name(folder)
    if not os.path.lexists(folder):
        return check_free(folder)
    if reason := _try_writing(folder):
        raise ValueError(f"{folder} is no folder that can be written to ({reason}): choose another, or mend that")
    return folder


def _check_name(path: str | Path) -> Path:
    text = check_text("the name", os.fspath(path))
    if not text.strip():
        raise ValueError("the name of the place to write to is empty: give one")
    if text.startswith("~"):
        raise ValueError(f"{text}: '~' is not read as the home folder here: write it out, {os.path.expanduser(text)}")
    return Path(text)


def _check_lengths(path: Path, above: Path) -> None:
    """Checks the lengths of names, with what is written beside them and below them, against those of the system."""
    name_bytes, path_bytes = (_limit(above, name, usual) for name, usual in (("NAME", 255), ("PATH", 4096)))
    longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(longest)) > name_bytes - BESIDE:
        count = len(os.fsencode(longest))
        raise ValueError(f"{quote(longest)} is a name of {count} bytes: at most {name_bytes - BESIDE} can be used")
    if len(os.fsencode(path.absolute())) > path_bytes - BELOW:
        count = len(os.fsencode(path.absolute()))
        raise ValueError(f"{quote(str(path))} is a path of {count} bytes: at most {path_bytes - BELOW} can be used")


def _limit(folder: Path, name: str, usual: int) -> int:
    try:
        return os.pathconf(folder, f"PC_{name}_MAX")
    except (OSError, ValueError):
        return usual


def _try_writing(folder: Path) -> str:
    """Makes, renames and removes a folder within another; returns why that fails, or nothing."""
    first, second = (folder / f".{uuid.uuid4().hex}.tmp" for _ in range(2))
    try:
        first.mkdir()
        try:
            first.rename(second)
        finally:
            for made in (first, second):
                if made.is_dir():
                    made.rmdir()
    except OSError as error:
        return str(error.strerror)
    return ""


def new_folder(path: str | Path) -> Path:
    """Makes a folder, and the ones above it, where there was nothing.

    Raises:
      ValueError: as `check_free`.

    >>> import tempfile
    >>> new_folder(Path(tempfile.mkdtemp()) / "runs" / "mine").is_dir()
    True
    """
    path = check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError:  # made since the check
        return check_free(path)
    return path
