"""The fake-quantised forward pass of a network under a policy, in which bits are data.

The grids of all layers, or of all channels, are computed as one vector and sliced: a handful of kernels instead of
a handful a layer, which would dominate the time to compile.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.quantizers.bias_correction import corrects_bias, output_bias
from haqjax.quantizers.codebook import codebook_weights
from haqjax.quantizers.linear import Grid, make_grid, snap
from haqjax.quantizers.per_channel import broadcast_channels, broadcast_outputs, channel_maximum, channel_ratios
from haqjax.quantizers.rounding_offsets import apply_offsets, clip_factor, find_unmoved
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, Hook, map_weights, with_hook
from haqjax.tracing.jaxpr import Layer
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Ranges
from haqjax.widths import are_widths, check_widths

Policy = Int[Array, "L 2"]


def quantize(apply: Apply) -> Callable[[PyTree, PyTree, Policy, Ranges], PyTree]:
    """Makes `apply` run under a policy that is data: one compilation serves every policy.

    Args:
      apply: pure function `apply(params, x)`.
    Returns:
      `qapply(params, x, policy, ranges)` with the output of `apply`: `policy` int32 [L, 2] holds weight and activation
      bits, 2..8 (weights 1..8 with a codebook), or 32 to leave a tensor as it is; `ranges` come from `calibrate`. Works
      under `jit`, `vmap`, `grad`. There the bits are not known while the program is made: with any others the whole
      output is NaN, and the least number of its type where it is of integers.
    Raises:
      ValueError: a policy or ranges of another number of layers than the network's; bits that are none, outside of
        `jit`; names the layer.

    >>> from haqjax.quantizers.calibration import calibrate
    >>> apply = lambda params, x: x @ params["w"]
    >>> params, x = {"w": jnp.array([[0.5], [1.0]])}, jnp.array([[1.0, 0.25]])
    >>> ranges = calibrate(apply, params, [x], method="max")
    >>> print(quantize(apply)(params, x, jnp.array([[32, 2]]), ranges))  # with 2 bits 0.25 becomes 1 / 3
    [[0.8333334]]
    """

    def qapply(params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> PyTree:
        check_policy(apply, params, x, policy, ranges)
        weights = quantize_weights(apply, params, x, policy, ranges)
        y = apply_quantized(apply, params, weights, x, policy, ranges)
        return where_valid(are_widths(jnp.asarray(policy), ranges.least_widths), y)

    return qapply


def check_policy(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> None:
    """Checks a policy and ranges against a network; the bits where they are known, see `haqjax.widths`.

    Raises:
      ValueError: another number of layers, or bits that are none; names the layer.
    """
    if not isinstance(ranges, Ranges):
        raise ValueError(f"ranges is {type(ranges).__name__}: pass what `haqjax.calibrate` returns")
    _check_rows(jnp.shape(ranges.clip)[0], policy, ranges)
    check_widths(policy, ranges.least_widths, lambda: map_weights(lambda layer, weight: layer.name, apply, params, x))


def where_valid(valid: Bool[Array, ""], y: PyTree) -> PyTree:
    """Replaces an output by NaN, or by the least number of its type, where its policy is none."""

    def replace(leaf: Array) -> Array:
        exact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        none = jnp.nan if exact else False if leaf.dtype == bool else jnp.iinfo(leaf.dtype).min
        return jnp.where(valid, leaf, jnp.asarray(none, leaf.dtype))

    return jax.tree.map(replace, y)


def quantize_weights(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Array, ...]:
    """Quantises each layer's weight; of `x` only shapes are read, so that one result serves many batches."""
    if ranges.codebook is not None:
        return codebook_weights(ranges.codebook, policy, map_weights(lambda layer, weight: weight, apply, params, x))
    maxima = map_weights(channel_maximum, apply, params, x)
    _check_rows(len(maxima), policy, ranges)
    ratios, layer_of = channel_ratios(maxima)
    bits, unmoved = jnp.asarray(policy)[layer_of, WEIGHT], find_unmoved(apply, params, x, ranges)
    clip = clips_at(policy, ranges)[layer_of, WEIGHT] * (ratios if ranges.per_channel else 1)
    grids = make_grid(clip * clip_factor(bits, unmoved, ranges), bits, jnp.ones(len(layer_of), bool))
    ends = np.cumsum([len(m) for m in maxima])

    def quantized(layer: Layer, weight: Array) -> Array:
        mine = slice(ends[layer.index] - len(maxima[layer.index]), ends[layer.index])
        grid: Grid = jax.tree.map(lambda leaf: broadcast_channels(layer, leaf[mine]), grids)
        same = None if unmoved is None else unmoved[mine]
        return snap(apply_offsets(layer, weight, grid, same, policy, ranges), grid).astype(weight.dtype)

    return map_weights(quantized, apply, params, x)


def apply_quantized(
    apply: Apply, params: PyTree, weights: tuple[Array, ...], x: PyTree, policy: Policy, ranges: Ranges
) -> PyTree:
    """Runs the forward pass with weights from `quantize_weights` and activations quantised on the way."""
    return with_hook(apply, make_hook(weights, policy, ranges))(params, x)


class Operands(NamedTuple):
    """One layer's operands under a policy."""

    weight: Array  # quantised
    grid: Grid  # of the activation, scalars
    bias: Float[Array, "C"] | None  # that corrects the means of the outputs; None: not computed yet, or none


def make_hook(
    weights: tuple[Array, ...], policy: Policy, ranges: Ranges, biases: tuple[Array, ...] | None = None
) -> Hook:
    """Makes the hook that computes a layer under a policy, with weights from `quantize_weights`.

    Args:
      biases: from `haqjax.quantizers.bias_correction.output_biases`, for many batches at once; None computes them in
        place.
    """
    return hook_with(make_operands(weights, policy, ranges, biases), ranges)


def make_operands(
    weights: tuple[Array, ...], policy: Policy, ranges: Ranges, biases: tuple[Array, ...] | None = None
) -> tuple[Operands, ...]:
    """Makes the operands of every layer, with the arguments of `make_hook`."""
    grids = activation_grids(policy, ranges)

    def operands(layer: int, weight: Array) -> Operands:
        grid = jax.tree.map(lambda leaf: leaf[layer], grids)
        return Operands(weight, grid, None if biases is None else biases[layer])

    return tuple(operands(layer, weight) for layer, weight in enumerate(weights))


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


def hook_with(operands: Sequence[Operands], ranges: Ranges) -> Hook:
    """Makes the hook that computes a layer with such operands, one a layer."""

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
        mine = operands[layer.index]
        y = use_cpu_kernels(layer, snap(activation, mine.grid), mine.weight, compute)
        if not corrects_bias(ranges):
            return y
        bias = output_bias(layer, weight, mine.weight, ranges) if mine.bias is None else mine.bias
        return y + broadcast_outputs(layer, bias).astype(y.dtype)

    return hook


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
