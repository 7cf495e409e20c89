"""Clips of weights for each output channel: one clip a layer, spread over its channels in proportion to their size."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.graph import Layer


def channel_maximum(layer: Layer, weight: Array) -> Float[Array, "C"]:
    """Largest magnitude of each output channel, flat."""
    channels = sorted(layer.channel_axes)
    summed = tuple(axis for axis in range(weight.ndim) if axis not in channels)
    return jnp.max(jnp.abs(weight), axis=summed).reshape(-1)


def spread_channels(layer: Layer, values: Float[Array, "C"]) -> Array:
    """One value a channel, in the rank of the layer's weight."""
    shape = [size if axis in layer.channel_axes else 1 for axis, size in enumerate(layer.weight_shape)]
    return values.reshape(shape)


def channel_shares(maxima: tuple[Array, ...]) -> tuple[Float[Array, "sum_C"], np.ndarray]:
    """Each channel's largest magnitude as a share of its layer's, all layers in one vector, and each one's layer.

    A channel of zeros has share one: any clip leaves it zero.
    """
    layer = np.repeat(np.arange(len(maxima)), [len(m) for m in maxima])
    flat = jnp.concatenate(maxima)
    whole = jax.ops.segment_max(flat, layer, len(maxima), indices_are_sorted=True)[layer]
    return jnp.where(flat > 0, flat / jnp.where(whole > 0, whole, 1), 1), layer
