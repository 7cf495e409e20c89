"""What an actor of stochastic value gradients learns through: its walk, the loss and cost of it, what that misses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from haqjax.agent.networks import Actor, Critic, choose, value
from haqjax.policies.bounds import ladder, to_rank
from haqjax.policies.budget_fill import normalised_cost
from haqjax.searchers.haq_features import FIRST, observe
from haqjax.searchers.relaxation import PENALTY, TINY, soft_bits
from haqjax.types import WIDTHS, Bounds, CostTable

LEAST_TOTAL = 0.1  # of the loss of the model: what model and critic together count as at least


class Walk(NamedTuple):
    """Decisions of an actor, one after another: (layer 0, weights), (layer 0, activations), (layer 1, weights), ..."""

    observation: Float[Array, "2L f"]
    action: Float[Array, "2L"]  # in [0, 1]: the fraction of the widths that the entry may have
    rank: Float[Array, "L 2"]


class Missing(NamedTuple):
    """What a critic says the model misses: the sum of its values over a walk, scaled (Sunehag et al. 2018)."""

    critic: Critic
    mean: Float[Array, ""]  # of what was missing, nats
    deviation: Float[Array, ""]
    trust: Float[Array, ""]  # 0 to 1: the share of the variance that the critic foretold


def walk(actor: Actor, features: Float[Array, "2L g"], bounds: Bounds, noise: Float[Array, "L 2"]) -> Walk:
    """Walks the layers with continuous widths; differentiable by the actor, through the widths decided before, too.

    Args:
      noise: in ranks, added to what the actor chooses.
    """
    widths, count = ladder(bounds)
    top = (count - 1).astype(jnp.float32)
    strays = noise / jnp.maximum(top, 1)

    def decide(before: Float[Array, "1"], decision: tuple) -> tuple[Float[Array, "1"], tuple]:
        row, own_widths, last, stray = decision
        observation = jnp.concatenate([row, before])
        action = jnp.where(last > 0, jnp.clip(choose(actor, observation) + stray, 0, 1), 0)  # of one width: no choice
        bits = _lie_between(own_widths, action * last)
        return bits[None] / WIDTHS, (observation, action)

    rows = (features, widths.reshape(-1, WIDTHS).astype(jnp.float32), top.ravel(), strays.ravel())
    _, (observation, action) = jax.lax.scan(decide, jnp.full(1, FIRST), rows)
    return Walk(observation, action, action.reshape(top.shape) * top)


def lagrangian(
    soft_loss: jax.tree_util.Partial,
    walked: Walk,
    missing: Missing,
    costs: CostTable,
    bounds: Bounds,
    multiplier: Float[Array, "R"],
    index: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "R"]]:
    """Computes what a walk should make small, and the logarithms of its costs over their limits.

    It is the logarithm of the expected loss, to the first order, with an augmented Lagrangian for the budget, as in
    `haqjax.searchers.relaxation.descend`. The expected loss is that of the model on batch `index`, and what the critic
    says that it misses.
    """
    bits = soft_bits(walked.rank, bounds)
    over = jnp.log(jnp.maximum(normalised_cost(costs, bits), TINY))
    pressed = jnp.maximum(multiplier + PENALTY * over, 0)
    loss = jnp.maximum(soft_loss(bits, index), 0) + TINY
    total = loss + missing.trust * expect(missing, walked.observation, walked.action)
    scale = jax.lax.stop_gradient(jnp.maximum(total, LEAST_TOTAL * loss))
    return total / scale + ((pressed**2 - multiplier**2) / (2 * PENALTY)).sum(), over


def expect(missing: Missing, observation: Float[Array, "*n 2L f"], action: Float[Array, "*n 2L"]) -> Float[Array, "*n"]:
    """Returns what the critic expects the model to miss of walks, nats."""
    return missing.mean + missing.deviation * score(missing.critic, observation, action)


def score(critic: Critic, observation: Float[Array, "*n 2L f"], action: Float[Array, "*n 2L"]) -> Float[Array, "*n"]:
    """Adds up a critic's values over the decisions of each walk."""
    each = jax.vmap(value, (None, 0, 0))
    rows = observation.reshape(-1, observation.shape[-1])
    return each(critic, rows, action.ravel()).reshape(action.shape).sum(axis=-1)


def retrace(
    features: Float[Array, "2L g"], policies: Int[Array, "N L 2"], bounds: Bounds
) -> tuple[Float[Array, "N 2L f"], Float[Array, "N 2L"]]:
    """Returns the observations and actions of walks that end in these policies.

    >>> from haqjax.policies.bounds import make_bounds
    >>> observation, action = retrace(jnp.zeros((2, 3)), jnp.array([[[2, 8]]]), make_bounds(1, pinned={}))
    >>> observation[0, :, 3].tolist(), action[0].tolist()
    ([1.0, 0.25], [0.0, 1.0])
    """
    top = jnp.maximum(ladder(bounds)[1] - 1, 1)
    actions = to_rank(policies, bounds) / top[None]
    return observe(features, policies), actions.reshape(len(policies), -1)


def _lie_between(widths: Float[Array, "8"], rank: Float[Array, ""]) -> Float[Array, ""]:
    """Finds the fractional width of a fractional rank."""
    below = jnp.clip(jnp.floor(jax.lax.stop_gradient(rank)).astype(jnp.int32), 0, WIDTHS - 2)
    return widths[below] + (rank - below) * (widths[below + 1] - widths[below])
