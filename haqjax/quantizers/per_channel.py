"""Per-channel values of a layer: magnitudes, input energies, and their broadcast over its tensors."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.quantizers.im2col import to_matrix
from haqjax.quantizers.linear import widen
from haqjax.tracing.jaxpr import Layer


def channel_maximum(layer: Layer, weight: Array) -> Float[Array, "C"]:
    """Finds the largest magnitude of each output channel, flat; of the weight where it has one scale."""
    channels = sorted(layer.channel_axes)
    summed = tuple(axis for axis in range(weight.ndim) if axis not in channels)
    largest = jnp.max(jnp.abs(widen(weight)), axis=summed).reshape(-1)
    return jnp.full_like(largest, largest.max()) if layer.one_scale else largest


def broadcast_channels(layer: Layer, values: Float[Array, "C"]) -> Array:
    """Reshapes one value a channel to the rank of the layer's weight."""
    shape = [size if axis in layer.channel_axes else 1 for axis, size in enumerate(layer.weight_shape)]
    return values.reshape(shape)


def channel_ratios(maxima: tuple[Array, ...]) -> tuple[Float[Array, "sum_C"], np.ndarray]:
    """Divides each channel's largest magnitude by its layer's, all layers in one vector; also returns each one's layer.

    A channel of zeros has ratio one: any clip leaves it zero.
    """
    layer = np.repeat(np.arange(len(maxima)), [len(m) for m in maxima])
    flat = jnp.concatenate(maxima)
    whole = jax.ops.segment_max(flat, layer, len(maxima), indices_are_sorted=True)[layer]
    return jnp.where(flat > 0, flat / jnp.where(whole > 0, whole, 1), 1), layer


def host_ratios(layer: Layer, weight: np.ndarray) -> Float[np.ndarray, "C"]:
    """Divides each channel's largest magnitude by the layer's, on the host; one where a channel is zero."""
    summed = tuple(axis for axis in range(weight.ndim) if axis not in layer.channel_axes)
    largest = np.abs(weight).max(axis=summed).reshape(-1)
    ratio = largest / (largest.max() or 1)
    return np.where((ratio > 0) & (not layer.one_scale), ratio, 1)


def broadcast_outputs(layer: Layer, values: Float[Array, "C"]) -> Array:
    """Reshapes one value an output channel to the rank of the layer's output.

    >>> from haqjax.tracing.hooks import map_weights
    >>> apply = lambda params, x: jnp.einsum("bsi,io->bso", x, params["w"])
    >>> shape = lambda layer, weight: broadcast_outputs(layer, jnp.arange(4.0)).shape
    >>> map_weights(shape, apply, {"w": jnp.ones((3, 4))}, jnp.ones((2, 5, 3)))
    ((1, 1, 4),)
    """
    if not layer.dense:
        at = layer.equation.params["dimension_numbers"].out_spec[1]
        return values.reshape([-1 if axis == at else 1 for axis in range(len(layer.activation_shape))])
    contract, batch = layer.dot_axes
    channels = sorted(layer.channel_axes)
    order = [*batch, *(axis for axis in channels if axis not in batch)]
    sizes = [layer.weight_shape[axis] for axis in order]
    ones = [1] * (len(layer.activation_shape) - len(contract) - len(batch))
    at = len(batch) if layer.weight_at == 1 else len(order)
    whole = values.reshape([layer.weight_shape[axis] for axis in channels])
    return whole.transpose([channels.index(axis) for axis in order]).reshape(*sizes[:at], *ones, *sizes[at:])


def input_energy(layer: Layer, weight: Array) -> Array:
    """Sums the squares of the weights that read each input channel, in the rank of the layer's activation.

    The squared error of the layer's output grows in proportion to it with an error in the input channel.
    """
    energy = jnp.sum(to_matrix(layer, widen(weight)) ** 2, axis=2)  # [G, D]
    rank = len(layer.activation_shape)
    if not layer.dense:
        axes = layer.equation.params["dimension_numbers"]
        each = layer.weight_shape[axes.rhs_spec[1]]
        by_channel = energy.reshape(energy.shape[0], -1, each).sum(1).reshape(-1)
        return by_channel.reshape([-1 if axis == axes.lhs_spec[1] else 1 for axis in range(rank)])
    contract, batch = layer.activation_axes
    order = [*batch, *contract]
    whole = energy.reshape([layer.activation_shape[axis] for axis in order])
    placed = whole.transpose([order.index(axis) for axis in sorted(order)])
    return placed.reshape([layer.activation_shape[axis] if axis in order else 1 for axis in range(rank)])
