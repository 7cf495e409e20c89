"""Budget fill: policies that use a budget up, by one shift of all preferences as far as the budget goes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from haqjax.policies.bisection import bisect
from haqjax.policies.bounds import at_rank, follow, ladder, lead
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost, tables
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, AnyArray, Bounds, Budget, Cost, CostTable

UNPRICED = 2.0  # normalised cost of what has no finite cost: more than any limit
STEPS = 24  # of the bisected shift: to a millionth of a width


def normalise_costs(table: CostTable, bounds: Bounds, budget: Budget) -> CostTable:
    """Divides costs by their limits; what is not limited costs nothing.

    Between two widths that are allowed the cost lies on a line, whatever the table says of widths that are not. So
    every number is finite, and `haqjax.policies.cost.policy_cost` of fractional bits mixes only costs that there are.

    >>> from haqjax.policies.bounds import make_bounds
    >>> import numpy as np
    >>> costs = np.broadcast_to(np.arange(1.0, 9.0), (1, 8, 8))
    >>> table = CostTable(costs, np.nan * costs, costs, Cost(2.0, np.nan, 0.0))
    >>> costs = normalise_costs(table, make_bounds(1, pinned={}), Budget(jnp.float32(4.0), jnp.inf, jnp.inf))
    >>> print(policy_cost(costs, jnp.array([[8, 2]])).latency, policy_cost(costs, jnp.array([[8, 2]])).energy)
    1.0 0.0
    """

    def divide(values: AnyArray, limit: AnyArray | None) -> Any:
        limit = jnp.asarray(jnp.inf if limit is None else limit)
        values = jnp.where(jnp.isposinf(limit), 0.0, jnp.asarray(values) / limit)
        return jnp.where(jnp.isfinite(values), values, UNPRICED)

    limits = budget._asdict()
    rows = dict(zip(Cost._fields, tables(table), strict=False))
    divided = {name: _between_allowed(divide(values, limits[name]), bounds) for name, values in rows.items()}
    none = jnp.zeros(())
    fixed = {
        name: divide(none if extra is None else extra, limits[name]) for name, extra in table.fixed._asdict().items()
    }
    lifetimes = table.lifetimes
    if lifetimes is not None:
        lifetimes = lifetimes._replace(elements=divide(lifetimes.elements, limits["memory"]))
    return CostTable(**divided, fixed=Cost(**fixed), lifetimes=lifetimes)


def normalised_cost(costs: CostTable, policy: Int[Array, "*n L 2"] | Float[Array, "*n L 2"]) -> Float[Array, "*n R"]:
    """Returns a policy's cost of each resource as a fraction of its limit; R resources, those without a limit at 0.

    Args:
      costs: of `normalise_costs`.
    """
    cost = policy_cost(costs, policy)
    return jnp.stack([getattr(cost, name) for name in _known(costs)], axis=-1)


def fits_limits(costs: CostTable, policy: Int[Array, "*n L 2"]) -> Bool[Array, "*n"]:
    """Tests policies with `haqjax.policies.budgets.fits` where every limit is 1: those of `normalise_costs`."""
    known = _known(costs)
    limits: Any = (1.0 if name in known else None for name in Cost._fields)
    return fits(policy_cost(costs, policy), Budget(*limits))


def fill_budget(
    preference: Float[Array, "*n L 2"], costs: CostTable, bounds: Bounds, most: float = jnp.inf
) -> Int[Array, "*n L 2"]:
    """Makes the policy `floor(preference + shift)` with the greatest shift, the same everywhere, within the budget.

    Entries rise or fall in the order of their fractional parts: with a policy plus random fractions they do so in
    random order. Where fewer bits never cost more, the shift is the greatest there is; it is bisected.

    Args:
      preference: in ranks, see `haqjax.policies.bounds.to_rank`.
      costs: of `normalise_costs`.
      bounds: the widths there are.
      most: greatest shift; at 0 policies are only lowered.

    Returns:
      Policies within the bounds. Where even the lowest exceeds the budget, that one.

    >>> from haqjax.policies.bounds import make_bounds
    >>> import numpy as np
    >>> bits = np.arange(1.0, 9.0)
    >>> costs = np.broadcast_to(bits[:, None] * bits, (2, 8, 8))
    >>> free = make_bounds(2, pinned={})
    >>> costs = normalise_costs(CostTable(costs, costs, costs, Cost(0.0, 0.0, 0.0)), free, Budget(48.0, None, None))
    >>> fill_budget(jnp.array([[2.2, 4.0], [0.9, 1.8]]), costs, free).tolist()
    [[5, 7], [3, 4]]
    """
    top = lead(ladder(bounds)[1] - 1, preference)

    def shifted(shift: Float[Array, "*n"]) -> Int[Array, "*n L 2"]:
        rank = jnp.floor(preference + shift[..., None, None]).astype(jnp.int32)
        return follow(at_rank(jnp.clip(rank, 0, top), bounds), bounds)

    low = -preference.max(axis=(-2, -1)) - 1
    high = jnp.minimum(WIDTHS - preference.min(axis=(-2, -1)), most)
    shift = bisect(lambda shift: fits_limits(costs, shifted(shift)), low, high, STEPS)
    return shifted(jnp.where(fits_limits(costs, shifted(high)), high, shift))


def _known(costs: CostTable) -> list[str]:
    """Names the resources that a table has costs of."""
    unknown = {"bops": costs.bops is None, "memory": costs.lifetimes is None}
    return [name for name in Cost._fields if not unknown.get(name)]


def _between_allowed(values: Float[Array, "L 8 8"], bounds: Bounds) -> Any:
    """Puts every entry on the line between the nearest allowed ones, along both axes."""
    widths, _ = ladder(bounds)
    width = jnp.arange(1, WIDTHS + 1).reshape(1, 1, 1, -1)
    steps = widths[..., None]
    below = jnp.max(jnp.where(steps <= width, steps, 0), axis=-2)
    above = jnp.min(jnp.where(steps >= width, steps, WIDTHS + 1), axis=-2)
    below, above = jnp.where(below > 0, below, above), jnp.where(above <= WIDTHS, above, below)
    fraction = jnp.clip((width[0] - below) / jnp.maximum(above - below, 1), 0, 1)
    for column, axis in ((WEIGHT, 1), (ACTIVATION, 2)):
        low, high, part = (jnp.expand_dims(x[:, column], 3 - axis) for x in (below, above, fraction))
        low, high = (jnp.take_along_axis(values, jnp.broadcast_to(end - 1, values.shape), axis) for end in (low, high))
        values = (1 - part) * low + part * high
    return values
