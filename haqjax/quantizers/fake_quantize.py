"""Weights and grids of a network under a policy, in which bits are data.

The grids of all layers, or of all channels, are computed as one vector and sliced: a handful of kernels instead of
a handful a layer, which would dominate the time to compile.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.quantizers.codebook import codebook_weights
from haqjax.quantizers.linear import Grid, encode, make_grid, scale_of, snap, widen
from haqjax.quantizers.per_channel import broadcast_channels, channel_maximum, channel_ratios
from haqjax.quantizers.rounding_offsets import apply_offsets, clip_factor, find_unmoved
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.jaxpr import Layer
from haqjax.types import ACTIVATION, FULL_PRECISION, WEIGHT, WIDTHS, Ranges
from haqjax.widths import check_widths

Policy = Int[Array, "L 2"]


def check_policy(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> None:
    """Checks a policy and ranges against a network; the bits where they are known, see `haqjax.widths`.

    Raises:
      ValueError: another number of layers, or bits that are none; names the layer.
    """
    if not isinstance(ranges, Ranges):
        raise ValueError(f"ranges is {type(ranges).__name__}: pass what `haqjax.calibrate` returns")
    _check_rows(jnp.shape(ranges.clip)[0], policy, ranges)
    check_widths(policy, ranges.least_widths, lambda: map_weights(lambda layer, weight: layer.name, apply, params, x))


def repeat_row(policy: Policy, ranges: Ranges) -> Policy:
    """Gives every layer the bits of a policy of one row; any other stays."""
    if not isinstance(ranges, Ranges) or jnp.shape(policy) != (1, 2):
        return policy
    return jnp.broadcast_to(jnp.asarray(policy), (jnp.shape(ranges.clip)[0], 2))


def where_valid(valid: Bool[Array, ""], y: PyTree) -> PyTree:
    """Replaces an output by NaN, or by the least number of its type, where its policy is none."""

    def replace(leaf: Array) -> Array:
        exact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        none = jnp.nan if exact else False if leaf.dtype == bool else jnp.iinfo(leaf.dtype).min
        return jnp.where(valid, leaf, jnp.asarray(none, leaf.dtype))

    return jax.tree.map(replace, y)


class Encoded(NamedTuple):
    """One layer's weight under a policy."""

    value: Array  # on its levels; the gradient of the float weight passes straight through
    code: Array  # the levels' numbers; the value itself where it is left in floating point
    step: Float[Array, "C"]  # of each output channel; 1 where the code is the value
    whole: Bool[Array, ""]  # the code is a whole number


def encode_weights(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Encoded, ...]:
    """Quantises each layer's weight; of `x` only shapes are read, so that one result serves many batches.

    The values of codebooks have no codes that are multiplied.
    """
    if ranges.codebook is not None:
        floats = map_weights(lambda layer, weight: (layer, weight), apply, params, x)
        values = codebook_weights(ranges.codebook, policy, tuple(weight for _, weight in floats))
        ones = [jnp.ones(math.prod(w.shape[axis] for axis in layer.channel_axes)) for layer, w in floats]
        pairs = zip(values, ones, strict=True)
        return tuple(Encoded(value, widen(value), one, jnp.array(False)) for value, one in pairs)
    maxima = map_weights(channel_maximum, apply, params, x)
    _check_rows(len(maxima), policy, ranges)
    ratios, layer_of = channel_ratios(maxima)
    bits, unmoved = jnp.asarray(policy)[layer_of, WEIGHT], find_unmoved(apply, params, x, ranges)
    clip = clips_at(policy, ranges)[layer_of, WEIGHT] * (ratios if ranges.per_channel else 1)
    grids = make_grid(clip * clip_factor(bits, unmoved, ranges), bits, jnp.ones(len(layer_of), bool))
    steps, ends = scale_of(grids), np.cumsum([len(m) for m in maxima])
    whole = jnp.asarray(policy)[:, WEIGHT] < FULL_PRECISION

    def encoded(layer: Layer, weight: Array) -> Encoded:
        mine = slice(ends[layer.index] - len(maxima[layer.index]), ends[layer.index])
        grid: Grid = jax.tree.map(lambda leaf: broadcast_channels(layer, leaf[mine]), grids)
        same = None if unmoved is None else unmoved[mine]
        moved = apply_offsets(layer, weight, grid, same, policy, ranges)
        return Encoded(snap(moved, grid).astype(weight.dtype), encode(moved, grid), steps[mine], whole[layer.index])

    return map_weights(encoded, apply, params, x)


def quantize_weights(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Array, ...]:
    """Quantises each layer's weight to the values of its levels; see `encode_weights`."""
    return tuple(weight.value for weight in encode_weights(apply, params, x, policy, ranges))


def activation_grids(policy: Policy, ranges: Ranges) -> Grid:
    """Makes the grid of each layer's activation at the policy's width, each field [L]."""
    return make_activation_grids(clips_at(policy, ranges)[:, ACTIVATION], policy, ranges)


def make_activation_grids(clip: Float[Array, "L"], policy: Policy, ranges: Ranges) -> Grid:
    """Makes the grid of each layer's activation at the policy's width for clips of any origin, each field [L]."""
    grid = make_grid(clip, jnp.asarray(policy)[:, ACTIVATION], signs_at(policy, ranges))
    return grid if ranges.reached is None else leave_unreached(grid, jnp.asarray(ranges.reached))


def leave_unreached(grid: Grid, reached: Bool[Array, "*n"]) -> Grid:
    """Makes grids that leave an activation as it is where calibration never reached it."""
    return grid._replace(identity=grid.identity | ~reached)


def clips_at(policy: Policy, ranges: Ranges) -> Float[Array, "L 2"]:
    """Returns the clip of each tensor at the policy's width; widths beyond 8 read the last."""
    column = jnp.clip(jnp.asarray(policy), 1, WIDTHS)[..., None] - 1
    return jnp.take_along_axis(jnp.asarray(ranges.clip), column, axis=2)[..., 0]


def signs_at(policy: Policy, ranges: Ranges) -> Bool[Array, "L"]:
    """Tells which activations are signed at the policy's width; widths beyond 8 read the last."""
    column = jnp.clip(jnp.asarray(policy)[:, ACTIVATION, None], 1, WIDTHS) - 1
    return jnp.take_along_axis(jnp.asarray(ranges.signed), column, axis=1)[:, 0]


def _check_rows(layers: int, policy: Policy, ranges: Ranges) -> None:
    for name, array, wanted in (("policy", policy, (layers, 2)), ("ranges", ranges.clip, (layers, 2, WIDTHS))):
        if jnp.shape(array) != wanted:
            raise ValueError(f"{name} has shape {jnp.shape(array)}, but the network's {layers} layers need {wanted}")
