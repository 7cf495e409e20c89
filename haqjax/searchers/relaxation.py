"""Continuous relaxation: fractional bits go down the gradient of loss and cost together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.policies.bisection import bisect
from haqjax.policies.bounds import follow, ladder
from haqjax.policies.budget_fill import normalise_costs, normalised_cost
from haqjax.types import Bounds, Budget, CostTable

STEPS = 100
RATE = 0.1  # of Adam at the start, in ranks a step; falls to a hundredth along a cosine
PENALTY = 50.0  # quadratic: for the square of a logarithm of cost over limit
DUAL_RATE = 1.0  # by how much a multiplier rises a step, for one unit of that logarithm
TINY = 1e-6  # nats, and normalised costs: keeps logarithms finite
BISECTIONS = 20


class Relaxation(NamedTuple):
    """State of the optimisation, which a step changes."""

    rank: Float[Array, "L 2"]
    adam: optax.OptState
    multiplier: Float[Array, "R"]


def optimise_bits(
    soft_loss: jax.tree_util.Partial,
    table: CostTable,
    bounds: Bounds,
    budgets: Budget,
    key: PRNGKeyArray,
    steps: int | Int[Array, ""] = STEPS,
) -> Float[Array, "B L 2"]:
    """Finds continuous bits of low loss under each of some budgets: loss and cost in one gradient, a front in one call.

    Args:
      soft_loss: bits float [L, 2] and the number of a step -> loss, not negative; see
        `haqjax.evaluation.make_soft_loss`.
      table, bounds: as for `haqjax.project`.
      budgets: limits, each [B].
      key: of the batches' order.
      steps: traced: another number does not compile again.

    Returns:
      Bits between those that are allowed, before any rounding. They may exceed the budget a little.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.types import Cost
    >>> import numpy as np
    >>> product = np.broadcast_to(np.arange(1.0, 9.0)[:, None] * np.arange(1.0, 9.0), (2, 8, 8))
    >>> table = CostTable(product, product, product, Cost(0.0, 0.0, 0.0))
    >>> soft_loss = jax.tree_util.Partial(lambda bits, step: jnp.exp2(-bits).sum())
    >>> budgets = Budget(jnp.array([32.0, 72.0]), None, None)
    >>> free = make_bounds(2, pinned={})
    >>> print(optimise_bits(soft_loss, table, free, budgets, jax.random.key(0)).mean(axis=(1, 2)).round())
    [4. 6.]
    """
    rank = descend(soft_loss, table, bounds, budgets, key, steps)
    return jax.vmap(soft_bits, in_axes=(0, None))(rank, bounds)


@jax.jit
def descend(
    soft_loss: jax.tree_util.Partial,
    table: CostTable,
    bounds: Bounds,
    budgets: Budget,
    key: PRNGKeyArray,
    steps: int | Int[Array, ""],
) -> Float[Array, "B L 2"]:
    """Runs `optimise_bits`, in ranks.

    The logarithm of the loss goes down Adam's steps (Kingma and Ba 2015), with an augmented Lagrangian for the
    logarithms of cost over limit (Nocedal and Wright 2006, section 17.4, equation 17.65): both are then free of scale,
    so that the same numbers serve all budgets. It starts where one fraction of all ranges of widths just fits.
    """
    first = jax.random.randint(key, (), 0, 1 << 20)

    def one(budget: Budget) -> Float[Array, "L 2"]:
        costs = normalise_costs(table, bounds, budget)
        _, start = find_boundary(costs, bounds)
        resources = normalised_cost(costs, start).shape[-1]
        state = Relaxation(start, _ADAM.init(start), jnp.zeros(resources))
        step = functools.partial(_step, soft_loss, costs, bounds, first, jnp.asarray(steps))
        return jax.lax.fori_loop(0, steps, step, state).rank

    # On a CPU convolutions side by side are 10 times slower than one after another.
    return jax.lax.map(one, budgets) if jax.default_backend() == "cpu" else jax.vmap(one)(budgets)


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)


def _step(
    soft_loss: jax.tree_util.Partial,
    costs: CostTable,
    bounds: Bounds,
    first: Int[Array, ""],
    steps: Int[Array, ""],
    index: Int[Array, ""],
    state: Relaxation,
) -> Relaxation:
    def lagrangian(rank: Float[Array, "L 2"]) -> tuple[Float[Array, ""], Float[Array, "R"]]:
        bits = soft_bits(rank, bounds)
        over = jnp.log(jnp.maximum(normalised_cost(costs, bits), TINY))
        pressed = jnp.maximum(state.multiplier + PENALTY * over, 0)
        loss = jnp.log(jnp.maximum(soft_loss(bits, first + index), 0) + TINY)
        return loss + ((pressed**2 - state.multiplier**2) / (2 * PENALTY)).sum(), over

    gradient, over = jax.grad(lagrangian, has_aux=True)(state.rank)
    direction, adam = _ADAM.update(jnp.nan_to_num(gradient), state.adam)
    rate = RATE * (0.01 + 0.99 * (1 + jnp.cos(jnp.pi * index / steps)) / 2)
    rank = jnp.clip(state.rank - rate * direction, 0, ladder(bounds)[1] - 1)
    return Relaxation(rank, adam, jnp.maximum(state.multiplier + DUAL_RATE * over, 0))


def soft_bits(rank: Float[Array, "L 2"], bounds: Bounds) -> Float[Array, "L 2"]:
    """Computes `haqjax.policies.bounds.at_rank` of fractional ranks: on a line between two allowed widths.

    >>> from haqjax.policies.bounds import make_bounds
    >>> print(soft_bits(jnp.array([[0.5, 6.0]]), make_bounds(1, pinned={})))
    [[2.5 8. ]]
    """
    widths, count = ladder(bounds)
    below = jnp.clip(jnp.floor(jax.lax.stop_gradient(rank)).astype(jnp.int32), 0, jnp.maximum(count - 2, 0))
    low, high = (jnp.take_along_axis(widths, (below + up)[..., None], axis=-1)[..., 0] for up in (0, 1))
    return follow(low + (rank - below) * (high - low), bounds)


def find_boundary(costs: CostTable, bounds: Bounds) -> tuple[Float[Array, ""], Float[Array, "L 2"]]:
    """Takes the same fraction of every range of ranks, as much as fits the budget; returns it, and the ranks."""
    top = (ladder(bounds)[1] - 1).astype(jnp.float32)

    def fits(fraction: Float[Array, ""]) -> Bool[Array, ""]:
        return (normalised_cost(costs, soft_bits(fraction * top, bounds)) <= 1).all()

    fraction = bisect(fits, jnp.float32(0), jnp.float32(1), BISECTIONS)
    return fraction, fraction * top
