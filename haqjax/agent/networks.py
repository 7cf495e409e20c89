"""Actor and critic, as functions of their parameters, for one observation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

LAST = 3e-3  # range of the output layers at the start (Lillicrap et al. 2016, section 7)


class Dense(NamedTuple):
    """A layer `x @ weight + bias`."""

    weight: Float[Array, "i o"]
    bias: Float[Array, "o"]


class Actor(NamedTuple):
    """Parameters of the actor: observation -> hidden -> hidden -> action in (0, 1)."""

    first: Dense
    second: Dense
    last: Dense


class Critic(NamedTuple):
    """Parameters of the critic: observation and action, each through its own layer, added -> hidden -> value."""

    first: Dense
    action: Dense
    second: Dense
    last: Dense


def make_actor(key: PRNGKeyArray, size: int, hidden: tuple[int, int]) -> Actor:
    """Draws an actor for observations of `size` numbers.

    >>> actor = make_actor(jax.random.key(0), 10, (400, 300))
    >>> sum(x.size for x in jax.tree.leaves(actor))
    125001
    """
    first_key, second_key, last_key = jax.random.split(key, 3)
    return Actor(
        _dense(first_key, size, hidden[0]),
        _dense(second_key, hidden[0], hidden[1]),
        _dense(last_key, hidden[1], 1, LAST),
    )


def make_critic(key: PRNGKeyArray, size: int, hidden: tuple[int, int]) -> Critic:
    """Draws a critic for observations of `size` numbers and one action."""
    first_key, action_key, second_key, last_key = jax.random.split(key, 4)
    return Critic(
        _dense(first_key, size, hidden[0]),
        _dense(action_key, 1, hidden[0]),
        _dense(second_key, hidden[0], hidden[1]),
        _dense(last_key, hidden[1], 1, LAST),
    )


def choose(actor: Actor, observation: Float[Array, "s"]) -> Float[Array, ""]:
    """Returns the actor's action, in (0, 1)."""
    hidden = jax.nn.relu(_apply(actor.first, observation))
    hidden = jax.nn.relu(_apply(actor.second, hidden))
    return jax.nn.sigmoid(_apply(actor.last, hidden)[0])


def value(critic: Critic, observation: Float[Array, "s"], action: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the return that the critic expects of an action on an observation."""
    hidden = jax.nn.relu(_apply(critic.first, observation) + _apply(critic.action, action[None]))
    hidden = jax.nn.relu(_apply(critic.second, hidden))
    return _apply(critic.last, hidden)[0]


def _apply(layer: Dense, x: Float[Array, "i"]) -> Float[Array, "o"]:
    return x @ layer.weight + layer.bias


def _dense(key: PRNGKeyArray, inputs: int, outputs: int, limit: float | None = None) -> Dense:
    """Draws a layer uniformly within `limit`, or within one over the root of its inputs (Lillicrap et al. 2016)."""
    weight_key, bias_key = jax.random.split(key)
    limit = inputs**-0.5 if limit is None else limit
    return Dense(
        jax.random.uniform(weight_key, (inputs, outputs), jnp.float32, -limit, limit),
        jax.random.uniform(bias_key, (outputs,), jnp.float32, -limit, limit),
    )
