"""Exploration noise: a truncated normal distribution around the actor's action."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

LEAST_SIGMA = 1e-6  # narrower would divide by zero; no action is that sharp


def truncated_normal(key: PRNGKeyArray, mean: Float[Array, "*n"], sigma: Float[Array, ""]) -> Float[Array, "*n"]:
    """Draws from a normal distribution cut off outside [0, 1].

    Args:
      key: consumed.
      mean: of the normal before the cut, within [0, 1].
      sigma: its standard deviation; zero gives the mean itself.

    >>> truncated_normal(jax.random.key(0), jnp.asarray([0.0, 0.25, 1.0]), jnp.asarray(0.0)).round(4).tolist()
    [0.0, 0.25, 1.0]
    """
    sigma = jnp.broadcast_to(jnp.maximum(sigma, LEAST_SIGMA), jnp.shape(mean))
    draw = jax.random.truncated_normal(key, (0 - mean) / sigma, (1 - mean) / sigma)
    return jnp.clip(mean + sigma * draw, 0, 1)
