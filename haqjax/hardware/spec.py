"""Machine specifications: kinds of fields, read from a mapping with every fault named."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np

from haqjax.reading import one_line, quote
from haqjax.text import escape

MOST = 1 << 31  # of a count: products of a machine's and a layer's sizes are compared with 2**62 besides
SMALLEST, LARGEST = 1e-30, 1e30  # of what is no count, in SI units, and of costs: they are compared in 32 bits
# A field holds a Python number, or an array where the record is a family of machines.
Count = Annotated[Any, f"a whole number of at least 1 and at most {MOST}"]
Positive = Annotated[Any, f"a finite number above 0, from {SMALLEST:g} to {LARGEST:g}"]
Amount = Annotated[Any, f"a finite number of at least 0; above 0 from {SMALLEST:g} to {LARGEST:g}"]
Switch = Annotated[Any, "true or false"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

Spec = TypeVar("Spec", bound=tuple)


def read_fields(kind: type[Spec], given: Mapping[str, Any], where: str) -> Spec:
    """Builds a specification from a mapping, such as a parsed YAML file.

    Args:
      kind: a NamedTuple whose fields are annotated `Count`, `Positive`, `Amount` or `Switch`.
      given: one value for each field; fields with a default may be left out.
      where: name of the source in an error.

    Returns:
      The record, of Python numbers.

    Raises:
      ValueError: a key is missing or unknown, or a value is not of its field's kind.

    >>> from typing import NamedTuple
    >>> class Clocked(NamedTuple):
    ...     clock: Positive
    >>> read_fields(Clocked, {"clock": "2e8"}, "my.yaml")
    Clocked(clock=200000000.0)
    >>> read_fields(Clocked, {"clock": -1}, "my.yaml")
    Traceback (most recent call last):
    ValueError: my.yaml: clock is -1, expected a finite number above 0, from 1e-30 to 1e+30
    """
    where = escape(where)
    hints = get_type_hints(kind, include_extras=True)
    unknown = [key for key in given if key not in hints]
    if unknown:
        text = f"{where}: unknown key {escape(unknown[0], 40)}; the keys are {', '.join(hints)}"
        raise ValueError(one_line(text, 480))
    defaults = getattr(kind, "_field_defaults", {})
    missing = [name for name in hints if name not in given and name not in defaults]
    if missing:
        raise ValueError(f"{where}: missing key {', '.join(missing)}")
    return kind(**{name: _read(name, hints[name], value, where) for name, value in given.items()})


def check_fields(spec: Spec, where: str) -> None:
    """Checks a specification that was made in Python: one machine, or a family with an array in a field.

    Raises:
      ValueError: a value is not of its field's kind.
    """
    for name, kind in get_type_hints(type(spec), include_extras=True).items():
        value = getattr(spec, name)
        ends = [value] if np.ndim(value) == 0 else [np.min(value), np.max(value)]
        for end in ends:
            _read(name, kind, end.item() if isinstance(end, np.generic | np.ndarray) else end, where)


def _read(name: str, kind: Any, value: Any, where: str) -> int | float | bool:
    number = _as_number(value)
    if kind == Switch and isinstance(value, bool):
        return value
    if kind == Count and 1 <= number <= MOST and number == int(number):
        return int(number)
    if (kind in (Positive, Amount) and SMALLEST <= number <= LARGEST) or (kind == Amount and number == 0):
        return number
    raise ValueError(f"{where}: {name} is {quote(value)}, expected {kind.__metadata__[0]}")


def _as_number(value: Any) -> float:
    """Reads the number that `value` stands for, -1 where there is none; YAML 1.1 leaves `2e8` a string."""
    if isinstance(value, str):
        value = value if NUMBER.fullmatch(value) else -1.0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return -1.0
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return -1.0
    return number if math.isfinite(number) else -1.0
