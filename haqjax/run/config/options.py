"""Options of commands: flattened from nested records, as the command line has them, with the checks they share."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from haqjax.files import plain
from haqjax.reading import check_text, quote

T = TypeVar("T")
OR_NUMBER = ("budget",)  # texts that Python code may give as a number
MOST_PIXELS, MOST_DIGIT_PIXELS = 4096, 256  # of an image's height and width
SIZES = "; larger ones fill the memory"  # why there are limits


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


def check_types(config: Any, options: Mapping[str, Any]) -> None:
    """Checks that each option of a record of records is of the type that the record says.

    Raises:
      ValueError: one that is not; names the option.

    >>> from haqjax.run.config.search import MethodOptions
    >>> check_types(MethodOptions(), {"episodes": "many"})
    Traceback (most recent call last):
    ValueError: episodes is 'many', expected int
    """
    types = _types(config)
    for name, value in options.items():
        if name not in types:
            continue
        try:
            msgspec.convert(plain(value), types[name])
        except msgspec.ValidationError as error:
            reason = str(error).partition(",")[0].partition(" - at")[0].replace("`", "")
            raise ValueError(f"{name} is {quote(value)}, {reason[:1].lower()}{reason[1:]}") from None


def check_texts(config: Any) -> None:
    """Raises a ValueError for a text that is too long or no UTF-8, and names the option."""
    for name, value in to_options(config).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                check_text(name, text, control=True)


def _types(config: Any) -> dict[str, Any]:
    """Lists the types of the options of a record of records by name."""
    hints = typing.get_type_hints(type(config))
    types: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind = hints[field.name] | (float if field.name in OR_NUMBER else hints[field.name])
        types |= _types(value) if dataclasses.is_dataclass(value) else {field.name: kind}
    return types


def check_seed(seed: int) -> None:
    """Raises a ValueError for a seed that JAX cannot take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {quote(seed)}: give a whole number from 0 to 2^32 - 1")


def check_one_of(what: str, value: str, known: Iterable[str]) -> None:
    """Raises a ValueError that lists the known values."""
    names = sorted(known)
    if value not in names:
        raise ValueError(f"unknown {what} {quote(value)}: there are {', '.join(names)}")


def check_image_size(data: str, image_size: int | None) -> None:
    """Raises a ValueError for images of no size, or of one that fills the memory."""
    check_range(1, MOST_PIXELS, SIZES, image_size=image_size)
    if data == "digits":
        check_range(1, MOST_DIGIT_PIXELS, "; digits are of 8, and all are held in memory", image_size=image_size)


def check_range(least: int, most: int, why: str = "", **options: int | None) -> None:
    """Raises a ValueError for a number that is too small or too large, and says why there is a limit; None passes."""
    for name, value in options.items():
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is {quote(value)}: give a whole number from {least} to {most}" + why)
