"""Parts of HAQ's extensions: a start near a policy, a memory of the best episodes, swaps of bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.agent.noise import truncated_normal
from haqjax.agent.replay import ReplayState
from haqjax.policies.actions import to_actions
from haqjax.policies.bounds import at_rank, to_rank
from haqjax.types import Bounds, Transition

LOWEST = -1e9  # reward of no policy
SPREAD = 0.15  # of actions around the policy that a search starts near


class Kept(NamedTuple):
    """The best episodes so far."""

    rows: Transition  # [K, 2L]
    rewards: Float[Array, "K"]


class Best(NamedTuple):
    """The best policy so far."""

    policy: Int[Array, "L 2"]
    reward: Float[Array, ""]


def near(policy: Int[Array, "L 2"], bounds: Bounds, key: PRNGKeyArray, count: int) -> Float[Array, "N L 2"]:
    """Draws actions near those of a policy."""
    actions = to_actions(policy, bounds)
    return truncated_normal(key, jnp.broadcast_to(actions, (count, *actions.shape)), jnp.float32(SPREAD))


def swap(best: Best, bounds: Bounds, key: PRNGKeyArray, count: int) -> Float[Array, "N L 2"]:
    """Swaps bits: the best policy with one entry a width wider and another one narrower, both at random.

    >>> from haqjax.policies.bounds import make_bounds
    >>> best = Best(jnp.full((3, 2), 4), jnp.float32(0))
    >>> swap(best, make_bounds(3, pinned={}), jax.random.key(0), 5).shape
    (5, 3, 2)
    """
    wider_key, narrower_key = jax.random.split(key)
    rank, free = to_rank(best.policy, bounds).ravel(), (bounds.high > bounds.low).ravel()
    wide = jax.random.categorical(wider_key, jnp.where(free, 0.0, -jnp.inf), shape=(count,))
    narrow = jax.random.categorical(narrower_key, jnp.where(free & (rank > 0), 0.0, -jnp.inf), shape=(count,))
    rows = jnp.arange(count)
    ranks = jnp.broadcast_to(rank, (count, rank.size)).at[rows, wide].add(1).at[rows, narrow].add(-1)
    shape = (count, *best.policy.shape)
    widest = to_rank(bounds.high, bounds)[None]
    return to_actions(at_rank(jnp.clip(ranks.reshape(shape), 0, widest), bounds), bounds)


def update_best(best: Best, policies: Int[Array, "N L 2"], rewards: Float[Array, "N"]) -> Best:
    """Returns the best of it and N others."""
    first = jnp.argmax(rewards)
    better = rewards[first] > best.reward
    return Best(jnp.where(better, policies[first], best.policy), jnp.where(better, rewards[first], best.reward))


def empty_kept(storage: Transition, count: int, decisions: int) -> Kept:
    """Room for `count` episodes with rows as a memory's."""
    rows = jax.tree.map(lambda x: jnp.zeros((count, decisions, *x.shape[1:]), x.dtype), storage)
    return Kept(rows, jnp.full(count, LOWEST))


def keep(kept: Kept, rows: Transition, rewards: Float[Array, "N"]) -> Kept:
    """Keeps the best of those kept and N others, whose rows are [N 2L] in one axis."""
    count = kept.rewards.size
    if not count:
        return kept
    shaped = jax.tree.map(lambda x: x.reshape(rewards.size, -1, *x.shape[1:]), rows)
    together = jax.tree.map(lambda *x: jnp.concatenate(x), kept.rows, shaped)
    best, at = jax.lax.top_k(jnp.concatenate([kept.rewards, rewards]), count)
    return Kept(jax.tree.map(lambda x: x[at], together), best)


def with_kept(memory: ReplayState, kept: Kept) -> ReplayState:
    """Puts the episodes kept before the rows of the memory; they are all there once learning begins."""
    if not kept.rewards.size:
        return memory
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept.rows)
    storage = jax.tree.map(lambda *x: jnp.concatenate(x), flat, memory.storage)
    return memory._replace(storage=storage, size=memory.size + flat.reward.size)
