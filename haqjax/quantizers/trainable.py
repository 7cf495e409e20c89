"""Quantisation-aware training (QAT): clips (LSQ, PACT) and codebooks that are learned together with the weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from haqjax.quantizers.bias_correction import corrects_bias, output_bias
from haqjax.quantizers.fake_quantize import clips_at, make_activation_grids, signs_at, where_valid
from haqjax.quantizers.linear import hold_step, make_grid, snap
from haqjax.quantizers.per_channel import broadcast_channels, broadcast_outputs, channel_maximum, channel_ratios
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, Hook, map_weights, with_hook
from haqjax.tracing.jaxpr import Layer
from haqjax.types import ACTIVATION, FULL_PRECISION, WEIGHT, WIDTHS, Codebook, Ranges
from haqjax.widths import are_widths, check_widths

LEAST = 1 / 16  # fraction of its first value that a clip keeps at least, so that it stays positive

Policy = Int[Array, "L 2"]
Gradient = Literal["lsq", "pact"]


class Learned(NamedTuple):
    """Parameters of fine-tuning."""

    params: PyTree
    clip: Float[Array, "L 2"]  # at the policy's widths
    codebooks: Float[Array, "L 256"] | None  # of the weights at the policy's widths; None where they are linear


def begin(params: PyTree, policy: Policy, ranges: Ranges) -> Learned:
    """Makes the parameters of fine-tuning from what calibration found.

    Raises:
      ValueError: a policy of another number of layers than the ranges'; bits that are none, outside of `jit`.
    """
    check_widths(policy, ranges.least_widths)
    if jnp.shape(policy) != jnp.shape(ranges.clip)[:2]:
        raise ValueError(f"policy has shape {jnp.shape(policy)}, but the ranges need {jnp.shape(ranges.clip)[:2]}")
    clip = clips_at(policy, ranges)
    if ranges.codebook is None:
        return Learned(params, clip, None)
    column = jnp.clip(jnp.asarray(policy)[:, WEIGHT, None, None], 1, WIDTHS) - 1
    books = jnp.take_along_axis(jnp.asarray(ranges.codebook.codebooks), column, axis=1)[:, 0]
    return Learned(params, clip, books)


def as_ranges(apply: Apply, learned: Learned, x: PyTree, policy: Policy, ranges: Ranges) -> Ranges:
    """Makes ranges that hold at every width what was learned at the policy's; weights go to their nearest level.

    Args:
      apply: pure function `apply(params, x)`.
      x: only shapes are read.
      ranges: those that `begin` was given.
    """
    ranges = to_nearest(ranges)
    first = begin(learned.params, policy, ranges)
    clip = _at_every_width(_keep_positive(learned.clip, first.clip), axis=2)
    ranges = dataclasses.replace(ranges, clip=clip, signed=_at_every_width(signs_at(policy, ranges), axis=1))
    if ranges.codebook is None or learned.codebooks is None:
        return ranges
    books = jax.vmap(sort_codebook)(learned.codebooks, policy[:, WEIGHT])
    assignments = map_weights(lambda layer, weight: nearest(weight, books[layer.index]), apply, learned.params, x)
    everywhere = Codebook(
        tuple(_at_every_width(found, axis=0) for found in assignments), _at_every_width(books, axis=1)
    )
    return dataclasses.replace(ranges, codebook=everywhere)


def end(apply: Apply, learned: Learned, x: PyTree, policy: Policy, ranges: Ranges) -> Ranges:
    """Puts what was learned at the policy's widths into the ranges; other widths stay as they were. On the host.

    Args: as `as_ranges`.
    """
    ranges = to_nearest(ranges)
    found = as_ranges(apply, learned, x, policy, ranges)
    mine = np.arange(1, WIDTHS + 1) == np.clip(np.asarray(policy), 1, WIDTHS)[..., None]
    clip = np.where(mine, found.clip, ranges.clip)
    if ranges.codebook is None or found.codebook is None:
        return dataclasses.replace(ranges, clip=clip)
    mine = mine[:, WEIGHT]
    books = np.where(mine[..., None], found.codebook.codebooks, ranges.codebook.codebooks)
    pairs = zip(mine, found.codebook.assignments, ranges.codebook.assignments, strict=True)
    assignments = tuple(np.where(this.reshape(-1, *(1,) * (new.ndim - 1)), new, old) for this, new, old in pairs)
    return dataclasses.replace(ranges, clip=clip, codebook=Codebook(assignments, books))


def quantize_learned(
    apply: Apply, *, gradient: Gradient = "lsq", hook: Hook = use_cpu_kernels
) -> Callable[[Learned, PyTree, Policy, Ranges], PyTree]:
    """Makes `apply` run under a policy as `haqjax.quantize` does, with a gradient for everything that is learned.

    Weights: straight through. With codebooks, each weight takes the nearest value of its layer's codebook at every
    call, and the gradient of a codebook's value is the sum over the weights that took it (Han et al. 2016, arXiv
    1510.00149, section 3.3), here divided by their number on average: it moves as its members do.

    Clips, "lsq": as `haqjax.quantizers.linear.snap`, such that the step moves as in Esser et al. 2020 (arXiv
    1902.08153, section 2.2), where its gradient is divided by `sqrt(elements levels)`. "pact": of activations alone,
    from what is clipped alone (Choi et al. 2018, arXiv 1805.06085, equation 3).

    Args:
      apply: pure function `apply(params, x)`; one that also returns moved statistics will do.
      gradient: of the clips.
      hook: how a layer is computed.

    Returns:
      `qapply(learned, x, policy, ranges)` with the output of `apply`; `ranges` are those that `begin` was given.

    >>> from haqjax.quantizers.calibration import calibrate
    >>> apply = lambda params, x: x @ params["w"]
    >>> params, x, policy = {"w": jnp.array([[0.5], [1.0]])}, jnp.array([[1.0, 0.25]]), jnp.array([[32, 2]])
    >>> ranges = calibrate(apply, params, [x], method="max")
    >>> print(quantize_learned(apply)(begin(params, policy, ranges), x, policy, ranges))
    [[0.8333334]]
    """

    def qapply(learned: Learned, x: PyTree, policy: Policy, ranges: Ranges) -> PyTree:
        clip = _keep_positive(learned.clip, begin(learned.params, policy, ranges).clip)
        if gradient == "lsq":
            clip = scale_gradient(clip, _clip_scale(apply, learned.params, x, policy, ranges))
        else:
            clip = clip.at[:, WEIGHT].set(jax.lax.stop_gradient(clip[:, WEIGHT]))
        grids = make_activation_grids(clip[:, ACTIVATION], policy, ranges)
        grids = grids if gradient == "lsq" else hold_step(grids)
        weights = _quantize_weights(apply, learned._replace(clip=clip), x, policy, ranges)

        def on_layer(layer: Layer, activation: Array, weight: Array, compute: Compute) -> Array:
            grid = jax.tree.map(lambda leaf: leaf[layer.index], grids)
            rounded = layer.arrange(weights[layer.index])
            if layer.lookup:
                return compute(activation, rounded)
            y = hook(layer, snap(activation, grid), rounded, compute)
            if not corrects_bias(ranges):
                return y
            bias = output_bias(layer, weight, rounded, ranges)
            return y + broadcast_outputs(layer, bias).astype(y.dtype)

        y = with_hook(apply, on_layer)(learned.params, x)
        return where_valid(are_widths(policy, ranges.least_widths), y)

    return qapply


@jax.custom_jvp
def scale_gradient(x: Float[Array, "*n"], scale: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns `x`, whose gradient is multiplied by `scale`.

    >>> print(jax.grad(lambda x: 3 * scale_gradient(x, 0.5))(1.0))
    1.5
    """
    return x


@scale_gradient.defjvp
def _scale_tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] * primals[1]


def sort_codebook(codebook: Float[Array, "256"], bits: Int[Array, ""]) -> Float[Array, "256"]:
    """Sorts the codebook of a width in rising order and pads the rest of the row with its last value.

    >>> print(sort_codebook(jnp.arange(256.0)[::-1], 1)[:4])
    [254. 255. 255. 255.]
    """
    last = jnp.left_shift(1, jnp.clip(bits, 1, WIDTHS)) - 1
    rising = jnp.sort(jnp.where(jnp.arange(codebook.size) <= last, codebook, jnp.inf))
    return jnp.where(jnp.arange(codebook.size) <= last, rising, rising[last])


def nearest(weight: Float[Array, "*shape"], codebook: Float[Array, "256"]) -> UInt8[Array, "*shape"]:
    """Finds the value of a sorted codebook that is nearest to each weight; of two at the same distance the lower one.

    >>> print(nearest(jnp.array([0.2, 0.8, 7.0]), sort_codebook(jnp.arange(256.0), 1)))
    [0 1 1]
    """
    between = (codebook[1:] + codebook[:-1]) / 2
    assignments = jnp.searchsorted(between, weight.reshape(-1)).reshape(weight.shape)
    return jnp.minimum(assignments, jnp.searchsorted(codebook, codebook[-1])).astype(jnp.uint8)


def look_up(weight: Float[Array, "*shape"], codebook: Float[Array, "256"]) -> Float[Array, "*shape"]:
    """Replaces each weight by its nearest value of a sorted codebook.

    The gradient passes straight through to the weight; that of a value of the codebook is the sum over the weights
    that took it.
    """
    return codebook[nearest(weight, codebook)] + (weight - jax.lax.stop_gradient(weight))


def _quantize_weights(apply: Apply, learned: Learned, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Array, ...]:
    if learned.codebooks is None:
        return _linear_weights(apply, learned, x, policy, ranges)
    bits, books = policy[:, WEIGHT], learned.codebooks

    def from_codebook(layer: Layer, weight: Array) -> Array:
        width = bits[layer.index]
        each = jnp.left_shift(1, jnp.clip(width, 1, WIDTHS)) / weight.size
        book = sort_codebook(books[layer.index], width)
        taken = look_up(weight, scale_gradient(book, jnp.where(book == 0, 0, each)))  # zero stays zero
        return jnp.where(width >= FULL_PRECISION, weight, taken)

    return map_weights(from_codebook, apply, learned.params, x)


def _linear_weights(apply: Apply, learned: Learned, x: PyTree, policy: Policy, ranges: Ranges) -> tuple[Array, ...]:
    """Quantises weights as `haqjax.quantizers.fake_quantize.quantize_weights`; a step has a gradient by its clip alone.

    Through a channel's largest weight every weight of the channel would pull at one.
    """
    maxima = jax.lax.stop_gradient(map_weights(channel_maximum, apply, learned.params, x))
    ratios, layer_of = channel_ratios(maxima)
    bits = policy[layer_of, WEIGHT]
    clip = learned.clip[layer_of, WEIGHT] * (ratios if ranges.per_channel else 1)
    grids = make_grid(clip, bits, jnp.ones(len(layer_of), bool))
    ends = np.cumsum([len(largest) for largest in maxima])

    def quantized(layer: Layer, weight: Array) -> Array:
        mine = slice(ends[layer.index] - len(maxima[layer.index]), ends[layer.index])
        grid = jax.tree.map(lambda leaf: broadcast_channels(layer, leaf[mine]), grids)
        return snap(weight, grid)

    return map_weights(quantized, apply, learned.params, x)


def _at_every_width(x: Array, axis: int) -> Array:
    return jnp.repeat(jnp.expand_dims(x, axis), WIDTHS, axis=axis)


def _keep_positive(clip: Float[Array, "L 2"], first: Float[Array, "L 2"]) -> Float[Array, "L 2"]:
    return jnp.maximum(clip, LEAST * first)


def _clip_scale(apply: Apply, params: PyTree, x: PyTree, policy: Policy, ranges: Ranges) -> Float[Array, "L 2"]:
    """Computes the factor on a clip's gradient that moves its step by the step's own gradient over `sqrt(N n)`.

    The clip is `n` steps: a step's gradient is `n` times the clip's, and the clip moves `n` times as far as the step.
    """
    batch = jax.tree.leaves(x)[0].shape[0]
    sizes = map_weights(lambda layer, w: (w.size, math.prod(layer.activation_shape) / batch), apply, params, x)
    signed = signs_at(policy, ranges)
    sides = jnp.stack([jnp.ones_like(signed), signed], axis=1).astype(jnp.int32)
    levels = jnp.left_shift(1, jnp.clip(policy, 1, WIDTHS) - sides) - 1
    return levels**1.5 / jnp.sqrt(jnp.array(sizes))
