"""FracBits (Yang and Jin 2021, arXiv 2007.02017): the forward pass under fractional bits, with a gradient by them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from haqjax.quantizers.bias_correction import corrects_bias, output_bias
from haqjax.quantizers.fake_quantize import activation_grids, quantize_weights, where_valid
from haqjax.quantizers.linear import snap
from haqjax.quantizers.per_channel import broadcast_outputs
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, Hook, with_hook
from haqjax.tracing.jaxpr import Layer
from haqjax.types import ACTIVATION, FULL_PRECISION, WEIGHT, WIDTHS, Ranges
from haqjax.widths import are_widths, check_widths


class _Neighbours(NamedTuple):
    """The whole policies below and above fractional bits, and the fraction of the upper one in the mixture."""

    below: Int[Array, "L 2"]
    above: Int[Array, "L 2"]
    fraction: Float[Array, "L 2"]


def quantize_fractionally(
    apply: Apply, *, hook: Hook = use_cpu_kernels
) -> Callable[[PyTree, PyTree, Float[Array, "L 2"], Ranges], PyTree]:
    """Makes `apply` run under fractional bits, so that its output has a gradient with respect to them.

    A tensor at 4.3 bits is 0.7 times what it is at 4 bits and 0.3 times what it is at 5, each with the clip of its own
    width (FracBits, Yang and Jin 2021, arXiv 2007.02017, equation 4). At whole bits this is `haqjax.quantize`. The
    derivative by the bits is what the next bit changes.

    Args:
      apply: pure function `apply(params, x)`.
      hook: how a layer is computed, see `haqjax.tracing.hooks.with_hook`.

    Returns:
      `qapply(params, x, bits, ranges)` with the output of `apply`; `bits` float [L, 2] from 2 to 8 (weights from 1 with
      a codebook), or 32 to leave a tensor as it is. Works under `jit`, `vmap`, `grad`; there the output is NaN for any
      other bits.

    Raises:
      ValueError: bits that are none, outside of `jit`.

    >>> from haqjax.quantizers.calibration import calibrate
    >>> apply = lambda params, x: x @ params["w"]
    >>> params, x = {"w": jnp.array([[0.5], [1.0]])}, jnp.array([[1.0, 0.25]])
    >>> ranges = calibrate(apply, params, [x], method="max")
    >>> print(quantize_fractionally(apply)(params, x, jnp.array([[32.0, 2.5]]), ranges))  # 1/3 and 2/7 for 0.25
    [[0.8095238]]
    """

    def qapply(params: PyTree, x: PyTree, bits: Float[Array, "L 2"], ranges: Ranges) -> PyTree:
        check_widths(bits, ranges.least_widths, fractional=True)
        near = _find_neighbours(bits)
        weights = [quantize_weights(apply, params, x, policy, ranges) for policy in near[:2]]
        grids = [activation_grids(policy, ranges) for policy in near[:2]]

        def on_layer(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
            at = layer.index
            if layer.lookup:
                table = _mix(weights[0][at], weights[1][at], near.fraction[at][WEIGHT])
                return compute(activation, layer.arrange(table))
            low, high = (snap(activation, jax.tree.map(lambda leaf: leaf[at], grid)) for grid in grids)
            ends = layer.arrange(weights[0][at]), layer.arrange(weights[1][at])
            fraction = near.fraction[at]
            y = hook(layer, _mix(low, high, fraction[ACTIVATION]), _mix(*ends, fraction[WEIGHT]), compute)
            if not corrects_bias(ranges):
                return y
            low, high = (output_bias(layer, weight, end, ranges) for end in ends)  # of each width: a gradient by bits
            return y + broadcast_outputs(layer, _mix(low, high, fraction[WEIGHT])).astype(y.dtype)

        return where_valid(are_widths(bits, ranges.least_widths), with_hook(apply, on_layer)(params, x))

    return qapply


def _find_neighbours(bits: Float[Array, "L 2"]) -> _Neighbours:
    """Finds the whole widths below and above fractional bits; at a whole width one of them has it all.

    >>> near = _find_neighbours(jnp.array([[2.25, 8.0]]))
    >>> print(near.below, near.above, near.fraction)
    [[2 7]] [[3 8]] [[0.25 1.  ]]
    """
    whole = jnp.floor(jax.lax.stop_gradient(bits))
    below = jnp.where(whole >= FULL_PRECISION, FULL_PRECISION, jnp.clip(whole, 1, WIDTHS - 1))
    fraction = jnp.where(whole >= FULL_PRECISION, 0.0, bits - below)
    return _Neighbours(below.astype(jnp.int32), below.astype(jnp.int32) + 1, fraction)


def _mix(low: Array, high: Array, fraction: Float[Array, ""]) -> Array:
    """Interpolates linearly: exactly `low` at a fraction of 0 and `high` at 1."""
    fraction = fraction.reshape((1,) * low.ndim).astype(low.dtype)
    return (1 - fraction) * low + fraction * high
