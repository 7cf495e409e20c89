"""Budgets as a person writes them: `METRIC=latency,size BUDGET=0.6,900KiB`."""

import math
import re

from haqjax.reading import quote
from haqjax.types import Cost

KEYWORDS = {  # of an absolute limit, see haqjax.budget
    "latency": "latency_s",
    "energy": "energy_j",
    "size": "size_bytes",
    "bops": "bop_count",
    "memory": "memory_bytes",
}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9},
    "size": BYTES,
    "bops": {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "memory": BYTES,
}
MOST = 1e24  # of any limit, in any unit: float32 holds 1e38
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")


def read_metrics(metric: str) -> tuple[str, ...]:
    """Reads the resources that a budget limits.

    Raises:
      ValueError: an unknown resource, or one named twice.

    >>> read_metrics("latency,size")
    ('latency', 'size')
    """
    names = tuple(name.strip() for name in metric.split(","))
    for name in names:
        if name not in Cost._fields:
            raise ValueError(
                f"unknown metric {quote(name)}: there are {', '.join(Cost._fields)}, several with commas between"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"metric {quote(metric)} names a resource twice")
    return names


def read_limits(metric: str, budget: str | float) -> dict[str, float]:
    """Keyword arguments of `haqjax.budget`: fractions of the 8-bit cost, or absolute limits where there is a unit.

    Args:
      metric: resources, with commas between.
      budget: one limit for each, or one for all.

    Raises:
      ValueError: a limit that is no number above 0, in a unit that the resource is not measured in, or another number
        of limits than of resources.

    >>> read_limits("latency,size", "0.6, 900KiB")
    {'latency': 0.6, 'size_bytes': 921600.0}
    """
    names, texts = read_metrics(metric), str(budget).split(",")
    texts = texts * len(names) if len(texts) == 1 else texts
    if len(texts) != len(names):
        raise ValueError(
            f"budget {quote(budget)} has {len(texts)} limits for {len(names)} metrics: give one, or one for each"
        )
    return dict(_read_limit(name, text) for name, text in zip(names, texts, strict=True))


def _read_limit(name: str, text: str) -> tuple[str, float]:
    found = NUMBER.fullmatch(text)
    if found is None or not (math.isfinite(value := float(found[1])) and value > 0):
        raise ValueError(f"budget is {quote(text.strip())}: give a fraction of the 8-bit cost above 0, such as 0.6")
    if value > MOST:
        raise ValueError(f"budget is {quote(text.strip())}: give at most {MOST:g}")
    if not found[2]:
        return name, value
    if found[2] not in UNITS[name]:
        raise ValueError(
            f"budget {quote(text.strip())}: {name} is measured in {', '.join(UNITS[name])}, not {found[2]}"
        )
    return KEYWORDS[name], value * UNITS[name][found[2]]
