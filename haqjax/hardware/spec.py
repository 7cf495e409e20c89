"""Machine specifications: kinds of fields, read from a mapping with every fault named."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

# A field holds a Python number, or an array where the record is a family of machines.
Count = Annotated[Any, "a whole number of at least 1"]
Positive = Annotated[Any, "a finite number above 0"]
Amount = Annotated[Any, "a finite number of at least 0"]
Switch = Annotated[Any, "true or false"]

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
    ValueError: my.yaml: clock is -1, expected a finite number above 0
    """
    hints = get_type_hints(kind, include_extras=True)
    unknown = [key for key in given if key not in hints]
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(map(str, unknown))}; the keys are {', '.join(hints)}")
    defaults = getattr(kind, "_field_defaults", {})
    missing = [name for name in hints if name not in given and name not in defaults]
    if missing:
        raise ValueError(f"{where}: missing key {', '.join(missing)}")
    return kind(**{name: _read(name, hints[name], value, where) for name, value in given.items()})


def _read(name: str, kind: Any, value: Any, where: str) -> int | float | bool:
    number = _as_number(value)
    if kind == Switch and isinstance(value, bool):
        return value
    if kind == Count and number >= 1 and number == int(number):
        return int(number)
    if (kind == Positive and number > 0) or (kind == Amount and number >= 0):
        return number
    raise ValueError(f"{where}: {name} is {value}, expected {kind.__metadata__[0]}")


def _as_number(value: Any) -> float:
    """Reads the number that `value` stands for, -1 where there is none; YAML 1.1 leaves `2e8` a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return -1.0
    try:
        number = float(value)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0
