"""Checks that the options of several commands have in common."""

from collections.abc import Iterable


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
