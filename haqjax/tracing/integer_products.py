"""Integer products: the exact sum of products of integer codes, in whatever type multiplies them fastest.

A code is a whole number of at most 8 bits. Sums of their products are the same numbers on every device and in every
order, as long as no partial sum leaves the whole numbers that the type holds: 2^24 in float32, 2^31 in int32. A layer
whose sums may be larger is cut along what it sums over, and the parts are added up as integers of two words.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import compute_in
from haqjax.tracing.jaxpr import Layer

Form = Literal["float32", "bfloat16", "int8"]
FORMS: tuple[Form, ...] = ("float32", "bfloat16", "int8")
LARGEST_UNSIGNED, LARGEST_SIGNED = 255, 127  # codes of 8 bits
LARGEST_PRODUCT = LARGEST_UNSIGNED * LARGEST_SIGNED  # of an activation and a weight
FLOAT_LIMIT = 2**24  # whole numbers up to here are exact in float32
INT_LIMIT = 2**31
WORD = 12  # bits of the lower word of a sum in parts: 2^36 is the most that both words hold as floats
SHIFT = 128  # takes unsigned codes of 8 bits into the range of int8


class Arithmetic(NamedTuple):
    """How the products of one layer are computed; the answer does not depend on it."""

    form: Form = "float32"  # of the operands; sums are float32, or int32 for int8
    parts: int = 1  # that a sum is cut into


class Weights(NamedTuple):
    """The weights of one layer, ready to be multiplied."""

    integers: Array  # in the type of the form
    shifted: Array | None  # what the shift of the activation's codes takes off each output; int8 alone


def count_summed(layer: Layer) -> int:
    """Counts the products that are summed for one output.

    >>> from haqjax.tracing.hooks import map_weights
    >>> apply = lambda params, x: x @ params["w"]
    >>> map_weights(lambda layer, weight: count_summed(layer), apply, {"w": jnp.ones((5, 3))}, jnp.ones((1, 5)))
    (5,)
    """
    outputs = math.prod(layer.weight_shape[axis] for axis in layer.channel_axes)
    return math.prod(layer.weight_shape) // outputs


def safe_arithmetic(layer: Layer) -> Arithmetic:
    """Returns arithmetic that is exact whatever the codes are."""
    return Arithmetic("float32", max(1, -(-count_summed(layer) * LARGEST_PRODUCT // FLOAT_LIMIT)))


def ready_weights(layer: Layer, integers: Array, signed: Bool[Array, ""], form: Form) -> Weights:
    """Brings the codes of a layer's weight into the type that they are multiplied in.

    Args:
      integers: codes: whole numbers, as floats.
      signed: whether the activation's codes are; see `multiply`.
    """
    if form == "float32" or _keeps_floats(layer):
        return Weights(integers, None)
    if form == "bfloat16":
        return Weights(integers.astype(jnp.bfloat16), None)
    integers = integers.astype(jnp.int8)
    ones = jnp.ones(_one_example(layer), jnp.int8)
    return Weights(integers, _product(layer, jnp.int32, ones, integers) * _shift(signed))


def multiply(
    layer: Layer, activation: Array, weights: Weights, arithmetic: Arithmetic, signed: Bool[Array, ""], whole: Array
) -> Array:
    """Computes a layer on integer codes: its exact sums, as floats.

    A sum beyond 2^24 is the float that is nearest to the exact one.

    Args:
      activation: codes, as floats. One that is not a number makes its row or example of the output none.
      weights: from `ready_weights`, for the same form.
      signed: whether the activation's codes are; unsigned ones are shifted to fit int8, and what that takes off every
        output is put back. At the edge of a map that is less, since padding stays zero.
      whole: true where both operands are codes; where one is floats, as at 32 bits, the sum is that of the floats.
        Only float32 takes floats.
    Returns:
      The layer's output, in the type of `activation`.
    """
    form, parts = arithmetic
    if weights.shifted is not None:
        integers = (activation - _shift(signed).astype(activation.dtype)).astype(jnp.int8)
        found = _product(layer, jnp.int32, integers, weights.integers) + weights.shifted
        return found.astype(activation.dtype) + _not_a_number(layer, activation)
    operand = activation.astype(weights.integers.dtype) if form == "bfloat16" else activation
    product = functools.partial(_product, layer, activation.dtype)
    if parts == 1 or activation.dtype == jnp.float64:
        return product(operand, weights.integers)
    part = cut_sum(layer, operand, weights.integers, parts)

    def add(at: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        more = product(*part(at))
        exact = more.astype(jnp.int32)
        return sums[0] + (exact >> WORD), sums[1] + (exact & (1 << WORD) - 1), sums[2] + more

    shape = jax.eval_shape(lambda: product(*part(0))).shape
    zeros = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, activation.dtype)
    high, low, rounded = lax.fori_loop(0, parts, add, zeros)  # one program for all parts: it is compiled once
    high, low = high + (low >> WORD), low & (1 << WORD) - 1
    exact = high.astype(activation.dtype) * (1 << WORD) + low.astype(activation.dtype)  # rounded by the sum alone
    return jnp.where(whole & jnp.isfinite(rounded), exact, rounded)


def cut_sum(layer: Layer, activation: Array, weight: Array, parts: int) -> Callable[[int | Array], tuple[Array, Array]]:
    """Cuts both operands into parts of what is summed over, and returns a function that gives the i-th.

    The layers of all parts add up to the whole one.

    >>> from haqjax.tracing.hooks import map_weights
    >>> apply, x = lambda params, x: x @ params["w"], jnp.ones((1, 5))
    >>> second = lambda layer, weight: [part.tolist() for part in cut_sum(layer, x, weight, 2)(1)]
    >>> map_weights(second, apply, {"w": jnp.arange(5.0)[:, None]}, x)
    ([[[1.0, 1.0, 0.0]], [[3.0], [4.0], [0.0]]],)
    """
    axis, other = summed_axes(layer)
    if cuts_evenly(layer, parts):
        size = -(-layer.weight_shape[axis] // parts)
        missing = parts * size - layer.weight_shape[axis]
        activation, weight = _lengthen(activation, other, missing), _lengthen(weight, axis, missing)

        def slices(at: int | Array) -> tuple[Array, Array]:
            where = [(activation, other), (weight, axis)]
            found = [lax.dynamic_slice_in_dim(whole, at * size, size, along) for whole, along in where]
            return found[0], found[1]

        return slices
    part_of = jnp.asarray(_number_inputs(layer) * parts // count_summed(layer))
    return lambda at: (activation, jnp.where(part_of == at, weight, jnp.zeros((), weight.dtype)))


def cuts_evenly(layer: Layer, parts: int) -> bool:
    """Tells whether a sum can be cut into parts along one axis: not within groups, nor where it is too short."""
    longest = layer.weight_shape[summed_axes(layer)[0]]
    return (parts - 1) * -(-longest // parts) < longest and (layer.dense or _groups(layer) == 1)


def summed_axes(layer: Layer) -> tuple[int, int]:
    """Returns the longest axis of the weight that is summed over, input channels of a convolution, and its partner."""
    if not layer.dense:
        numbers = layer.equation.params["dimension_numbers"]
        return numbers.rhs_spec[1], numbers.lhs_spec[1]
    pairs = zip(layer.dot_axes[0], layer.activation_axes[0], strict=True)
    return max(pairs, key=lambda pair: layer.weight_shape[pair[0]])


def _lengthen(x: Array, axis: int, missing: int) -> Array:
    return jnp.pad(x, [(0, missing if at == axis else 0) for at in range(x.ndim)])


def _groups(layer: Layer) -> int:
    return 1 if layer.dense else layer.equation.params["feature_group_count"]


def _number_inputs(layer: Layer) -> np.ndarray:
    """Numbers what is summed over, in the rank of the weight."""
    shape = [1 if axis in layer.channel_axes else size for axis, size in enumerate(layer.weight_shape)]
    return np.arange(math.prod(shape)).reshape(shape)


def _product(layer: Layer, sum_type: DTypeLike, activation: Array, weight: Array) -> Array:
    dtype = np.dtype(sum_type)
    return use_cpu_kernels(layer, activation, weight, compute_in(layer, dtype), dtype)


def _keeps_floats(layer: Layer) -> bool:
    """Tells a layer of groups, for which few platforms have a faster unit, and a sum too long for int32."""
    grouped = bool(layer.dot_axes[1]) if layer.dense else _groups(layer) > 1
    return grouped or count_summed(layer) * LARGEST_PRODUCT >= INT_LIMIT


def _shift(signed: Bool[Array, ""]) -> Array:
    return jnp.where(signed, 0, SHIFT).astype(jnp.int32)


def _one_example(layer: Layer) -> tuple[int, ...]:
    """Returns the shape of an activation with a single example: what no weight tells apart has size one."""
    if not layer.dense:
        batch = layer.equation.params["dimension_numbers"].lhs_spec[0]
        return tuple(1 if axis == batch else size for axis, size in enumerate(layer.activation_shape))
    contract, batched = layer.activation_axes
    kept = (*contract, *batched)
    return tuple(size if axis in kept else 1 for axis, size in enumerate(layer.activation_shape))


def _not_a_number(layer: Layer, activation: Array) -> Array:
    """Returns NaN for each row, or each example of a convolution, that holds one, else zero; in the output's rank."""
    rank = activation.ndim
    if not layer.dense:
        numbers = layer.equation.params["dimension_numbers"]
        summed = tuple(axis for axis in range(rank) if axis != numbers.lhs_spec[0])
        shape = [-1 if axis == numbers.out_spec[0] else 1 for axis in range(rank)]
    else:
        contract, batch = layer.activation_axes
        free = [axis for axis in range(rank) if axis not in (*contract, *batch)]
        activation = jnp.transpose(activation, (*batch, *free, *contract))
        summed = tuple(range(len(batch) + len(free), rank))
        ones = [1] * (len(layer.channel_axes) - len(batch))
        sizes = activation.shape[: rank - len(contract)]
        at = len(batch) if layer.weight_at == 0 else len(sizes)
        shape = [*sizes[:at], *ones, *sizes[at:]]
    found = jnp.isnan(activation).any(summed)
    return jnp.where(found, jnp.nan, 0.0).astype(activation.dtype).reshape(shape)
