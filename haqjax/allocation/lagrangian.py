"""Trade-off curve by Lagrangian relaxation (Shoham and Gersho 1988): the best policies at each price of a resource."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from haqjax.allocation.additive import Sensitivity, guard, to_pairs
from haqjax.allocation.choices import list_choices, to_policy
from haqjax.policies.cost import tables
from haqjax.types import Bounds, Budget, Cost, CostTable


class Curve(NamedTuple):
    """Policies on the lower convex hull of cost against loss, from the cheapest to the dearest."""

    policy: Int[np.ndarray, "M L 2"]
    loss: Float[np.ndarray, "M"]  # what the sensitivities add up to
    cost: Float[np.ndarray, "M"]  # of the one resource
    price: Float[np.ndarray, "M"]  # loss for a unit of cost at which the policy becomes best; falls; inf for the first


def trade_off_curve(sensitivity: Sensitivity, table: CostTable, bounds: Bounds, resource: str = "latency") -> Curve:
    """Finds all policies that are least in loss plus a price times the cost of one resource, for some price.

    For a given price every layer chooses on its own, and as the price falls it walks along the convex hull of its own
    choices. The steps of all layers in the order of what they save, dearest first, are the whole curve: no price
    needs to be guessed. Between two of its policies the line is a bound: no policy has less loss at that cost
    (Shoham and Gersho 1988).

    Args:
      sensitivity, table, bounds: as for `haqjax.allocation.integer_program`.
      resource: latency, energy, size or bops; peak memory is no sum over layers.

    Raises:
      ValueError: the table has no such sum.

    >>> from haqjax.policies.bounds import make_bounds
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits, (3, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> curve = trade_off_curve(4.0**-bits * np.ones((3, 2, 1)), table, make_bounds(3))
    >>> curve.cost[[0, -1]].tolist(), bool((np.diff(curve.loss) < 0).all())
    ([132.0, 192.0], True)
    """
    known = dict(zip(Cost._fields, tables(table), strict=False))
    if resource not in known:
        raise ValueError(f"the table has no sum {resource!r}: there are {', '.join(known)}")
    unit = Budget(
        *(jnp.asarray(1.0 if name == resource else jnp.inf) for name in Cost._fields)
    )  # fractions of 1: costs
    choices = list_choices(to_pairs(guard(sensitivity, bounds)), table, bounds, unit)
    cost, loss = choices.fractions[0], choices.loss
    groups = range(choices.group[-1] + 1)
    hulls = [np.array(_hull(np.flatnonzero(choices.group == g), cost, loss)) for g in groups]
    start = np.array([hull[0] for hull in hulls])
    group = np.concatenate([np.full(len(hull) - 1, g) for g, hull in enumerate(hulls)]).astype(int)
    before, after = (np.concatenate([hull[part] for hull in hulls]) for part in (slice(None, -1), slice(1, None)))
    price = (loss[before] - loss[after]) / (cost[after] - cost[before])
    order = np.argsort(-price, kind="stable")
    taken = np.tile(start, (len(order) + 1, 1))
    for step, at in enumerate(order):
        taken[step + 1 :, group[at]] = after[at]
    fixed = getattr(table.fixed, resource)
    return Curve(
        np.stack([to_policy(choices, row) for row in taken]),
        loss[taken].sum(axis=-1),
        cost[taken].sum(axis=-1) + (0.0 if fixed is None else float(fixed)),
        np.concatenate([[np.inf], price[order]]),
    )


def _hull(rows: Int[np.ndarray, "c"], cost: Float[np.ndarray, "C"], loss: Float[np.ndarray, "C"]) -> list[int]:
    """Finds the rows on the lower left convex hull, from the cheapest to the one of least loss."""
    hull: list[int] = []
    for row in rows[np.lexsort((loss[rows], cost[rows]))]:
        if hull and loss[row] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], row, cost, loss):
            hull.pop()
        hull.append(int(row))
    return hull


def _is_above(middle: int, left: int, right: int, cost: np.ndarray, loss: np.ndarray) -> bool:
    """Tests that the middle one does not lie below the line between the others."""
    rise = (loss[middle] - loss[left]) * (cost[right] - cost[left])
    return bool(rise >= (loss[right] - loss[left]) * (cost[middle] - cost[left]))
