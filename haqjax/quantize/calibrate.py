"""Clip values for every layer and width from one pass over a few batches."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from haqjax.capture import Apply, Compute, map_weights, with_records
from haqjax.graph import Layer
from haqjax.lowering import lower
from haqjax.quantize.channels import channel_maximum, spread_channels
from haqjax.quantize.histogram import Histogram, Sample, add, draw, empty
from haqjax.quantize.ranges import METHODS, Row
from haqjax.types import Ranges


def calibrate(
    apply: Apply, params: PyTree, batches: Iterable[PyTree], method: str = "mse", *, per_channel: bool = True
) -> Ranges:
    """Chooses where to clip each layer's weight and activation at every width, and which activations are signed.

    The float network runs once over the batches; each layer's activations are counted in a histogram that grows with
    them. An activation that is ever negative is signed.

    Args:
      apply: pure function `apply(params, x)`.
      batches: inputs of the network, a few hundred examples in all; batches of one size compile once.
      method: "mse" (least squared error), "max", "percentile" (99.99) or "kl".
      per_channel: scale the clip of a weight to each output channel's largest magnitude, or use one clip for all.
    Returns:
      Clip values [L, 2, 8] and signed flags [L], on the host.
    Raises:
      ValueError: an unknown method, no batch, or a tensor that is not finite; names the layer.

    >>> apply = lambda params, x: x @ params["w"]
    >>> ranges = calibrate(apply, {"w": jnp.ones((2, 1))}, [jnp.array([[0.5, -3.0]])], method="max")
    >>> ranges.clip.shape, float(ranges.clip[0, 1, 7]), ranges.signed.tolist()
    ((1, 2, 8), 3.0, [True])
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration method {method!r}: one of {', '.join(METHODS)}")
    names: tuple[str, ...] = ()
    for x in batches:
        if not names:
            names = map_weights(lambda layer, weight: layer.name, apply, params, x)
            weights, activations = _count_weights(apply, params, x, per_channel, method == "mse"), empty(len(names))
        activations = _count_activations(apply, params, x, activations)
    if not names:
        raise ValueError("no batch to calibrate on: pass at least one")
    _check_finite(names, weights, activations)
    signed = activations.lowest < 0
    clips = [_choose(method, weights, jnp.ones_like(signed)), _choose(method, activations, signed)]
    return Ranges(np.stack(clips, axis=1), np.asarray(signed), per_channel)


@functools.partial(jax.jit, static_argnums=0)
def _count_activations(apply: Apply, params: PyTree, x: PyTree, so_far: Histogram) -> Histogram:
    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, Sample]:
        return lower(layer, activation, weight, compute), draw(activation)

    return add(so_far, _stack(with_records(apply, hook)(params, x)[1]))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _count_weights(apply: Apply, params: PyTree, x: PyTree, per_channel: bool, squared: bool) -> Histogram:
    """Histograms of the weights; per channel, of each weight relative to its channel, at the scale of the tensor.

    What a squared error counts for then goes with the square of the channel's share of the tensor's magnitude.
    """

    def sample(layer: Layer, weight: Array) -> Sample:
        if not per_channel:
            return draw(weight)
        largest = channel_maximum(layer, weight)
        share = largest / jnp.where(jnp.max(largest) > 0, jnp.max(largest), 1)
        spread = spread_channels(layer, jnp.where(share > 0, share, 1))
        return draw(weight / spread, spread**2 if squared else 1.0)

    samples = _stack(map_weights(sample, apply, params, x))
    return add(empty(len(samples.lowest)), samples)


@functools.partial(jax.jit, static_argnums=0)
def _choose(method: str, histogram: Histogram, signed: Bool[Array, "L"]) -> Float[Array, "L 8"]:
    rows = Row(histogram.counts, histogram.limit, histogram.largest)
    clip = jax.lax.map(lambda row: METHODS[method](*row), (rows, signed))
    return jnp.where(clip > 0, clip, 1)  # a tensor of zeros: any clip leaves it zero


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
