"""Clip values of a tensor at each bit-width, chosen from a histogram of its magnitudes.

The range of a histogram grows with the data, so that one pass over the batches is enough. Each method maps one row of
it, and whether the quantiser is signed, to one clip value a width, float32 [8].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from haqjax.quantizers.im2col import coprime_stride
from haqjax.types import WIDTHS

BINS = 2048
SAMPLES = 1 << 15  # of a tensor, at most so many elements are counted; extremes are taken over all
CANDIDATES = 128  # clips tried: the limit's 1/128, 2/128, ...
PERCENTILE = 99.99
TINY = 1e-12  # in place of an empty probability


class Sample(NamedTuple):
    """Elements of one tensor for its histogram; every tensor gives the same shapes."""

    magnitude: Float[Array, "S"]
    weight: Float[Array, "S"]  # how often each one counts; 0 pads a small tensor
    lowest: Float[Array, ""]
    highest: Float[Array, ""]


class Histogram(NamedTuple):
    """Rows of counts, one row a tensor."""

    counts: Float[Array, "L BINS"]  # of magnitudes, in equal bins over [0, limit]
    limit: Float[Array, "L"]  # 0 before the first element that is not zero
    lowest: Float[Array, "L"]
    highest: Float[Array, "L"]

    @property
    def largest(self) -> Float[Array, "L"]:
        return jnp.maximum(-self.lowest, self.highest)


class Row(NamedTuple):
    """The magnitudes of one tensor."""

    counts: Float[Array, "BINS"]
    limit: Float[Array, ""]  # upper edge of the last bin
    largest: Float[Array, ""]


Method = Callable[[Row, Bool[Array, ""]], Float[Array, "8"]]


def draw_sample(x: Array, weight: Array | float = 1.0) -> Sample:
    """Takes evenly spaced elements of a tensor, each counted `weight` times (a scalar, or of the shape of `x`).

    >>> draw_sample(jnp.array([0.5, -2.0])).magnitude[:3].tolist()
    [0.5, 2.0, 0.0]
    """
    stride = coprime_stride(x.size, SAMPLES)
    taken = x.reshape(-1)[::stride].astype(jnp.float32)
    weights = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), x.shape).reshape(-1)[::stride]
    padding = (0, SAMPLES - taken.size)
    return Sample(jnp.pad(jnp.abs(taken), padding), jnp.pad(weights, padding), jnp.min(x), jnp.max(x))


def empty_histogram(rows: int) -> Histogram:
    """Makes a histogram without counts."""
    zeros = jnp.zeros(rows, jnp.float32)
    return Histogram(jnp.zeros((rows, BINS), jnp.float32), zeros, zeros, zeros)


def add_samples(histogram: Histogram, samples: Sample) -> Histogram:
    """Counts one sample a row. Beyond its limit a row's limit doubles until it is not: neighbouring bins merge.

    >>> samples = jax.tree.map(lambda leaf: leaf[None], draw_sample(jnp.array([0.5, -2.0])))
    >>> grown = add_samples(add_samples(empty_histogram(1), samples), samples._replace(highest=jnp.array([3.0])))
    >>> print(grown.limit, grown.counts.sum())
    [4.] 4.0
    """
    lowest = jnp.minimum(histogram.lowest, samples.lowest)
    highest = jnp.maximum(histogram.highest, samples.highest)
    largest = jnp.maximum(-lowest, highest)
    growth = jnp.where(histogram.limit > 0, largest / jnp.where(histogram.limit > 0, histogram.limit, 1), 1)
    doublings = jnp.clip(jnp.nan_to_num(jnp.ceil(jnp.log2(jnp.maximum(growth, 1)))), 0, 30)
    limit = jnp.where(histogram.limit > 0, histogram.limit * jnp.exp2(doublings), largest)
    rows = jnp.arange(len(limit))[:, None]
    merged = jnp.arange(BINS)[None] >> doublings.astype(jnp.int32)[:, None]
    counts = jnp.zeros_like(histogram.counts).at[rows, merged].add(histogram.counts)
    per_bin = BINS / jnp.maximum(limit, jnp.finfo(jnp.float32).tiny)
    at = jnp.clip(samples.magnitude * per_bin[:, None], 0, BINS - 1).astype(jnp.int32)
    return Histogram(counts.at[rows, at].add(samples.weight), limit, lowest, highest)


def clip_max(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """Returns the largest magnitude, at every width."""
    return jnp.full(WIDTHS, row.largest)


def clip_percentile(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """Returns the upper edge of the bin that holds the `PERCENTILE`th percentile of the magnitudes, at every width."""
    above = jnp.cumsum(row.counts) >= PERCENTILE / 100 * jnp.sum(row.counts)
    edge = (jnp.argmax(above) + 1) * (row.limit / BINS)
    return jnp.full(WIDTHS, jnp.minimum(edge, row.largest))


def clip_mse(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """Chooses the candidate with the least squared error between the magnitudes and their quantised values."""
    values = (jnp.arange(BINS) + 0.5) * (row.limit / BINS)

    def error(clip: Array, bits: Array) -> Array:
        step = clip / _levels(bits, signed)
        rounded = jnp.round(jnp.minimum(values, clip) / step) * step
        return jnp.sum(row.counts * (values - rounded) ** 2)

    return _least(error, row.largest * (jnp.arange(CANDIDATES) + 1) / CANDIDATES)


def clip_kl(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """Chooses the candidate whose quantised distribution diverges least from the original one (Migacz, GTC 2017).

    For a clip of `i` bins: P is the first `i` bins, with all beyond added to the last; Q divides the counts of the
    first `i` bins evenly among the non-empty bins of each quantisation interval; the divergence is
    `sum P log(P / Q)` after both are normalised, an empty Q counting as 1e-12. The first bin counts as much as the
    second: zero is a level of every quantiser, so how many zeros ReLU leaves says nothing of the clip.
    """
    counts, edges = row.counts.at[0].set(row.counts[1]), jnp.arange(BINS)
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts)])
    occupied = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts > 0)])

    def error(kept: Array, bits: Array) -> Array:
        intervals = _levels(bits, signed).astype(jnp.int32) + 1
        interval = (edges * intervals) // kept
        start, stop = (jnp.clip(-(-(interval + n) * kept // intervals), 0, kept) for n in (0, 1))
        even = (total[stop] - total[start]) / jnp.maximum(occupied[stop] - occupied[start], 1)
        q = jnp.where((edges < kept) & (counts > 0), even, 0)
        p = jnp.where(edges < kept, counts, 0) + jnp.where(edges == kept - 1, total[-1] - total[kept], 0)
        p, q = p / jnp.sum(p), q / jnp.maximum(jnp.sum(q), TINY)
        divergence = jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, TINY) / jnp.maximum(q, TINY)), 0))
        return jnp.where(kept >= intervals, divergence, jnp.inf)

    kept = (jnp.arange(CANDIDATES) + 1) * (BINS // CANDIDATES)
    return jnp.minimum(_least(error, kept) * (row.limit / BINS), row.largest)


METHODS: dict[str, Method] = {"max": clip_max, "mse": clip_mse, "percentile": clip_percentile, "kl": clip_kl}


def _levels(bits: Array, signed: Bool[Array, ""]) -> Float[Array, ""]:
    """Counts the levels above zero; one signed bit has none and counts as one, so that the clip stays finite."""
    return jnp.maximum(jnp.left_shift(1, bits - signed.astype(jnp.int32)) - 1, 1).astype(jnp.float32)


def _least(error: Callable[[Array, Array], Array], candidates: Array) -> Float[Array, "8"]:
    """Finds the candidate of least error at each width; NaN counts as the largest error."""

    def at_width(bits: Array) -> Array:
        errors = jax.vmap(error, (0, None))(candidates, bits)
        return candidates[jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))]

    return jax.lax.map(at_width, jnp.arange(WIDTHS) + 1)
