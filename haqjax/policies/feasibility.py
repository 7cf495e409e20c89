"""Feasibility of a budget: the floor that no policy is below."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from haqjax.policies.budgets import TOLERANCE
from haqjax.policies.cost import exact_cost, layer_costs, policy_cost, stored_bytes, tables
from haqjax.types import Bounds, Budget, Cost, CostTable, Lifetimes
from haqjax.units import in_usual_unit

SHOWN = 4  # layers that a message names


def floor(table: CostTable, bounds: Bounds) -> Cost:
    """Returns the cost with every layer at its lowest bits."""
    return policy_cost(table, jnp.asarray(bounds.low))


def check_reachable(table: CostTable, bounds: Bounds, budget: Budget, names: Sequence[str] | None = None) -> None:
    """Stops before a long run whose budget no policy can meet.

    Args:
      table, bounds, budget: as for `project`.
      names: the layers' names; without them layers are called by number.

    Raises:
      ValueError: a limit below the floor. The line says what was asked, the floor, and which layers hold most of it.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.policies.budgets import budget as make_budget
    >>> table = CostTable(*(np.full((3, 8, 8), 1e-3) for _ in range(3)), fixed=Cost(0.0, 0.0, 0.0))
    >>> check_reachable(table, make_bounds(3), make_budget(table, latency=0.5))
    Traceback (most recent call last):
    ...
    ValueError: latency budget 1.5 ms is below the floor 3 ms (all layers at their lowest bits), most of it in layer 0 \
33 %, layer 1 33 %, layer 2 33 %: raise the budget or allow fewer bits; layer 0, layer 2 may not change
    """
    lowest, highest = np.asarray(bounds.low), np.asarray(bounds.high)
    names = [f"layer {index}" for index in range(len(table))] if names is None else names
    for (name, least), limit in zip(exact_cost(table, lowest).items(), budget, strict=True):
        if limit is None or np.isposinf(limit) or least <= float(limit) * (1 + TOLERANCE):
            continue
        raise ValueError(
            f"{name} budget {in_usual_unit(name, float(limit))} is below the floor {in_usual_unit(name, least)} "
            f"(all layers at their lowest bits), most of it in {_largest_contributors(table, lowest, name, names)}: "
            f"raise the budget or allow fewer bits{_name_pinned(names, (lowest == highest).all(axis=-1))}"
        )


def _name_pinned(names: Sequence[str], pinned: np.ndarray) -> str:
    found = [name for name, fixed in zip(names, pinned, strict=True) if fixed]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"; {', '.join(found[:SHOWN])}{more} may not change" if found else ""


def _largest_contributors(table: CostTable, policy: Int[np.ndarray, "L 2"], resource: str, names: Sequence[str]) -> str:
    """Names the three largest contributors to a cost, with their fractions."""
    if table.lifetimes is not None and resource == "memory":
        parts = _tensors(table.lifetimes, policy, names)
    else:
        values = layer_costs(tables(table)[Cost._fields.index(resource)], policy)
        parts = [*zip(values, names, strict=True), (float(getattr(table.fixed, resource)), "what no policy changes")]
    total = sum(value for value, _ in parts)
    largest = sorted(parts, key=lambda part: -part[0])[:3]
    return ", ".join(f"{name} {value / total:.0%}".replace("%", " %") for value, name in largest)


def _tensors(lifetimes: Lifetimes, policy: Int[np.ndarray, "L 2"], names: Sequence[str]) -> list[tuple[float, str]]:
    """Lists the tensors that are in memory at its peak, each called by the first layer that reads it."""
    stored = stored_bytes(lifetimes, policy)
    peak = lifetimes.alive[np.argmax(lifetimes.alive @ stored)]
    return [
        (stored[i], f"the input of {names[int(np.argmax(readers))]}" if readers.any() else "what no layer reads")
        for i, readers in ((i, lifetimes.readers[i]) for i in np.flatnonzero(peak))
    ]
