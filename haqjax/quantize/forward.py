"""The forward pass of a network under a policy: every layer's weight and activation fake-quantised.

The grids of all layers, or of all channels, are computed as one vector and sliced: a handful of kernels instead of
a handful a layer, which would dominate the time to compile.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from haqjax.capture import Apply, Compute, map_weights, with_hook
from haqjax.graph import Layer
from haqjax.lowering import lower
from haqjax.quantize.channels import channel_maximum, channel_shares, spread_channels
from haqjax.quantize.linear import Grid, make_grid, snap
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Ranges

Policy = Int[Array, "L 2"]


def quantize(apply: Apply) -> Callable[[PyTree, PyTree, Policy, Ranges], PyTree]:
    """Makes `apply` run under a policy that is data: one compilation serves every policy.

    Args:
      apply: pure function `apply(params, x)`.
    Returns:
      `qapply(params, x, policy, ranges)` with the output of `apply`: `policy` int32 [L, 2] holds weight and activation
      bits, 2..8, or 32 to leave a tensor as it is; `ranges` come from `calibrate`. Works under `jit`, `vmap`, `grad`.
    Raises:
      ValueError: a policy or ranges of another number of layers than the network's.

    >>> from haqjax.quantize.calibrate import calibrate
    >>> apply = lambda params, x: x @ params["w"]
    >>> params, x = {"w": jnp.array([[0.5], [1.0]])}, jnp.array([[1.0, 0.25]])
    >>> ranges = calibrate(apply, params, [x], method="max")
    >>> print(quantize(apply)(params, x, jnp.array([[32, 2]]), ranges))  # with 2 bits 0.25 becomes 1 / 3
    [[0.8333334]]
    """

    def qapply(params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> PyTree:
        weights = quantize_weights(apply, params, x, policy, ranges)
        return apply_quantized(apply, params, weights, x, policy, ranges)

    return qapply


def quantize_weights(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Array, ...]:
    """Each layer's weight, quantised; of `x` only shapes are read, so that many batches can share the result."""
    maxima = map_weights(channel_maximum, apply, params, x)
    _check_rows(len(maxima), policy, ranges)
    shares, layer_of = channel_shares(maxima)
    clip = _clips(policy, ranges)[layer_of, WEIGHT] * (shares if ranges.per_channel else 1)
    grids = make_grid(clip, jnp.asarray(policy)[layer_of, WEIGHT], jnp.ones(len(layer_of), bool))
    ends = np.cumsum([len(m) for m in maxima])

    def quantized(layer: Layer, weight: Array) -> Array:
        mine = slice(ends[layer.index] - len(maxima[layer.index]), ends[layer.index])
        return snap(weight, jax.tree.map(lambda leaf: spread_channels(layer, leaf[mine]), grids))

    return map_weights(quantized, apply, params, x)


def apply_quantized(
    apply: Apply, params: PyTree, weights: tuple[Array, ...], x: PyTree, policy: Policy, ranges: Ranges
) -> PyTree:
    """The forward pass with weights from `quantize_weights` and activations quantised on the way."""
    grids = make_grid(
        _clips(policy, ranges)[:, ACTIVATION], jnp.asarray(policy)[:, ACTIVATION], jnp.asarray(ranges.signed)
    )

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
        grid: Grid = jax.tree.map(lambda leaf: leaf[layer.index], grids)
        return lower(layer, snap(activation, grid), weights[layer.index], compute)

    return with_hook(apply, hook)(params, x)


def _clips(policy: Policy, ranges: Ranges) -> Float[Array, "L 2"]:
    """The clip of each tensor at the policy's width; widths beyond 8 read the last."""
    column = jnp.clip(policy, 1, WIDTHS)[..., None] - 1
    return jnp.take_along_axis(jnp.asarray(ranges.clip), column, axis=2)[..., 0]


def _check_rows(layers: int, policy: Policy, ranges: Ranges) -> None:
    for name, array, wanted in (("policy", policy, (layers, 2)), ("ranges", ranges.clip, (layers, 2, WIDTHS))):
        if jnp.shape(array) != wanted:
            raise ValueError(f"{name} has shape {jnp.shape(array)}, but the network's {layers} layers need {wanted}")
