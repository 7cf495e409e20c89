"""Budgets: limits on the cost of a policy."""

import functools
import math
import operator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from haqjax.policies.cost import exact_cost
from haqjax.types import WIDTHS, Budget, Cost, CostTable

TOLERANCE = 1e-6  # relative; a float32 sum over a network's layers is not exact


def budget(
    table: CostTable,
    latency: float | None = None,
    energy: float | None = None,
    size: float | None = None,
    *,
    bops: float | None = None,
    memory: float | None = None,
    latency_s: float | None = None,
    energy_j: float | None = None,
    size_bytes: float | None = None,
    bop_count: float | None = None,
    memory_bytes: float | None = None,
) -> Budget:
    """Makes a budget, from fractions of the all-8-bit cost or from absolute limits.

    Args:
      table: costs of the network on the machine.
      latency, energy, size, bops, memory: fractions of what the network costs with 8 bits everywhere.
      latency_s, energy_j, size_bytes, bop_count, memory_bytes: absolute limits. A resource with neither is free.

    Returns:
      The limits in seconds, joules, bytes, bit operations and bytes; `inf` for a free resource.

    Raises:
      ValueError: a limit that is not above zero, given in both forms, or on a resource that the table has no
        finite cost for.

    >>> table = CostTable(*(np.ones((2, 8, 8)) for _ in range(3)), fixed=Cost(0.0, 0.0, 2.0))
    >>> [float(limit) for limit in budget(table, size=0.5, latency_s=3.0)]
    [3.0, inf, 2.0, inf, inf]
    """
    full = exact_cost(table, np.full((len(table), 2), WIDTHS))
    given = ((latency, latency_s), (energy, energy_j), (size, size_bytes), (bops, bop_count), (memory, memory_bytes))
    limits = (_limit(name, *forms, cost) for (name, cost), forms in zip(full.items(), given, strict=True))
    return Budget(*(jnp.asarray(limit, jnp.float32) for limit in limits))


def fits(cost: Cost, budget: Budget) -> Bool[Array, "*n"]:
    """Tests that every limited resource stays within its limit, up to one part in a million.

    A NaN never fits a limit; a free resource (`inf`) is not looked at, so that a machine without an energy model
    can be searched for latency.

    >>> limits = Budget(jnp.float32(2.0), jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    >>> fits(Cost(jnp.asarray([2.0, 2.1]), jnp.asarray([jnp.nan, 0.0]), jnp.ones(2)), limits).tolist()
    [True, False]
    """
    within = [
        (jnp.asarray(jnp.nan if amount is None else amount) <= limit * (1 + TOLERANCE)) | jnp.isposinf(limit)
        for amount, limit in zip(cost, budget, strict=True)
        if limit is not None
    ]
    return functools.reduce(operator.and_, within)


def fits_exactly(table: CostTable, policy: Int[np.ndarray, "L 2"], budget: Budget) -> bool:
    """Tests one policy on the host, in float64 and with half the tolerance of `fits`.

    A policy that passes also passes `fits`, where costs are summed up in float32.
    """
    limits = [math.inf if limit is None else float(limit) for limit in budget]
    amounts = exact_cost(table, policy).values()
    pairs = zip(amounts, limits, strict=True)
    return all(limit == math.inf or amount <= limit * (1 + TOLERANCE / 2) for amount, limit in pairs)


def _limit(name: str, fraction: float | None, absolute: float | None, full: float) -> float:
    if fraction is not None and absolute is not None:
        raise ValueError(f"{name} budget given twice, as the fraction {fraction} and as {absolute}: give one of them")
    value, unit = (absolute, 1.0) if absolute is not None else (fraction, full)
    if value is None:
        return math.inf
    if not value > 0:
        raise ValueError(f"{name} budget {value} is not above zero")
    if not math.isfinite(full):
        raise ValueError(f"{name} budget {value}: the table has no {name} (its all-8-bit {name} is {full})")
    return float(value) * unit
