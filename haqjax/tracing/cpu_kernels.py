"""CPU kernels: faster equal forms of a layer where the platform's own convolution is slow.

On a CPU, XLA runs a depthwise convolution as a scalar loop, at a hundredth of the speed of arithmetic, and a dense one
over a map of a few pixels not much faster. There a depthwise convolution becomes shifted multiply-adds, one a tap of
the kernel, and a pointwise or small one becomes a matrix product. With bfloat16 operands, whose units XLA's own
convolution leaves idle, a dense one becomes a sum of matrix products, one a tap. Taps that only ever meet padding are
left out. On other platforms the layer stays as it is.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from haqjax.tracing.hooks import Compute
from haqjax.tracing.jaxpr import Layer, shape_of

MOST_TAPS = 49  # each becomes operations of its own: beyond 7x7 the program grows and is no faster


class _Convolution(NamedTuple):
    """A convolution with its axes in the order batch, places..., channels."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]
    places: tuple[int, ...]  # sizes of the output map


def use_cpu_kernels(
    layer: Layer, activation: Array, weight: Array, compute: Compute, sum_type: jnp.dtype | None = None
) -> Array:
    """Computes a layer in the form that is fastest on the platform it runs on; a hook for `with_hook`.

    Equal to the plain form within float32 rounding; differentiable, and works under `vmap`. The result holds its layers
    in a choice of platforms and takes no second hook: what else a hook does goes around this one, as in `quantize`.

    >>> from haqjax.tracing.hooks import with_hook
    >>> from jax.lax import conv_general_dilated
    >>> kinds = dict(feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> apply = lambda params, x: conv_general_dilated(x, params["w"], (1, 1), "SAME", **kinds)
    >>> params, x = {"w": jnp.ones((3, 3, 1, 2))}, jnp.ones((1, 4, 4, 2))
    >>> bool(jnp.allclose(with_hook(apply, use_cpu_kernels)(params, x), apply(params, x)))
    True

    Args:
      sum_type: in which `compute` adds up products of operands of any type; None is the layer's own, for all of them.
    """
    form = _choose(layer, half_precision=sum_type is not None and activation.dtype == jnp.bfloat16)
    if form is None:
        return compute(activation, weight)
    axes = layer.equation.params["dimension_numbers"]

    def faster(activation: Array, weight: Array) -> Array:
        sums = sum_type or layer.equation.params["preferred_element_type"] or activation.dtype
        if sum_type is None:
            activation, weight = activation.astype(sums), weight.astype(sums)
        x = jnp.transpose(activation, _channels_last(axes.lhs_spec))
        w = jnp.transpose(weight, (*axes.rhs_spec[2:], axes.rhs_spec[1], axes.rhs_spec[0]))
        return jnp.transpose(form(x, w, _convolution(layer), sums), tuple(np.argsort(_channels_last(axes.out_spec))))

    return lax.platform_dependent(activation, weight, cpu=faster, default=compute)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])


def _choose(layer: Layer, half_precision: bool) -> Callable[[Array, Array, _Convolution, jnp.dtype], Array] | None:
    """Chooses the faster form of a layer; None where the platform's own is as fast.

    Args:
      half_precision: whether operands are bfloat16, and summed in a wider type.
    """
    if layer.dense or layer.lookup or layer.equation.params["batch_group_count"] != 1:
        return None
    if any(step != 1 for step in layer.equation.params["lhs_dilation"]):
        return None
    groups, convolution = layer.equation.params["feature_group_count"], _convolution(layer)
    taps = math.prod(convolution.kernel)
    if taps > MOST_TAPS:
        return None
    if groups > 1:
        channels = layer.activation_shape[layer.equation.params["dimension_numbers"].lhs_spec[1]]
        return _shifted_multiply_adds if groups == channels else None
    # Measured: from as many places as taps on, XLA's own dense convolution is as fast as the matrix product.
    if taps == 1 or math.prod(convolution.places) < taps:
        return _matrix_product
    return _sum_of_products if half_precision else None


def _convolution(layer: Layer) -> _Convolution:
    params, output = layer.equation.params, shape_of(layer.equation.outvars[0])
    axes = params["dimension_numbers"]
    return _Convolution(
        stride=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        dilation=tuple(params["rhs_dilation"]),
        kernel=tuple(layer.weight_shape[axis] for axis in axes.rhs_spec[2:]),
        places=tuple(output[axis] for axis in axes.out_spec[2:]),
    )


def _shifted_multiply_adds(x: Array, weight: Array, convolution: _Convolution, sums: jnp.dtype) -> Array:
    """Convolves depthwise: input channel c feeds the output channels c m .. c m + m - 1."""
    x, weight = x.astype(sums), weight.astype(sums)
    multiplier = weight.shape[-1] // x.shape[-1]
    x = jnp.repeat(x, multiplier, axis=-1) if multiplier > 1 else x
    by_channel = (1,) * (x.ndim - 1) + (-1,)
    products = [patch * weight[tap].reshape(by_channel) for tap, patch in _patches(x, convolution)]
    return sum(products[1:], products[0])


def _matrix_product(x: Array, weight: Array, convolution: _Convolution, sums: jnp.dtype) -> Array:
    taps, patches = zip(*_patches(x, convolution), strict=True)
    rows = patches[0] if len(taps) == 1 else jnp.concatenate(patches, axis=-1)
    columns = weight[taps[0]] if len(taps) == 1 else jnp.concatenate([weight[tap] for tap in taps])
    product = jnp.matmul(rows.reshape(-1, rows.shape[-1]), columns, preferred_element_type=sums)
    return product.reshape(*rows.shape[:-1], columns.shape[-1])


def _sum_of_products(x: Array, weight: Array, convolution: _Convolution, sums: jnp.dtype) -> Array:
    """Convolves without a copy of all patches: on a large map that copy takes longer than the products."""
    total = jnp.zeros((), sums)
    for tap, patch in _patches(x, convolution):
        total = total + jnp.matmul(patch.reshape(-1, patch.shape[-1]), weight[tap], preferred_element_type=sums)
    return total.reshape(x.shape[0], *convolution.places, weight.shape[-1])


def _patches(x: Array, convolution: _Convolution) -> list[tuple[tuple[int, ...], Array]]:
    """Cuts out the input that each tap of the kernel is multiplied with; taps that only meet padding are left out."""
    stride, padding, dilation, kernel, places = convolution

    def meets(first: int, i: int, size: int) -> bool:
        return any(0 <= first + stride[i] * place < size for place in range(places[i]))

    live = [
        [tap for tap in range(kernel[i]) if meets(tap * dilation[i] - padding[i][0], i, size)]
        for i, size in enumerate(x.shape[1:-1])
    ]
    taps = list(itertools.product(*live)) or [(0,) * len(kernel)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])

    def patch(tap: tuple[int, ...]) -> Array:
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        stop = [first + (n - 1) * step + 1 for first, n, step in zip(start, places, stride, strict=True)]
        return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *stride, 1))

    return [(tap, patch(tap)) for tap in taps]
