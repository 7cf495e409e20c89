"""im2col: a layer as a matrix product, its weight as a matrix, its input as rows.

`output[g, n, r] = sum over d of rows[g, n, d] matrix[g, d, r]`, with G groups, of D inputs and R outputs each.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from haqjax.tracing.jaxpr import Layer, shape_of
from haqjax.types import AnyArray

ROWS = 32  # an example: neighbouring places of a map say much the same


def to_matrix(layer: Layer, weight: AnyArray) -> Float[AnyArray, "G D R"]:
    """Returns the weight of a layer as a matrix, one for each group.

    >>> from haqjax.tracing.hooks import map_weights
    >>> apply = lambda params, x: x @ params["w"].T
    >>> shape = lambda layer, weight: (weight.shape, to_matrix(layer, weight).shape)
    >>> map_weights(shape, apply, {"w": jnp.ones((2, 3))}, jnp.ones((1, 3)))
    (((3, 2), (1, 3, 2)),)
    """
    groups, order = arrangement(layer)
    ordered = weight.transpose(order)
    if layer.dense:
        inputs = math.prod(layer.weight_shape[axis] for axis in layer.dot_axes[0])
        return ordered.reshape(groups, inputs, -1)
    *taps, each, outputs = ordered.shape
    split = ordered.reshape(math.prod(taps) * each, groups, outputs // groups)
    return split.transpose(1, 0, 2)


def from_matrix(layer: Layer, matrix: Float[AnyArray, "G D R"]) -> AnyArray:
    """Returns the weight that `to_matrix` made a matrix of."""
    _, order = arrangement(layer)
    shape = [layer.weight_shape[axis] for axis in order]
    ordered = (matrix if layer.dense else matrix.transpose(1, 0, 2)).reshape(shape)
    return ordered.transpose(np.argsort(order))


def take_rows(layer: Layer, activation: Array, most: int) -> Float[Array, "G n D"]:
    """Takes rows of the layer's input for evenly spaced outputs, `most` at most."""
    if layer.dense:
        return _take_dense(layer, activation, most)
    params = layer.equation.params
    axes, output = params["dimension_numbers"], shape_of(layer.equation.outvars[0])
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    padding = [(0, 0, 0), *((low, high, dilation - 1) for (low, high), dilation in edges), (0, 0, 0)]
    spec = axes.lhs_spec
    x = lax.pad(jnp.transpose(activation, (spec[0], *spec[2:], spec[1])), jnp.zeros((), activation.dtype), padding)
    places = [activation.shape[spec[0]], *(output[axis] for axis in axes.out_spec[2:])]
    outputs = math.prod(places)
    example, *at = np.unravel_index(np.arange(0, outputs, coprime_stride(outputs, most)), places)
    kernel = [layer.weight_shape[axis] for axis in axes.rhs_spec[2:]]
    taps = np.indices(kernel).reshape(len(kernel), -1)
    steps = zip(at, taps, params["window_strides"], params["rhs_dilation"], strict=True)
    index = tuple(place[:, None] * stride + tap[None] * apart for place, tap, stride, apart in steps)
    patches = x[(example[:, None], *index)]  # [n, taps, C]
    groups = params["feature_group_count"]
    grouped = patches.reshape(len(example), taps.shape[1], groups, -1)
    return grouped.transpose(2, 0, 1, 3).reshape(groups, len(example), -1)


def _take_dense(layer: Layer, activation: Array, most: int) -> Float[Array, "G n D"]:
    contract, batch = layer.activation_axes
    free = [axis for axis in range(activation.ndim) if axis not in (*contract, *batch)]
    ordered = jnp.transpose(activation, (*batch, *free, *contract))
    inputs, groups = (math.prod(activation.shape[axis] for axis in axes) for axes in (contract, batch))
    rows = ordered.reshape(groups, activation.size // (groups * inputs), inputs)
    return rows[:, np.arange(0, rows.shape[1], coprime_stride(rows.shape[1], most))]


def arrangement(layer: Layer) -> tuple[int, list[int]]:
    """Returns the groups and the order of the weight's axes: batched, contracted, free; or taps, input, output."""
    if layer.dense:
        contract, batch = layer.dot_axes
        free = [axis for axis in layer.channel_axes if axis not in batch]
        return math.prod(layer.weight_shape[axis] for axis in batch), [*batch, *contract, *free]
    output, each, *taps = layer.equation.params["dimension_numbers"].rhs_spec
    return layer.equation.params["feature_group_count"], [*taps, each, output]


def coprime_stride(count: int, most: int) -> int:
    """Finds the least stride that takes `most` of `count` numbers at most and has no factor in common with `count`.

    With a common factor it would fall in with an axis: some channels would be taken and others never.

    >>> coprime_stride(100, 25), coprime_stride(100, 30)
    (7, 7)
    """
    stride = -(-count // most)
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride
