"""Options of commands: flattened from nested records, as the command line has them, with the checks they share."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def to_options(config: Any) -> dict[str, Any]:
    """Lists the options of a record of records by name.

    >>> @dataclasses.dataclass
    ... class Inner:
    ...     bits: int = 8
    >>> @dataclasses.dataclass
    ... class Outer:
    ...     inner: Inner = dataclasses.field(default_factory=Inner)
    ...     seed: int = 0
    >>> to_options(Outer())
    {'bits': 8, 'seed': 0}
    """
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        options |= to_options(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return options


def with_options(config: T, options: Mapping[str, Any]) -> T:
    """Replaces options of a record of records, which is checked anew.

    Raises:
      TypeError: an option that there is not.
    """
    unknown = sorted(set(options) - set(to_options(config)))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    return _replace(config, options)


def _replace(config: Any, options: Mapping[str, Any]) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replace(value, options)
        elif field.name in options:
            changes[field.name] = options[field.name]
    return dataclasses.replace(config, **changes)


def check_seed(seed: int) -> None:
    """Raises a ValueError for a seed that JAX cannot take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a whole number from 0 to 2^32 - 1")


def check_one_of(what: str, value: str, known: Iterable[str]) -> None:
    """Raises a ValueError that lists the known values."""
    names = sorted(known)
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}: there are {', '.join(names)}")


def check_at_least(least: int, **options: int | None) -> None:
    """Raises a ValueError for a number that is too small; None passes."""
    for name, value in options.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}: give " + (f"at least {least}" if least else "0 or more"))
