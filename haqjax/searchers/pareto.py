"""Non-dominated sorting and crowding distance (Deb et al. 2002)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

EDGE = 1e9  # crowding distance at the ends of a front: kept before all others


def sort_fronts(values: Float[Array, "M K"]) -> Int[Array, "M"]:
    """Sorts rows into fronts: 0 where no other row is better, 1 where none is once those are gone, and so on.

    One row beats another if no value of it is greater and one is less (Deb et al. 2002, section III A).

    >>> sort_fronts(jnp.array([[1.0, 3.0], [2.0, 2.0], [2.0, 4.0], [3.0, 4.0]])).tolist()
    [0, 0, 1, 2]
    """
    no_worse = (values[:, None] <= values[None]).all(axis=-1)
    beats = no_worse & (values[:, None] < values[None]).any(axis=-1)

    def peel(state: tuple[Array, Array]) -> tuple[Array, Array]:
        front, level = state
        left = front < 0
        free = left & ~(beats & left[:, None]).any(axis=0)
        return jnp.where(free, level, front), level + 1

    start = (jnp.full(len(values), -1), jnp.int32(0))
    return jax.lax.while_loop(lambda state: (state[0] < 0).any(), peel, start)[0]


def crowding(values: Float[Array, "M K"], front: Int[Array, "M"]) -> Float[Array, "M"]:
    """Computes how far apart the neighbours of each row on its front are, summed over values (section III B).

    Each value counts as a fraction of its span on the front; the ends of a front are farther apart than all others.

    >>> crowding(jnp.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]]), jnp.zeros(3, int))[1].item()
    2.0
    """

    def along(value: Float[Array, "M"]) -> Float[Array, "M"]:
        order = jnp.lexsort((value, front))
        value, level = value[order], front[order]
        rows = len(value)
        least, most = (f(value, level, rows) for f in (jax.ops.segment_min, jax.ops.segment_max))
        span = (most - least)[level]
        gap = (jnp.roll(value, -1) - jnp.roll(value, 1)) / jnp.where(span > 0, span, 1)
        at = jnp.arange(rows)
        first = (at == 0) | (level != jnp.roll(level, 1))
        last = (at == rows - 1) | (level != jnp.roll(level, -1))
        return jnp.zeros(rows).at[order].set(jnp.where(first | last, EDGE, gap))

    return jax.vmap(along, in_axes=1, out_axes=1)(values).sum(axis=1)
