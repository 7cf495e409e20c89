"""Calibration: clip values for every layer and width from one pass over a few batches."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from haqjax.quantizers.clipping import (
    METHODS,
    Histogram,
    Row,
    Sample,
    add_samples,
    draw_sample,
    empty_histogram,
)
from haqjax.quantizers.im2col import ROWS
from haqjax.quantizers.input_moments import Moments, add_moments, empty_moments
from haqjax.quantizers.per_channel import broadcast_channels, channel_maximum, input_energy
from haqjax.quantizers.rounding_offsets import make_rounding
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, map_weights, with_records
from haqjax.tracing.jaxpr import Layer
from haqjax.types import Ranges

ROUNDINGS = ("output", "nearest")


def calibrate(
    apply: Apply,
    params: PyTree,
    batches: Iterable[PyTree],
    method: str = "mse",
    *,
    per_channel: bool = True,
    rounding: str | None = None,
    correct_bias: bool | None = None,
) -> Ranges:
    """Chooses where to clip each layer's weight and activation at every width, and how to round its weights.

    The float network runs once over the batches; each layer's activations are counted in a histogram that grows with
    them, and the products of its inputs are summed. An activation that is ever negative is signed.

    Args:
      apply: pure function `apply(params, x)`.
      batches: inputs of the network, a few hundred examples in all; batches of one size compile once.
      method: "mse" (least squared error, that of an activation weighted by the weights that read it), "max",
        "percentile" (99.99) or "kl".
      per_channel: scale the clip of a weight to each output channel's largest magnitude, or use one clip for all.
      rounding: of weights: "output" chooses levels and clips by the error at each layer's output, see
        `haqjax.quantizers.comq`; "nearest" by each weight alone, as `per_channel=False` always does. None is "output"
        with the method "mse", and "nearest" with the others, whose clips are then used as they are.
      correct_bias: take off what the rounding of weights adds to a layer's output on average, see
        `haqjax.quantizers.bias_correction`. None does so where the rounding is "output".
    Returns:
      Clip values [L, 2, 8], signed flags [L], and what the options ask for, on the host.
    Raises:
      ValueError: an unknown method or rounding, no batch, or a tensor that is not finite; names the layer.

    >>> apply = lambda params, x: x @ params["w"]
    >>> ranges = calibrate(apply, {"w": jnp.ones((2, 1))}, [jnp.array([[0.5, -3.0]])], method="max")
    >>> ranges.clip.shape, float(ranges.clip[0, 1, 7]), ranges.signed.tolist()
    ((1, 2, 8), 3.0, [True])
    """
    rounding = rounding or ("output" if method == "mse" else "nearest")
    _check_options(method, rounding)
    use_comq = rounding == "output" and per_channel
    correct_bias = rounding == "output" if correct_bias is None else correct_bias
    names: tuple[str, ...] = ()
    for x in batches:
        if not names:
            names = map_weights(lambda layer, weight: layer.name, apply, params, x)
            weights = _count_weights(apply, params, x, per_channel, method == "mse")
            activations = empty_histogram(len(names))
            sums = empty_moments(apply, params, x, use_comq, correct_bias)
            example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x)
        activations, sums = _count_activations(apply, params, x, activations, sums, method == "mse")
    if not names:
        raise ValueError("no batch to calibrate on: pass at least one")
    _check_finite(names, weights, activations)
    signed = activations.lowest < 0
    clips = [_choose(method, weights, jnp.ones_like(signed)), _choose(method, activations, signed)]
    adapted = make_rounding(apply, params, example, np.asarray(clips[0]), sums) if use_comq or correct_bias else None
    return Ranges(np.stack(clips, axis=1), np.asarray(signed), per_channel, rounding=adapted)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _count_activations(
    apply: Apply, params: PyTree, x: PyTree, so_far: Histogram, sums: tuple[Moments, ...], weighted: bool
) -> tuple[Histogram, tuple[Moments, ...]]:
    most = ROWS * jax.tree.leaves(x)[0].shape[0]

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, tuple]:
        energy = input_energy(layer, weight) if weighted else 1.0
        mine = add_moments(sums[layer.index], layer, activation, most)
        return use_cpu_kernels(layer, activation, weight, compute), (draw_sample(activation, energy), mine)

    samples, grown = zip(*with_records(apply, hook)(params, x)[1], strict=True)
    return add_samples(so_far, _stack(samples)), grown


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _count_weights(apply: Apply, params: PyTree, x: PyTree, per_channel: bool, squared: bool) -> Histogram:
    """Counts the weights; per channel, each weight relative to its channel, at the scale of the tensor.

    A squared error then counts by the square of the channel's magnitude over the tensor's.
    """

    def sample(layer: Layer, weight: Array) -> Sample:
        if not per_channel:
            return draw_sample(weight)
        largest = channel_maximum(layer, weight)
        ratio = largest / jnp.where(jnp.max(largest) > 0, jnp.max(largest), 1)
        scale = broadcast_channels(layer, jnp.where(ratio > 0, ratio, 1))
        return draw_sample(weight / scale, scale**2 if squared else 1.0)

    samples = _stack(map_weights(sample, apply, params, x))
    return add_samples(empty_histogram(len(samples.lowest)), samples)


@functools.partial(jax.jit, static_argnums=0)
def _choose(method: str, histogram: Histogram, signed: Bool[Array, "L"]) -> Float[Array, "L 8"]:
    rows = Row(histogram.counts, histogram.limit, histogram.largest)
    clip = jax.lax.map(lambda row: METHODS[method](*row), (rows, signed))
    return jnp.where(clip > 0, clip, 1)  # a tensor of zeros: any clip leaves it zero


def _check_options(method: str, rounding: str) -> None:
    for option, value, known in (("calibration method", method, METHODS), ("rounding", rounding, ROUNDINGS)):
        if value not in known:
            raise ValueError(f"unknown {option} {value!r}: one of {', '.join(known)}")


def _stack(samples: tuple[Sample, ...]) -> Sample:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)


def _check_finite(names: tuple[str, ...], weights: Histogram, activations: Histogram) -> None:
    for kind, histogram in (("weight", weights), ("input", activations)):
        finite = np.isfinite(histogram.largest)
        bad = [name for name, good in zip(names, finite, strict=True) if not good]
        if bad:
            raise ValueError(
                f"the {kind} of layer {bad[0]!r} is not finite ({len(bad)} such layers): check the weights"
            )
