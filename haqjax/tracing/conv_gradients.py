"""Dense convolutions whose gradients are as fast inside a compiled loop as outside of one.

On a CPU, XLA has a fast form for a convolution whose axes are in the order batch, places, channels. It brings others
into that order first, but not inside a loop, and the two gradients of a convolution are such others: there they run 10
and 100 times slower. Here they are written in that order.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Compute
from haqjax.tracing.jaxpr import Layer

LAST = ("NHWC", "HWIO", "NHWC")  # the order that has the fast form

Pair = tuple[int, int]


def use_training_kernels(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
    """Computes a layer as `haqjax.tracing.cpu_kernels.use_cpu_kernels`, for reverse-mode gradients inside a loop.

    >>> from haqjax.tracing.hooks import with_hook
    >>> apply = lambda params, x: lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=LAST)
    >>> params, x = {"w": jnp.ones((3, 3, 1, 2))}, jnp.ones((1, 4, 4, 1))
    >>> loss = lambda apply, params: apply(params, x).sum()
    >>> plain, fast = (jax.grad(loss, 1)(f, params)["w"] for f in (apply, with_hook(apply, use_training_kernels)))
    >>> bool(jnp.allclose(plain, fast))
    True
    """
    if not _is_plain(layer):
        return use_cpu_kernels(layer, activation, weight, compute)
    params = layer.equation.params

    def convolve(activation: Array, weight: Array) -> Array:
        return _convolve(activation, weight, params["window_strides"], params["padding"])

    return use_cpu_kernels(layer, activation, weight, convolve)


def _is_plain(layer: Layer) -> bool:
    """Returns True for a dense convolution of two axes in the usual order, with nothing but stride and padding."""
    if layer.dense or layer.lookup or len(layer.weight_shape) != 4:
        return False
    params = layer.equation.params
    usual = lax.conv_dimension_numbers(layer.activation_shape, layer.weight_shape, LAST)
    undilated = all(step == 1 for step in (*params["lhs_dilation"], *params["rhs_dilation"]))
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    narrow = all(0 <= params["padding"][axis][0] < layer.weight_shape[axis] for axis in (0, 1))
    return params["dimension_numbers"] == usual and undilated and not grouped and narrow


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, weight: Array, stride: Pair, padding: tuple[Pair, Pair]) -> Array:
    return _valid(x, weight, stride, padding)


def _forward(x: Array, weight: Array, stride: Pair, padding: tuple[Pair, Pair]) -> tuple[Array, tuple[Array, Array]]:
    return _valid(x, weight, stride, padding), (x, weight)


def _backward(stride: Pair, padding: tuple[Pair, Pair], kept: tuple[Array, Array], gradient: Array) -> tuple:
    def ordered(x: Array, weight: Array, gradient: Array) -> tuple[Array, Array]:
        return _by_input(x, weight, gradient, stride, padding), _by_weight(x, weight, gradient, stride, padding)

    def plain(x: Array, weight: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, weight: _valid(x, weight, stride, padding), x, weight)[1](gradient)

    return lax.platform_dependent(*kept, gradient, cpu=ordered, default=plain)


_convolve.defvjp(_forward, _backward)


def _by_input(x: Array, weight: Array, gradient: Array, stride: Pair, padding: tuple[Pair, Pair]) -> Array:
    """Convolves the gradient, its entries `stride` apart, with the kernel upside down."""
    dilated = lax.pad(
        gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *((0, 0, step - 1) for step in stride), (0, 0, 0)]
    )
    before = [weight.shape[axis] - 1 - padding[axis][0] for axis in (0, 1)]
    after = [x.shape[axis + 1] + padding[axis][0] - dilated.shape[axis + 1] for axis in (0, 1)]
    turned = jnp.transpose(weight[::-1, ::-1], (0, 1, 3, 2))
    return _valid(dilated, turned, (1, 1), tuple(zip(before, after, strict=True)))


def _by_weight(x: Array, weight: Array, gradient: Array, stride: Pair, padding: tuple[Pair, Pair]) -> Array:
    """Convolves the input with the gradient, where images count as channels and channels as images."""
    before = [padding[axis][0] for axis in (0, 1)]
    extent = [weight.shape[axis] + (gradient.shape[axis + 1] - 1) * stride[axis] for axis in (0, 1)]
    after = [extent[axis] - x.shape[axis + 1] - before[axis] for axis in (0, 1)]
    x, gradient = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(gradient, (1, 2, 0, 3))
    found = _valid(x, gradient, (1, 1), tuple(zip(before, after, strict=True)), stride)
    return jnp.transpose(found, (1, 2, 0, 3))


def _valid(x: Array, weight: Array, stride: Pair, padding: tuple[Pair, ...], dilation: Pair = (1, 1)) -> Array:
    """Convolves in the fast order; what is beyond a negative padding is cut off first."""
    cut = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    if any(low or high for low, high, _ in cut):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *cut, (0, 0, 0)])
    ends = [(max(low, 0), max(high, 0)) for low, high in padding]
    return lax.conv_general_dilated(x, weight, stride, ends, rhs_dilation=dilation, dimension_numbers=LAST)
