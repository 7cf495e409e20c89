"""How a policy is lowered until it fits a budget."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from haqjax.policies.actions import uniform
from haqjax.policies.bisection import bisect
from haqjax.policies.bounds import at_rank, clip_policy, follow, lead, to_rank
from haqjax.policies.budgets import fits
from haqjax.policies.cost import check_shape, policy_cost
from haqjax.types import WEIGHT, WIDTHS, Bounds, Budget, CostTable, Projection
from haqjax.widths import check_widths


def project(policy: Int[Array, "*n L 2"], table: CostTable, bounds: Bounds, budget: Budget) -> Projection:
    """Lowers bits one at a time, last layer first, until the policy fits the budget.

    The order is HAQ's (Wang et al. 2019, section 3.3): from the last layer to the first, at each layer activations,
    then weights, one bit each; then again. Entries at their lowest are passed over. That makes the first `m` of a
    fixed sequence of steps, and `m` is bisected: about ten prices instead of hundreds. Where only some widths are
    allowed, a step goes to the next of them; tied layers take theirs together, at the turn of the first.

    Where fewer bits never cost more, this is the same policy as the loop's. In a table where they sometimes do
    (a measured one), the policy still fits, and one step less would not; but the loop might have stopped earlier.

    Args:
      policy: int32 [..., L, 2]; clipped into the bounds first.
      table: costs, each [L, 8, 8].
      bounds: the bits that each entry may have; pinned entries stay.
      budget: the limits.

    Returns:
      The lowered policy, whether it fits, and its cost, leading axes as the policy's. A policy that does not fit even
      at `bounds.low` comes back as `bounds.low` with `feasible` false; outside of `jit` that is a warning, too.

    Raises:
      ValueError: the policy has another number of layers than the table; bits outside 1..8, outside of `jit`.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.policies.budgets import budget as make_budget
    >>> from haqjax.types import Cost
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits[None, :], (2, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> project(
    ...     jnp.full((2, 2), 8), table, make_bounds(2, pinned={}), make_budget(table, latency_s=113.0)
    ... ).policy.tolist()
    [[8, 8], [7, 7]]
    """
    policy = policy if isinstance(policy, jax.Array) else np.asarray(policy)
    check_shape(table, policy)
    check_widths(policy, names=table.names, leave=False)
    found = _project(policy, table, bounds, budget)
    if not isinstance(found.feasible, jax.core.Tracer) and not np.all(found.feasible):
        warnings.warn("no policy fits this budget: the lowest one comes back, with `feasible` false", stacklevel=2)
    return found


def _project(policy: Int[Array, "*n L 2"], table: CostTable, bounds: Bounds, budget: Budget) -> Projection:
    start = clip_policy(policy, bounds)
    room = start - lead(bounds.low, policy) if bounds.allowed is None else to_rank(start, bounds)
    turn = lead(follow(jnp.asarray(_turns(len(table))), bounds), policy)
    sweep = 2 * len(table)
    last = sweep * (WIDTHS - 1)  # after so many steps everything is at its lowest

    def lower(steps: Int[Array, "*n"]) -> Int[Array, "*n L 2"]:
        # An entry's turn comes once a sweep; it falls by as many widths as there were turns, as far as there is room.
        sweeps, rest = steps[..., None, None] // sweep, steps[..., None, None] % sweep
        fall = jnp.minimum(room, sweeps + (turn < rest))
        return start - fall if bounds.allowed is None else at_rank(room - fall, bounds)

    # Towards no step at all, which is -1 here: the ends are not asked.
    every, none = (jnp.full(policy.shape[:-2], end, jnp.int32) for end in (last, -1))
    steps = math.ceil(math.log2(last + 1))
    lowered = lower(bisect(lambda n: fits(policy_cost(table, lower(n)), budget), every, none, steps))
    cost = policy_cost(table, lowered)
    return Projection(lowered, fits(cost, budget), cost)


def best_uniform(table: CostTable, bounds: Bounds, budget: Budget) -> Projection:
    """Finds the policy with the most bits that are the same everywhere, within the budget; pinned layers keep theirs.

    Returns:
      The policy [L, 2], its cost, and whether it fits. Where none fits, the lowest one with `feasible` false.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.policies.budgets import budget as make_budget
    >>> from haqjax.types import Cost
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits[None, :], (2, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> best_uniform(table, make_bounds(2, pinned={}), make_budget(table, latency=0.6)).policy.tolist()
    [[6, 6], [6, 6]]
    """
    policies = jax.vmap(uniform, in_axes=(0, None))(jnp.arange(WIDTHS, 0, -1), bounds)
    cost = policy_cost(table, policies)
    feasible = fits(cost, budget)
    best = jnp.where(feasible.any(), jnp.argmax(feasible), WIDTHS - 1)
    return jax.tree.map(lambda x: x[best], Projection(policies, feasible, cost))


def _turns(count: int) -> Int[np.ndarray, "L 2"]:
    """When each entry's turn comes within a sweep: last layer first, activations before weights."""
    layer = np.arange(count)[::-1]
    turns = np.stack([2 * layer, 2 * layer], axis=-1)
    turns[:, WEIGHT] += 1
    return turns
