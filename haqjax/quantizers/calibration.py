"""Calibration: clip values and signs for every layer and width from one pass over a few batches."""

import functools
import warnings
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from haqjax.quantizers.clipping import METHODS, Clip, choose
from haqjax.quantizers.histogram import (
    Histogram,
    add_samples,
    bin_edges,
    count_on_host,
    draw_sample,
    empty_histogram,
    join_samples,
    stack_samples,
)
from haqjax.quantizers.im2col import ROWS
from haqjax.quantizers.input_moments import Moments, empty_moments, find_moments
from haqjax.quantizers.per_channel import input_energy
from haqjax.quantizers.rounding_offsets import make_rounding
from haqjax.tracing.batch_axes import count_examples
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, map_weights, only_arrays, with_records
from haqjax.tracing.jaxpr import Layer
from haqjax.tracing.parameters import check_params
from haqjax.types import Ranges

ROUNDINGS = ("output", "nearest")
OFFSET = 16  # standard deviations that a mean is away from zero where that is told
SAME = 1e-6  # relative range of inputs that are all one value


def calibrate(
    apply: Apply,
    params: PyTree,
    batches: Iterable[PyTree],
    method: str = "mse",
    *,
    per_channel: bool = True,
    rounding: str | None = None,
    correct_bias: bool | None = None,
    batch_axis: PyTree = 0,
) -> Ranges:
    """Chooses where to clip each layer's weight and activation at every width, and how to round its weights.

    The float network runs once over the batches. Each layer's activations are counted in a histogram that covers every
    order of magnitude, and the products of its inputs are summed. An activation is signed at the widths at which that
    makes its squared error less. Neither the order of the batches nor the way that examples are cut into them changes a
    clip, but for the rounding of sums: by less than 1e-4 of itself, or by one candidate clip where two are as good.

    An activation that was zero throughout, such as the input of a branch that no example took, says nothing about its
    clip: it is left in floating point (`Ranges.reached` is false), with a warning that names the layer. Inputs far from
    zero, of which few bits tell little since levels start at zero, are a warning, too.

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
      batch_axis: the axis of a batch that counts examples, see `haqjax.layers`.
    Returns:
      Clip values [L, 2, 8], signed flags [L, 8], and what the options ask for, on the host.
    Raises:
      ValueError: an unknown method or rounding; no batch, or one without examples; a parameter or an input of a layer
        that is not finite; names it.

    >>> apply = lambda params, x: x @ params["w"]
    >>> ranges = calibrate(apply, {"w": jnp.ones((2, 1))}, [jnp.array([[0.5, -3.0]])], method="max")
    >>> ranges.clip.shape, float(ranges.clip[0, 1, 7]), bool(ranges.signed[0, 7])
    ((1, 2, 8), 3.0, True)
    """
    rounding = rounding or ("output" if method == "mse" else "nearest")
    _check_options(method, rounding)
    use_comq = rounding == "output" and per_channel
    correct_bias = rounding == "output" if correct_bias is None else correct_bias
    check_params(params)
    apply, params = only_arrays(apply, params)
    rows: tuple[tuple[Layer, np.ndarray], ...] = ()
    for number, x in enumerate(_check_batches(batches)):
        _check_batch(x, number)
        examples = count_examples(x, batch_axis)
        if not rows:
            rows = map_weights(lambda use, weight: (use, np.asarray(weight)), apply, params, x, each_use=True)
            first = [(use, weight) for use, weight in rows if use.use == 0]
            activations = empty_histogram(len(first))
            sums = empty_moments(rows, use_comq, correct_bias)
            layer_of = tuple(use.index for use, _ in rows)
            shapes = jax.tree.map(np.shape, x)
            # The turns of a `while` are known where it runs, outside of `jit`.
            count = _count_in_one_program if not any(use.untold for use, _ in rows) else _count_activations
        if jax.tree.map(np.shape, x) != shapes:
            others = map_weights(lambda use, _: use.index, apply, params, x, each_use=True)
            if others != layer_of:
                raise ValueError(
                    f"batch {number} is of a size at which the network reads its weights at other places: calibrate on "
                    "batches of one size"
                )
        activations, sums = count(apply, params, x, activations, sums, method == "mse", examples, layer_of)
    if not rows:
        raise ValueError("no batch to calibrate on: pass at least one")
    names, weights = [layer.name for layer, _ in first], _count_weights(first, per_channel, method == "mse")
    _check_finite(names, weights, activations)
    reached = np.asarray(activations.largest) > 0
    _warn(names, activations, reached)
    of_weights, of_activations = _choose(method, weights, activations)
    clip = np.stack([of_weights.value, of_activations.value], axis=1)
    adapted = make_rounding(rows, clip[:, 0], sums) if use_comq or correct_bias else None
    return Ranges(clip, np.asarray(of_activations.signed), per_channel, rounding=adapted, reached=reached)


def _count_activations(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    so_far: Histogram,
    sums: tuple[Moments, ...],
    weighted: bool,
    examples: int,
    layer_of: tuple[int, ...],
) -> tuple[Histogram, tuple[Moments, ...]]:
    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, tuple]:
        if layer.lookup:
            return compute(activation, weight), (None, sums[layer.place])
        energy, times = input_energy(layer, weight) if weighted else 1.0, layer.turns
        known = sums[layer.place]
        asked = known.second is not None, known.first is not None
        mine = find_moments(layer, activation, max(1, ROWS // times) * examples, *asked)
        sample = draw_sample(activation, energy, examples, times, getattr(compute, "turn", 0))
        return use_cpu_kernels(layer, activation, weight, compute), (sample, mine)

    samples, more = zip(*with_records(apply, hook)(params, x)[1], strict=True)
    rows = [[sample for at, sample in zip(layer_of, samples, strict=True) if at == row] for row in sorted({*layer_of})]
    grown = jax.tree.map(lambda total, turns: total + turns.reshape(-1, *total.shape).sum(0), sums, more)
    return add_samples(so_far, stack_samples(tuple(map(join_samples, rows)))), grown


_count_in_one_program = jax.jit(_count_activations, static_argnums=(0, 5, 6, 7))


def _count_weights(rows: Sequence[tuple[Layer, np.ndarray]], per_channel: bool, squared: bool) -> Histogram:
    """Counts the weights; per channel, each weight relative to its channel, at the scale of the tensor.

    A squared error then counts by the square of the channel's magnitude over the tensor's.
    """

    def count(layer: Layer, weight: np.ndarray) -> Histogram:
        weight = weight.astype(np.float32)
        if not per_channel or layer.one_scale:
            return count_on_host(weight)
        summed = tuple(axis for axis in range(weight.ndim) if axis not in layer.channel_axes)
        largest = np.abs(weight).max(axis=summed, keepdims=True)
        ratio = largest / (largest.max() if largest.max() > 0 else 1)
        scale = np.where(ratio > 0, ratio, 1)
        return count_on_host(weight / scale, scale**2 if squared else 1.0)

    with np.errstate(all="ignore"):  # what is not finite is told later, by the name of its layer
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(count(*row) for row in rows))


@functools.partial(jax.jit, static_argnums=0)
def _choose(method: str, weights: Histogram, activations: Histogram) -> tuple[Clip, Clip]:
    """Chooses clips [L, 8] and signs [L, 8] of weights and of activations, one tensor after another."""
    count = len(weights.lowest)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), weights, activations)
    found = jax.lax.map(lambda row: choose(method, *row), (both, jnp.arange(2 * count) < count))
    return jax.tree.map(lambda leaf: leaf[:count], found), jax.tree.map(lambda leaf: leaf[count:], found)


def _check_batches(batches: Iterable[PyTree]) -> Iterable[PyTree]:
    """Refuses one array, or one mapping, in place of a list of them."""
    if hasattr(batches, "shape") or isinstance(batches, dict) or not hasattr(batches, "__iter__"):
        shape = getattr(batches, "shape", None)
        kind = type(batches).__name__ if shape is None else f"an array of shape {shape}"
        raise ValueError(f"batches is {kind}: pass a list of batches, such as [images]")
    return batches


def _check_batch(x: PyTree, number: int) -> None:
    leaves = jax.tree.leaves(x)
    if not leaves or any(np.size(leaf) == 0 for leaf in leaves):
        raise ValueError(f"batch {number} to calibrate on has no examples: leave such batches out")


def _warn(names: Sequence[str], activations: Histogram, reached: Bool[np.ndarray, "L"]) -> None:
    """Warns of activations that calibration says nothing about, and of those that few bits cannot tell apart."""
    unreached = [name for name, is_reached in zip(names, reached, strict=True) if not is_reached]
    if unreached:
        warnings.warn(
            f"the input of layer {unreached[0]!r} was zero throughout calibration ({len(unreached)} such layers): it "
            "is left in floating point; calibrate on examples that reach it",
            stacklevel=3,
        )
    mean, deviation = _moments(activations)
    lowest, highest = np.asarray(activations.lowest, np.float64), np.asarray(activations.highest, np.float64)
    varied = highest - lowest > SAME * np.maximum(-lowest, highest)
    for name, centre, width in zip(*(np.asarray(names)[varied], mean[varied], deviation[varied]), strict=True):
        if abs(centre) > OFFSET * width:
            warnings.warn(
                f"the inputs of layer {str(name)!r} lie around {centre:.3g}, {width:.2g} about it: levels start at "
                "zero, so few bits tell them apart; take the mean off before the layer",
                stacklevel=3,
            )


def _moments(histogram: Histogram) -> tuple[Float[np.ndarray, "L"], Float[np.ndarray, "L"]]:
    """Computes means and standard deviations from the middles of bins."""
    edges = np.nan_to_num(bin_edges().astype(np.float64), posinf=0.0)
    middle = (edges[1:] + edges[:-1]) / 2
    positive, negative = (np.asarray(counts, np.float64) for counts in (histogram.positive, histogram.negative))
    count = np.maximum(positive.sum(1) + negative.sum(1), np.finfo(np.float64).tiny)
    mean = (positive - negative) @ middle / count
    square = (positive + negative) @ middle**2 / count
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _check_options(method: str, rounding: str) -> None:
    for option, value, known in (("calibration method", method, METHODS), ("rounding", rounding, ROUNDINGS)):
        if value not in known:
            raise ValueError(f"unknown {option} {value!r}: one of {', '.join(known)}")


def _check_finite(names: Sequence[str], weights: Histogram, activations: Histogram) -> None:
    for kind, histogram in (("weight", weights), ("input", activations)):
        finite = np.asarray(histogram.finite)
        bad = [name for name, good in zip(names, finite, strict=True) if not good]
        if bad:
            raise ValueError(
                f"the {kind} of layer {bad[0]!r} is not finite ({len(bad)} such layers): check the weights"
            )
