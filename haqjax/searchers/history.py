"""History of a search: policies that were evaluated, with their rewards, in arrays of fixed size.

Import the module as a name: `history.note(...)`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8

CAPACITY = 4096  # policies


class History(NamedTuple):
    """A ring of evaluations, the oldest overwritten first."""

    policies: Int8[Array, "C L 2"]
    rewards: Float[Array, "C"]
    total: Int[Array, ""]  # of all evaluations; those beyond the capacity are the latest


def empty(layers: int, capacity: int = CAPACITY) -> History:
    """Makes a history without evaluations.

    >>> evaluated(empty(3, 10))[0].shape
    (0, 3, 2)
    """
    return History(jnp.zeros((capacity, layers, 2), jnp.int8), jnp.zeros(capacity), jnp.int32(0))


def note(history: History, policies: Int[Array, "N L 2"], rewards: Float[Array, "N"]) -> History:
    """Adds evaluations.

    >>> history = note(empty(1, 3), jnp.full((4, 1, 2), 8), jnp.arange(4.0))
    >>> history.rewards.tolist(), int(history.total)
    ([3.0, 1.0, 2.0], 4)
    """
    capacity = len(history.policies)
    latest = slice(max(len(rewards) - capacity, 0), None)
    at = ((history.total + jnp.arange(len(rewards))) % capacity)[latest]
    return History(
        jnp.asarray(history.policies).at[at].set(jnp.asarray(policies, jnp.int8)[latest]),
        jnp.asarray(history.rewards).at[at].set(jnp.asarray(rewards, jnp.float32)[latest]),
        jnp.int32(history.total + len(rewards)),
    )


def is_new(history: History, policies: Int[Array, "N L 2"]) -> Bool[Array, "N"]:
    """Tells which policies are neither in the history nor stand earlier among these.

    >>> policies = jnp.array([[[2, 3]], [[3, 2]], [[2, 3]]])
    >>> is_new(note(empty(1), policies[1:2], jnp.zeros(1)), policies).tolist()
    [True, False, False]
    """
    rows = policies.astype(jnp.int8)
    noted = (rows[:, None] == history.policies[None]).all(axis=(-2, -1))
    noted &= (jnp.arange(len(history.policies)) < history.total)[None]
    earlier = jnp.tril((rows[:, None] == rows[None]).all(axis=(-2, -1)), -1)
    return ~noted.any(axis=-1) & ~earlier.any(axis=-1)


def first_new(history: History, candidates: Int[Array, "K L 2"], count: int) -> Int[Array, "N L 2"]:
    """Returns the first `count` candidates that are new; where there are too few, others after them."""
    return candidates[jnp.argsort(~is_new(history, candidates), stable=True)[:count]]


def evaluated(history: History) -> tuple[Int[np.ndarray, "N L 2"], Float[np.ndarray, "N"]]:
    """Returns the policies of the history and their rewards, on the host."""
    size = min(int(history.total), len(history.rewards))
    return np.asarray(history.policies)[:size].astype(np.int32), np.asarray(history.rewards)[:size]
