"""Messages between the processes of a run: JSON for what is made of what, then the bytes of the arrays; no pickle.

A value is None, a number, a text, an array, a path, one of the `RECORDS`, or a list, tuple or dictionary of these.
An error is the name of its kind, of a fixed list, and its text.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.reading import one_line
from haqjax.run.config.search import SearchConfig
from haqjax.types import Codebook, Ranges, Rounding

_OPTIONS: list[Any] = [type(getattr(SearchConfig(), field.name)) for field in dataclasses.fields(SearchConfig)]
RECORDS: dict[str, Any] = {kind.__name__: kind for kind in [SearchConfig, *_OPTIONS, Ranges, Rounding, Codebook]}
ERRORS = {
    kind.__name__: kind
    for kind in (ValueError, FileExistsError, FileNotFoundError, PermissionError, OSError, ImportError, RuntimeError)
}
HEADER = 8  # bytes that say how long the JSON is
LONGEST = 2000  # characters of an error's text


def pack(value: Any) -> bytes:
    """Packs a value; arrays on a device come to the host.

    Raises:
      TypeError: something in it that cannot be sent, such as a random key.

    >>> unpack(pack({"bits": (8, np.array([1.5, 2.0])), "out": None}))
    {'bits': (8, array([1.5, 2. ])), 'out': None}
    """
    arrays: list[np.ndarray] = []
    tree = json.dumps(_pack(value, arrays)).encode()
    return b"".join([len(tree).to_bytes(HEADER, "little"), tree, *(array.tobytes() for array in arrays)])


def unpack(data: bytes) -> Any:
    """Unpacks what `pack` or `pack_error` made, an error as an exception that is not raised.

    Raises:
      ValueError: other bytes.
    """
    try:
        start = HEADER + int.from_bytes(data[:HEADER], "little")
        value = _unpack(json.loads(data[HEADER:start]), _Arrays(memoryview(data)[start:]))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"another process sent no message of this version of haqjax: {one_line(error, 200)}") from None
    return value


def pack_error(error: Exception) -> bytes:
    """Packs an error: its kind, or the nearest that another process knows, and its text.

    >>> unpack(pack_error(KeyError("bits")))
    RuntimeError("KeyError: 'bits'")
    """
    known = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS), None)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    tree = json.dumps(["error", [known or "RuntimeError", one_line(text, LONGEST)]]).encode()
    return len(tree).to_bytes(HEADER, "little") + tree


@dataclasses.dataclass
class _Arrays:
    """The bytes of the arrays that have not been taken yet."""

    rest: memoryview

    def take(self, dtype: str, shape: list[int]) -> np.ndarray:
        kind = jnp.dtype(dtype)
        size = kind.itemsize * math.prod(shape)
        if min(shape, default=0) < 0 or size > len(self.rest):
            raise ValueError(f"an array of {size} bytes, and there are {len(self.rest)}")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return np.frombuffer(taken, kind).reshape(shape).copy()


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """Lists what a value is made of; what is no number or text is a pair of its kind and its parts."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value).__name__ in RECORDS and type(value) is RECORDS[type(value).__name__]:
        return [type(value).__name__, [_pack(getattr(value, name), arrays) for name in _fields(value)]]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_pack(entry, arrays) for entry in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", [[key, _pack(entry, arrays)] for key, entry in value.items()]]
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array) and _is_plain(value.dtype):
        array = np.asarray(value)
        arrays.append(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
        return ["array", [array.dtype.name, list(array.shape)]]
    raise TypeError(f"cannot send a {type(value).__name__} to another process")


def _is_plain(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def _unpack(tree: Any, arrays: _Arrays) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, parts = tree
    if kind == "array":
        return arrays.take(*parts)
    if kind == "path":
        return Path(parts)
    if kind == "error":
        return ERRORS[parts[0]](str(parts[1]))
    if kind == "dict":
        return {key: _unpack(entry, arrays) for key, entry in parts}
    entries = [_unpack(entry, arrays) for entry in parts]
    if kind in ("list", "tuple"):
        return entries if kind == "list" else tuple(entries)
    if len(entries) != len(_fields(RECORDS[kind])):
        raise ValueError(f"a {kind} has other fields")
    return RECORDS[kind](*entries)


def _fields(record: Any) -> tuple[str, ...]:
    return getattr(record, "_fields", None) or tuple(field.name for field in dataclasses.fields(record))
