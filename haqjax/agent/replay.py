"""Replay buffer: the latest decisions, from which the agent learns again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from haqjax.types import Transition


class ReplayState(NamedTuple):
    """Ring of decisions."""

    storage: Transition  # leading axis: capacity
    cursor: Int[Array, ""]  # where the next row goes
    size: Int[Array, ""]  # rows written so far


def make_replay(capacity: int, observation_size: int) -> ReplayState:
    """Makes an empty memory of `capacity` decisions.

    >>> make_replay(100, 10).storage.observation.shape
    (100, 10)
    """
    if capacity < 1:
        raise ValueError(f"a memory of {capacity} decisions cannot hold one: capacity must be at least 1")
    scalars, rows = jnp.zeros(capacity), jnp.zeros((capacity, observation_size))
    return ReplayState(Transition(rows, scalars, scalars, rows, scalars), jnp.int32(0), jnp.int32(0))


def add(state: ReplayState, rows: Transition) -> ReplayState:
    """Writes rows over the oldest ones.

    Raises:
      ValueError: more rows than the memory holds.

    >>> rows = Transition(jnp.ones((2, 10)), jnp.ones(2), jnp.ones(2), jnp.ones((2, 10)), jnp.ones(2))
    >>> int(add(make_replay(100, 10), rows).size)
    2
    """
    capacity, count = state.storage.reward.shape[0], rows.reward.shape[0]
    if count > capacity:
        raise ValueError(f"cannot add {count} decisions to a memory of {capacity}")
    at = (state.cursor + jnp.arange(count)) % capacity
    storage = jax.tree.map(lambda old, new: old.at[at].set(new, unique_indices=True), state.storage, rows)
    return ReplayState(storage, (state.cursor + count) % capacity, jnp.minimum(state.size + count, capacity))


def sample(state: ReplayState, key: PRNGKeyArray, shape: tuple[int, ...]) -> Transition:
    """Draws decisions uniformly, with replacement, from the rows written so far.

    Args:
      state: a memory with at least one row; of an empty one the rows are zeros.
      key: consumed.
      shape: how many; the leading axes of the answer.
    """
    at = jax.random.randint(key, shape, 0, jnp.maximum(state.size, 1))
    return jax.tree.map(lambda rows: rows[at], state.storage)
