"""k-means with one shared value held at zero, for weights that hold zeros: what was pruned stays pruned."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from haqjax.quantizers.kmeans import CLUSTERS, Extent, Sorted

ROUNDS = 16  # of Lloyd's algorithm, from the clustering of least error without the constraint


def hold_zero(ordered: Sorted, shared: Float[Array, "8 L 256"], zeros: Bool[Array, "L"]) -> Float[Array, "8 L 256"]:
    """Moves one shared value to zero in each layer whose weights hold a zero, and fits the others to that.

    The value nearest to zero is the one; then, in turn, each weight goes to the nearest value and each other value to
    the mean of its weights (Lloyd 1982), which never makes the squared error greater. Other layers stay as they are.

    Args:
      ordered: the weights, see `haqjax.quantizers.kmeans.sort_values`.
      shared: from `haqjax.quantizers.kmeans.shared_values`; infinity where a row has no more clusters.
      zeros: layers whose weights hold a zero.
    """

    def one(layer: tuple[Extent, Array, Array]) -> Array:
        extent, values, holds = layer
        return jax.lax.cond(holds, lambda: jax.vmap(lambda row: _fit(ordered, extent, row))(values), lambda: values)

    return jnp.swapaxes(jax.lax.map(one, (ordered.extent, jnp.swapaxes(shared, 0, 1), zeros)), 0, 1)


def _fit(ordered: Sorted, extent: Extent, values: Float[Array, "256"]) -> Float[Array, "256"]:
    """Runs Lloyd's algorithm on one layer at one width."""
    held = jnp.arange(CLUSTERS) == jnp.argmin(jnp.abs(values))

    def update(_: Array, values: Array) -> Array:
        bounds = _find_bounds(ordered, extent, values)
        low, high = extent.begin + bounds[:-1], extent.begin + bounds[1:]
        count, total = ordered.members[high] - ordered.members[low], ordered.total[high] - ordered.total[low]
        mean = jnp.clip(total / jnp.maximum(count, 1), ordered.value[low + 1], ordered.value[high])
        return jnp.where((count > 0) & ~held, mean.astype(values.dtype), values)

    return jax.lax.fori_loop(0, ROUNDS, update, jnp.where(held, 0, values))


def _find_bounds(ordered: Sorted, extent: Extent, values: Float[Array, "256"]) -> Int[Array, "257"]:
    """Counts the distinct weights below each midpoint of two shared values, by bisection; all where there is none."""
    exact = values.astype(jnp.float64)
    middle = jnp.append((exact[1:] + exact[:-1]) / 2, jnp.inf)

    def bisect(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        at = (low + high + 1) // 2
        below = ordered.value[extent.begin + at] < middle
        return jnp.where(below, at, low), jnp.where(below, high, at - 1)

    ends = jnp.zeros(CLUSTERS, jnp.int32), jnp.full(CLUSTERS, extent.size, jnp.int32)
    low, _ = jax.lax.fori_loop(0, len(ordered.value).bit_length(), bisect, ends)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.where(jnp.isfinite(middle), low, extent.size)])
