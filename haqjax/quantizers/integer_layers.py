"""The forward pass of a network under a policy, in integer arithmetic: `y = (sum of q_a q_w) (s_a s_w) + bias`.

The sum is exact, and so the same number whatever computes it: any number of images at a time, policies side by side,
any device (Jacob et al. 2018, arXiv 1712.05877, section 2.1). Products of floats between layers are rounded before they
are added to anything, so that elementwise arithmetic is the same everywhere, too. What is left in floating point, at 32
bits or with k-means weights, is multiplied as floats.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.quantizers.bias_correction import output_biases
from haqjax.quantizers.fake_quantize import (
    Encoded,
    activation_grids,
    check_policy,
    encode_weights,
    repeat_row,
    signs_at,
    where_valid,
)
from haqjax.quantizers.linear import Grid, encode, scale_of, snap
from haqjax.quantizers.per_channel import broadcast_outputs
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, Hook, map_weights, with_hook
from haqjax.tracing.integer_products import Arithmetic, Weights, multiply, ready_weights, safe_arithmetic
from haqjax.tracing.interpreter import Computed
from haqjax.tracing.jaxpr import Layer, dtype_of
from haqjax.tracing.rounded_products import opaque_zero, round_product, rounds_products
from haqjax.types import WEIGHT, Ranges
from haqjax.widths import are_widths

Policy = Int[Array, "L 2"]


class Operands(NamedTuple):
    """What one layer is computed with under a policy, for any number of batches."""

    weights: Weights  # codes; of a lookup the values of the table
    grid: Grid  # of the activation, scalars
    signed: Bool[Array, ""]  # the activation's codes
    whole: Bool[Array, ""]  # both operands are codes
    scale: Float[Array, "C"]  # of the sums: the product of both steps
    bias: Float[Array, "C"] | None  # that corrects the means of the outputs


LayerOperands = tuple[tuple[Operands, ...], ...]  # by layer, then by use


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """The operands of all layers under a policy, those of one number each in vectors."""

    weights: tuple[Weights, ...]  # one a use, as the biases
    grids: Grid  # [L]
    signed: Bool[Array, "L"]
    whole: Bool[Array, "L"]
    scales: Float[Array, "sum_C"]
    biases: tuple[Float[Array, "C"] | None, ...] | None
    channels: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of each use's output
    layer_of: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of each use

    def operands(self) -> LayerOperands:
        """Cuts them into uses: where they are read, since each piece alone would be a kernel of its own."""
        ends = np.cumsum(self.channels).tolist()

        def cut(place: int, at: int) -> Operands:
            grid = jax.tree.map(lambda leaf: leaf[at], self.grids)
            scale = self.scales[ends[place] - self.channels[place] : ends[place]]
            bias = None if self.biases is None else self.biases[place]
            return Operands(self.weights[place], grid, self.signed[at], self.whole[at], scale, bias)

        uses: list[list[Operands]] = [[] for _ in range(self.signed.shape[-1])]
        for place, at in enumerate(self.layer_of):
            uses[at].append(cut(place, at))
        return tuple(map(tuple, uses))


def quantize(apply: Apply) -> Callable[[PyTree, PyTree, Policy, Ranges], PyTree]:
    """Makes `apply` run under a policy that is data: one compilation serves every policy.

    A layer is what integer hardware computes: the exact sum of products of codes, multiplied once by the steps of both
    operands. Its gradient is that of the same layer on the values of the codes, straight through both roundings.

    Args:
      apply: pure function `apply(params, x)`.
    Returns:
      `qapply(params, x, policy, ranges)` with the output of `apply`: `policy` int32 [L, 2], or [1, 2] for all layers
      alike, holds weight and activation bits, 2..8 (weights 1..8 with a codebook), or 32 to leave a tensor as it is;
      `ranges` come from `calibrate`. Works under `jit`, `vmap`, `grad`. There the bits are not known while the program
      is made: with any others the whole output is NaN, and the least number of its type where it is of integers.
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
        policy = repeat_row(policy, ranges)
        check_policy(apply, params, x, policy, ranges)
        encoded = encode_weights(apply, params, x, policy, ranges)
        operands = prepare_layers(apply, params, x, policy, ranges, encoded=encoded).operands()
        zero = hidden_zero(ranges)
        hook = _differentiable_hook(operands, [weight.value for weight in encoded], zero)
        y = with_hook(apply, hook, rounds_products(zero))(params, x)
        return where_valid(are_widths(jnp.asarray(policy), ranges.least_widths), y)

    return qapply


def prepare_network(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    policy: Policy,
    ranges: Ranges,
    arithmetic: Sequence[Arithmetic] | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Makes `(params, images) -> logits` under a policy, with weights that are quantised here, once for all batches.

    It has no gradient. The arguments are those of `prepare_layers`.
    """
    return with_prepared(apply, prepare_layers(apply, params, x, policy, ranges, arithmetic), ranges, arithmetic)


def with_prepared(
    apply: Apply, prepared: Prepared, ranges: Ranges, arithmetic: Sequence[Arithmetic] | None = None
) -> Apply:
    """Returns `apply` with its layers computed on operands from `prepare_layers`, for the same arithmetic."""

    def network(params: PyTree, x: PyTree) -> PyTree:
        return with_operands(apply, prepared.operands(), ranges, arithmetic)(params, x)

    return network


def prepare_layers(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    policy: Policy,
    ranges: Ranges,
    arithmetic: Sequence[Arithmetic] | None = None,
    encoded: tuple[Encoded, ...] | None = None,
) -> Prepared:
    """Prepares the operands of every layer under a policy, once for all batches.

    Under `vmap` over policies, sums over weights, such as those that correct biases, may be taken in another order.

    Args:
      x: only shapes are read.
      arithmetic: how each layer's products are computed; None is exact for any weights.
      encoded: the weights, where they have been quantised already.
    """
    encoded = encode_weights(apply, params, x, policy, ranges) if encoded is None else encoded
    grids, signed = activation_grids(policy, ranges), signs_at(policy, ranges)

    def ready(layer: Layer, weight: Array) -> tuple[int, Weights, Array]:
        form, mine = _arithmetic_of(layer, arithmetic).form, encoded[layer.index]
        if layer.lookup:
            return layer.index, Weights(layer.arrange(mine.value), None), layer.arrange_channels(mine.step)
        ready_to_use = ready_weights(layer, layer.arrange(mine.code), signed[layer.index], form)
        return layer.index, ready_to_use, layer.arrange_channels(mine.step)

    layer_of, weights, steps = zip(*map_weights(ready, apply, params, x, each_use=True), strict=True)
    channels = tuple(len(step) for step in steps)
    return Prepared(
        weights,
        grids,
        signed,
        jnp.stack([weight.whole for weight in encoded]) & ~grids.identity,
        jnp.concatenate(steps) * scale_of(grids)[np.repeat(layer_of, channels)],
        output_biases(apply, params, tuple(weight.value for weight in encoded), x, ranges),
        channels,
        layer_of,
    )


def with_operands(
    apply: Apply,
    operands: LayerOperands,
    ranges: Ranges,
    arithmetic: Sequence[Arithmetic] | None = None,
) -> Apply:
    """Returns `apply` with its layers computed on such operands, prepared for the same arithmetic."""
    zero = hidden_zero(ranges)
    return with_hook(apply, hook_with(operands, zero, arithmetic), rounds_products(zero))


def hook_with(operands: LayerOperands, zero: Int[Array, ""], arithmetic: Sequence[Arithmetic] | None = None) -> Hook:
    """Makes the hook of `with_operands`; `zero` is from `hidden_zero`."""

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
        return _compute(layer, activation, operands[layer.index][layer.use], zero, _arithmetic_of(layer, arithmetic))

    return hook


def hidden_zero(ranges: Ranges) -> Int[Array, ""]:
    """Computes the zero by which products are kept apart from sums, see `haqjax.tracing.rounded_products`.

    No compiler knows that clips are positive, as long as they are an argument of the program.
    """
    return opaque_zero(jnp.asarray(ranges.clip)[0, WEIGHT, -1])


def _compute(layer: Layer, activation: Array, mine: Operands, zero: Int[Array, ""], arithmetic: Arithmetic) -> Array:
    """Computes one layer: codes, their exact sums, and one multiplication; or picks entries of a table of values."""
    if layer.lookup:
        return Computed(layer)(activation, mine.weights.integers)
    sums = multiply(layer, encode(activation, mine.grid), mine.weights, arithmetic, mine.signed, mine.whole)
    y = round_product(sums * broadcast_outputs(layer, mine.scale).astype(sums.dtype), zero)
    y = y if mine.bias is None else y + broadcast_outputs(layer, mine.bias).astype(sums.dtype)
    return y.astype(dtype_of(layer.equation.outvars[0]))


def _differentiable_hook(operands: LayerOperands, values: Sequence[Array], zero: Int[Array, ""]) -> Hook:
    """Makes the hook whose gradient is that of the layer on the values of the codes; `values` are the weights'."""

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
        mine = operands[layer.index][layer.use]
        if layer.lookup:
            return compute(activation, layer.arrange(values[layer.index]))

        @jax.custom_jvp
        def exact(values: tuple[Array, Array], activation: Array, mine: Operands, zero: Array) -> Array:
            return _compute(layer, activation, mine, zero, safe_arithmetic(layer))

        @exact.defjvp
        def straight_through(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
            def plain(activation: Array, weight: Array) -> Array:
                return use_cpu_kernels(layer, activation, weight, compute)

            return exact(*primals), jax.jvp(plain, primals[0], tangents[0])[1]

        return exact((snap(activation, mine.grid), layer.arrange(values[layer.index])), activation, mine, zero)

    return hook


def _arithmetic_of(layer: Layer, arithmetic: Sequence[Arithmetic] | None) -> Arithmetic:
    return safe_arithmetic(layer) if arithmetic is None else arithmetic[layer.index]
