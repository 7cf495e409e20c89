"""Histograms of tensors over the whole range of floats: a bin for each value of bfloat16.

A bin holds the floats that agree in sign, exponent and the first 7 bits of the mantissa: it is 1/128 to 1/256 of its
values wide, from the smallest number to the largest. No range has to be known beforehand, so neither the order of
batches nor the way that examples are cut into them matters, but for the rounding of sums.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from haqjax.quantizers.im2col import coprime_stride

BINS = 1 << 15  # a side of zero: 8 bits of exponent and 7 of mantissa
SHIFT = 16  # of the bits of a float32 that a bin does not tell apart
SAMPLES = 1 << 11  # of one example in one tensor, at most so many elements are counted; extremes are taken over all
LEAST = 8  # elements that are counted in each turn of a loop at least
STEP = 7919  # places that a turn begins behind the one before: a prime, so that all are counted in time
WEIGHT_SAMPLES = 1 << 15  # of one weight


class Sample(NamedTuple):
    """Elements of one tensor for its histogram."""

    values: Float[Array, "S"]
    weight: Float[Array, "S"]  # how often each one counts; 0 pads a small tensor
    lowest: Float[Array, ""]
    highest: Float[Array, ""]
    strange: Bool[Array, ""]  # an element is not finite; on a CPU, extremes do not tell of a NaN, see docs/weights.md


class Histogram(NamedTuple):
    """Counts of one tensor, or of L of them with an axis L in front."""

    positive: Float[Array, "*L BINS"]  # by magnitude, see `bin_edges`; the first bin holds zeros, too
    negative: Float[Array, "*L BINS"]
    lowest: Float[Array, "*L"]
    highest: Float[Array, "*L"]
    finite: Bool[Array, "*L"]

    @property
    def largest(self) -> Float[Array, "*L"]:
        return jnp.maximum(-self.lowest, self.highest)


def draw_sample(
    x: Array, weight: Array | float = 1.0, examples: int | None = None, times: int = 1, turn: Array | int = 0
) -> Sample:
    """Takes evenly spaced elements of a tensor, each counted `weight` times (a scalar, or of the shape of `x`).

    Args:
      x: any shape, at least one element.
      examples: in `x`, one after the other: as many elements are taken of each, whatever the number beside it. None is
        one tensor as a whole.
      times: that the tensor is sampled, as in a loop: fewer elements each time, and others in each turn.
      turn: number of this time.

    >>> draw_sample(jnp.array([0.5, -2.0])).values.tolist()
    [0.5, -2.0]
    """
    rows, most = (examples, SAMPLES) if examples and x.size % examples == 0 else (1, WEIGHT_SAMPLES)
    stride = coprime_stride(x.size // rows, max(LEAST, most // times))
    weights = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), x.shape)
    parts = [part.reshape(rows, -1) for part in (x, weights)]
    if times > 1:
        parts = [jnp.roll(part, -STEP * turn, axis=1) for part in parts]
    taken, counts = (part[:, ::stride].reshape(-1) for part in parts)
    lowest, highest = (end(x).astype(jnp.float32) for end in (jnp.min, jnp.max))
    return Sample(taken.astype(jnp.float32), counts, lowest, highest, ~jnp.isfinite(x).all())


def join_samples(samples: Sequence[Sample | None]) -> Sample:
    """Joins samples of one tensor, each with any number of axes in front.

    None is of what has no activation; where there is nothing else, it is a sample of a single one.

    >>> once = draw_sample(jnp.array([0.5, -2.0]))
    >>> join_samples([once, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), once)]).values.shape
    (6,)
    """
    given = [sample for sample in samples if sample is not None]
    columns = zip(*(given or [draw_sample(jnp.ones(1))]), strict=True)
    joined = Sample(*(jnp.concatenate([jnp.reshape(part, -1) for part in column]) for column in columns))
    ends = joined.lowest.min(), joined.highest.max(), joined.strange.any()
    return Sample(joined.values, joined.weight, *ends)


def stack_samples(samples: tuple[Sample, ...]) -> Sample:
    """Stacks samples of different lengths, one row a tensor; shorter ones are padded with what counts nothing."""
    longest = max(sample.values.size for sample in samples)

    def pad(sample: Sample) -> Sample:
        missing = (0, longest - sample.values.size)
        return sample._replace(values=jnp.pad(sample.values, missing), weight=jnp.pad(sample.weight, missing))

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(pad, samples))


def empty_histogram(rows: int) -> Histogram:
    """Makes a histogram without counts."""
    counts, nothing = jnp.zeros((rows, BINS), jnp.float32), jnp.full(rows, jnp.inf, jnp.float32)
    return Histogram(counts, counts, nothing, -nothing, jnp.ones(rows, bool))


def add_samples(histogram: Histogram, samples: Sample) -> Histogram:
    """Counts one sample a row.

    >>> samples = stack_samples((draw_sample(jnp.array([1e-30, -2.0])),))
    >>> grown = add_samples(add_samples(empty_histogram(1), samples), samples._replace(highest=jnp.array([3.0])))
    >>> print(grown.positive.sum(), grown.negative.sum(), grown.largest)
    2.0 2.0 [3.]
    """
    code = jax.lax.bitcast_convert_type(samples.values, jnp.uint32) >> SHIFT  # the sign comes first
    rows = jnp.arange(len(code))[:, None]
    counts = jnp.zeros((len(code), 2 * BINS), jnp.float32).at[rows, code.astype(jnp.int32)].add(samples.weight)
    # Added as a whole: a sum of many ones would end at 2^24.
    return Histogram(
        histogram.positive + counts[:, :BINS],
        histogram.negative + counts[:, BINS:],
        jnp.minimum(histogram.lowest, samples.lowest),
        jnp.maximum(histogram.highest, samples.highest),
        histogram.finite & ~samples.strange,
    )


def count_on_host(values: Float[np.ndarray, "*n"], weight: Float[np.ndarray, "*n"] | float = 1.0) -> Histogram:
    """Counts evenly spaced elements of one tensor in NumPy, as `draw_sample` and `add_samples` do for many.

    For tensors of many shapes, of which each would be a program of its own.

    >>> print(count_on_host(np.array([0.5, -2.0], np.float32)).largest)
    2.0
    """
    stride = coprime_stride(values.size, WEIGHT_SAMPLES)
    taken = np.ascontiguousarray(values.reshape(-1)[::stride], np.float32)
    times = np.broadcast_to(weight, values.shape).reshape(-1)[::stride]
    code = taken.view(np.uint32) >> SHIFT
    counts = np.bincount(code, times, 2 * BINS).astype(np.float32)
    ends = np.float32(values.min()), np.float32(values.max())
    return Histogram(*map(jnp.asarray, (counts[:BINS], counts[BINS:], *ends, np.isfinite(values).all())))


def bin_of(magnitude: Float[Array, "*n"]) -> Array:
    """Finds the bin of a number that is not negative."""
    code = jax.lax.bitcast_convert_type(jnp.asarray(magnitude, jnp.float32), jnp.uint32) >> SHIFT
    return code.astype(jnp.int32)


def bin_edges() -> Float[np.ndarray, "BINS+1"]:
    """Lists the least magnitude of each bin, and infinity in place of what is not finite.

    >>> edges = bin_edges()
    >>> edges[0].item(), edges[bin_of(1.0)].item(), edges[bin_of(1.0) + 1].item()
    (0.0, 1.0, 1.0078125)
    """
    edges = (np.arange(BINS + 1, dtype=np.uint32) << SHIFT).view(np.float32)
    return np.where(np.arange(BINS + 1) < bin_of_infinity(), edges, np.float32(np.inf))


def bin_of_infinity() -> int:
    """Returns the first bin whose values are not finite."""
    return int(np.float32(np.inf).view(np.uint32) >> SHIFT)
