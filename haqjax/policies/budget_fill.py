"""Policies that use a budget up: one shift of all preferences, as far as the budget goes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from haqjax.policies.bounds import at_rank, follow, ladder, lead
from haqjax.policies.budgets import TOLERANCE
from haqjax.policies.cost import policy_cost, tables
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, AnyArray, Bounds, Budget, Cost, CostTable

UNPRICED = 2.0  # share of a limit that a cost counts as which is no number: more than there is
HALVINGS = 24  # of the shift: to a millionth of a width


def normalise_costs(table: CostTable, bounds: Bounds, budget: Budget) -> CostTable:
    """Costs as shares of their limits; what is not limited costs nothing.

    Between two widths that are allowed the cost lies on a line, whatever the table says of widths that are not. So
    every number is finite, and `haqjax.policies.cost.policy_cost` of fractional bits mixes only costs that there are.

    >>> from haqjax.policies.bounds import make_bounds
    >>> import numpy as np
    >>> costs = np.broadcast_to(np.arange(1.0, 9.0), (1, 8, 8))
    >>> table = CostTable(costs, np.nan * costs, costs, Cost(2.0, np.nan, 0.0))
    >>> shares = normalise_costs(table, make_bounds(1, pinned={}), Budget(jnp.float32(4.0), jnp.inf, jnp.inf))
    >>> print(policy_cost(shares, jnp.array([[8, 2]])).latency, policy_cost(shares, jnp.array([[8, 2]])).energy)
    1.0 0.0
    """

    def share(values: AnyArray, limit: AnyArray | None) -> Any:
        limit = jnp.asarray(jnp.inf if limit is None else limit)
        values = jnp.where(jnp.isposinf(limit), 0.0, jnp.asarray(values) / limit)
        return jnp.where(jnp.isfinite(values), values, UNPRICED)

    limits = budget._asdict()
    rows = dict(zip(Cost._fields, tables(table), strict=False))
    spread = {name: _between_allowed(share(values, limits[name]), bounds) for name, values in rows.items()}
    none = jnp.zeros(())
    fixed = {
        name: share(none if extra is None else extra, limits[name]) for name, extra in table.fixed._asdict().items()
    }
    lifetimes = table.lifetimes
    if lifetimes is not None:
        lifetimes = lifetimes._replace(elements=share(lifetimes.elements, limits["memory"]))
    return CostTable(**spread, fixed=Cost(**fixed), lifetimes=lifetimes)


def normalised_cost(shares: CostTable, policy: Int[Array, "*n L 2"] | Float[Array, "*n L 2"]) -> Float[Array, "*n R"]:
    """What a policy spends of each limit; R resources, those without a limit at 0."""
    cost = policy_cost(shares, policy)
    unknown = {"bops": shares.bops is None, "memory": shares.lifetimes is None}
    return jnp.stack([value for name, value in cost._asdict().items() if not unknown.get(name)], axis=-1)


def is_within(shares: CostTable, policy: Int[Array, "*n L 2"]) -> Bool[Array, "*n"]:
    """Whether no limit is exceeded."""
    return (normalised_cost(shares, policy) <= 1 + TOLERANCE).all(axis=-1)


def fill_budget(
    preference: Float[Array, "*n L 2"], shares: CostTable, bounds: Bounds, most: float = jnp.inf
) -> Int[Array, "*n L 2"]:
    """The policy `floor(preference + shift)` with the greatest shift, the same everywhere, that the budget allows.

    Entries rise or fall in the order of their fractional parts: with a policy plus random fractions they do so in
    random order. Where fewer bits never cost more, the shift is the greatest there is; it is bisected.

    Args:
      preference: in ranks, see `haqjax.policies.bounds.to_rank`.
      shares: of `normalise_costs`.
      bounds: the widths there are.
      most: greatest shift; at 0 policies are only lowered.

    Returns:
      Policies within the bounds. Where even the lowest exceeds the budget, that one.

    >>> from haqjax.policies.bounds import make_bounds
    >>> import numpy as np
    >>> bits = np.arange(1.0, 9.0)
    >>> costs = np.broadcast_to(bits[:, None] * bits, (2, 8, 8))
    >>> free = make_bounds(2, pinned={})
    >>> shares = normalise_costs(CostTable(costs, costs, costs, Cost(0.0, 0.0, 0.0)), free, Budget(48.0, None, None))
    >>> fill_budget(jnp.array([[2.2, 4.0], [0.9, 1.8]]), shares, free).tolist()
    [[5, 7], [3, 4]]
    """
    top = lead(ladder(bounds)[1] - 1, preference)

    def shifted(shift: Float[Array, "*n"]) -> Int[Array, "*n L 2"]:
        rank = jnp.floor(preference + shift[..., None, None]).astype(jnp.int32)
        return follow(at_rank(jnp.clip(rank, 0, top), bounds), bounds)

    def halve(_: int, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span
        middle = (low + high) / 2
        fits = is_within(shares, shifted(middle))
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low = -preference.max(axis=(-2, -1)) - 1
    high = jnp.minimum(WIDTHS - preference.min(axis=(-2, -1)), most)
    shift, _ = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    return shifted(jnp.where(is_within(shares, shifted(high)), high, shift))


def _between_allowed(values: Float[Array, "L 8 8"], bounds: Bounds) -> Any:
    """The table with every entry on the line between the nearest allowed ones, along both axes."""
    widths, _ = ladder(bounds)
    width = jnp.arange(1, WIDTHS + 1).reshape(1, 1, 1, -1)
    steps = widths[..., None]
    below = jnp.max(jnp.where(steps <= width, steps, 0), axis=-2)
    above = jnp.min(jnp.where(steps >= width, steps, WIDTHS + 1), axis=-2)
    below, above = jnp.where(below > 0, below, above), jnp.where(above <= WIDTHS, above, below)
    share = (width[0] - below) / jnp.maximum(above - below, 1)
    share = jnp.clip(share, 0, 1)
    for column, axis in ((WEIGHT, 1), (ACTIVATION, 2)):
        low, high, part = (jnp.expand_dims(x[:, column], 3 - axis) for x in (below, above, share))
        low, high = (jnp.take_along_axis(values, jnp.broadcast_to(end - 1, values.shape), axis) for end in (low, high))
        values = (1 - part) * low + part * high
    return values
