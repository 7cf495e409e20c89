"""Units of the resources that a policy costs: in files, in messages, on the command line."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from haqjax.types import Cost

BINARY = (("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))


class Resource(NamedTuple):
    """One of the fields of `Cost`; sizes of units are in seconds, joules, bytes and bit operations."""

    field: str  # name in files, which holds the unit
    keyword: str  # of an absolute limit, see `haqjax.budget`
    usual: str  # unit of messages
    shown: tuple[tuple[str, float], ...]  # units that people read, the largest first
    read: tuple[tuple[str, float], ...] = ()  # units that people may write besides

    @property
    def sizes(self) -> dict[str, float]:
        """Units that a limit may be given in, by name."""
        return dict(self.shown + self.read)


DECIMAL = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("GiB", 2.0**30))
RESOURCES = {
    "latency": Resource("latency_s", "latency_s", "ms", (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))),
    "energy": Resource("energy_j", "energy_j", "mJ", (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9))),
    "size": Resource("size_bytes", "size_bytes", "KiB", BINARY, DECIMAL),
    "bops": Resource("bops", "bop_count", "G", (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3))),
    "memory": Resource("memory_bytes", "memory_bytes", "KiB", BINARY, DECIMAL),
}


def as_fields(cost: Cost) -> dict[str, Any]:
    """Names a cost's entries as files do: the unit is part of each name.

    >>> as_fields(Cost(0.5, 0.1, 4096.0))["latency_s"]
    0.5
    """
    return {RESOURCES[name].field: value for name, value in cost._asdict().items()}


def in_usual_unit(resource: str, value: float) -> str:
    """Writes an amount for people, in the resource's usual unit.

    >>> in_usual_unit("latency", 0.00123)
    '1.23 ms'
    """
    unit = RESOURCES[resource].usual
    return f"{value / RESOURCES[resource].sizes[unit]:.4g} {unit}"


def unit_of(resource: str, values: Sequence[float] | Float[np.ndarray, "n"]) -> tuple[str, float]:
    """Chooses the largest unit in which the largest finite value is at least 1, else the smallest unit.

    Returns:
      The unit's name, and its size in SI units or bytes.

    >>> unit_of("latency", [0.002, 0.0005])
    ('ms', 0.001)
    """
    units, finite = RESOURCES[resource].shown, np.asarray(values, float)[np.isfinite(values)]
    return next((unit for unit in units if finite.size and finite.max() >= unit[1]), units[-1])
