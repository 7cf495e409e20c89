"""Clip values of a tensor at each bit-width, and its sign, chosen from a histogram.

Each method maps the counts of magnitudes, the largest of them and the levels above zero at each width to one clip a
width, float32 [8]. Whether levels below zero are worth having is settled afterwards, by squared error at each width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from haqjax.quantizers.histogram import BINS, Histogram, bin_edges, bin_of
from haqjax.types import WIDTHS, AnyArray

# Clips tried for the squared error, as octaves below the largest magnitude: ever coarser, down to 1/1,600 of it.
CANDIDATES = np.concatenate([np.arange(64) / 24, 64 / 24 + np.arange(65) / 8]).astype(np.float32)
WINDOW = 14 * 128  # bins below the largest magnitude that count in a squared error: 14 octaves
PERCENTILE = 99.99
KL_BINS = 2048  # of equal width, from 0 to the range
KL_CANDIDATES = 128  # ends of bins, evenly spaced
KL_RANGE = 8  # times the percentile, or the largest magnitude if that is less
FINE = 0.25  # steps; within a narrower bin the rounding error is taken to be that of its middle
TINY = 1e-12  # in place of an empty probability

Counts = Float[Array, "BINS"]
Method = Callable[[Counts, Float[Array, ""], Float[AnyArray, "8"]], Float[Array, "8"]]


class Clip(NamedTuple):
    """Where a tensor is clipped at each width, and whether there are levels below zero."""

    value: Float[Array, "8"]
    signed: Bool[Array, "8"]


def choose(method: str, row: Histogram, always_signed: Bool[Array, ""] | bool = False) -> Clip:
    """Chooses the clips of a tensor, and at each width the sign of less squared error.

    Without levels below zero there are twice as many above it, and what is negative becomes zero: better for SiLU,
    whose negative values are small, at few bits. A tensor that is never negative is unsigned at every width.

    Args:
      method: a name of `METHODS`.
      row: of one tensor.
      always_signed: for a weight; data, so that one program serves weights and activations.
    """
    highest, largest = jnp.maximum(row.highest, 0), row.largest
    counts = row.positive.at[0].add(jnp.sum(row.negative))  # all that is negative becomes zero
    may_sign = always_signed | (row.lowest < 0)

    def clip_at(options: tuple) -> tuple[Array, Array]:
        needed, counts, largest, levels = options

        def find() -> tuple[Array, Array]:
            clip = _where_positive(METHODS[method](counts, largest, levels), largest)
            return clip, squared_error(counts, largest, clip, levels)

        return jax.lax.cond(needed, find, lambda: (jnp.ones(WIDTHS), jnp.zeros(WIDTHS)))

    sides = (  # one program for both
        jnp.stack([may_sign, ~jnp.asarray(always_signed)]),
        jnp.stack([row.positive + row.negative, counts]),
        jnp.stack([largest, highest]),
        jnp.stack([levels_at(signed=True), levels_at(signed=False)]),
    )
    (with_sign, without), (error, of_positive) = jax.lax.map(clip_at, sides)
    of_negative = _energy(row.negative, -row.lowest)
    other = of_positive * _ratio(highest, largest) ** 2 + of_negative * _ratio(-row.lowest, largest) ** 2
    # One signed bit has no level but zero.
    signed = always_signed | (may_sign & (error < other) & (np.arange(1, WIDTHS + 1) > 1))
    return Clip(jnp.where(signed, with_sign, without), signed)


def levels_at(signed: bool) -> Float[np.ndarray, "8"]:
    """Counts the levels above zero at each width; one signed bit has none and counts as one.

    >>> levels_at(signed=True).tolist()
    [1.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0]
    """
    bits = np.arange(1, WIDTHS + 1)
    return np.maximum(2.0 ** (bits - signed) - 1, 1).astype(np.float32)


def squared_error(
    counts: Counts, largest: Float[Array, ""], clip: Float[Array, "*n"], levels: Float[AnyArray, "*n"]
) -> Float[Array, "*n"]:
    """Sums the squared differences between magnitudes and their quantised values, over the square of the largest.

    Within a bin, values are taken to be spread evenly. With `t` in steps, `(t - round(t))^2` has the integral
    `round(t) / 12 + (t - round(t))^3 / 3`, which gives the mean over a bin that is not much narrower than a step; in a
    narrower one it is the error of the middle and the spread about it.

    Args:
      counts: of a histogram's bins.
      largest: magnitude; none is greater.
      clip, levels: of one quantiser or several: `levels` steps from 0 to `clip`.

    >>> from haqjax.quantizers.histogram import add_samples, draw_sample, empty_histogram, stack_samples
    >>> samples = stack_samples((draw_sample(jnp.array([0.0, 0.4, 1.0, 3.0])),))
    >>> counts = add_samples(empty_histogram(1), samples).positive[0]
    >>> print(squared_error(counts, jnp.array(3.0), jnp.array([3.0, 1.0]), jnp.array([3.0, 1.0])).sum().round(2))
    0.48
    """
    times, low, high = _window(counts, largest)
    middle, width = (low + high) / 2, high - low

    def one(clip: Array, levels: Array) -> Array:
        clip = _ratio(clip, largest)
        per_unit = levels / clip
        a, b, t = low * per_unit, high * per_unit, middle * per_unit
        fine = b - a < FINE
        even = (_integral(b) - _integral(a)) / jnp.where(fine, 1, b - a)
        rounding = jnp.where(fine, (t - jnp.round(t)) ** 2 + (b - a) ** 2 / 12, even) / per_unit**2
        beyond = (middle - clip) ** 2 + width**2 / 12
        return jnp.sum(times * jnp.where(middle < clip, rounding, beyond))

    errors = jax.vmap(one)(*(part.reshape(-1) for part in jnp.broadcast_arrays(clip, levels)))
    return errors.reshape(jnp.broadcast_shapes(jnp.shape(clip), jnp.shape(levels)))


def clip_max(counts: Counts, largest: Float[Array, ""], levels: Float[AnyArray, "8"]) -> Float[Array, "8"]:
    """Returns the largest magnitude, at every width."""
    return jnp.full(WIDTHS, largest)


def clip_percentile(counts: Counts, largest: Float[Array, ""], levels: Float[AnyArray, "8"]) -> Float[Array, "8"]:
    """Returns the `PERCENTILE`th percentile of the magnitudes at every width, to within 1/128 of itself."""
    return jnp.full(WIDTHS, _percentile(counts, largest))


def clip_mse(counts: Counts, largest: Float[Array, ""], levels: Float[AnyArray, "8"]) -> Float[Array, "8"]:
    """Chooses the candidate with the least squared error between the magnitudes and their quantised values."""
    candidates = largest * jnp.exp2(-CANDIDATES)

    def at_width(each: Array) -> Array:
        errors = squared_error(counts, largest, candidates, each)
        return candidates[jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))]

    return jax.lax.map(at_width, levels)


def clip_kl(counts: Counts, largest: Float[Array, ""], levels: Float[AnyArray, "8"]) -> Float[Array, "8"]:
    """Chooses the clip whose quantised distribution diverges least from the original one (Migacz, GTC 2017).

    The counts are spread over 2,048 bins of equal width from 0 to 8 times the 99.99th percentile, or to the largest
    magnitude, whichever is less; see `least_divergence`.
    """
    limit = jnp.minimum(KL_RANGE * _percentile(counts, largest), largest)
    return least_divergence(_spread(counts, largest, limit), levels) * limit


def least_divergence(counts: Float[Array, "KL_BINS+1"], levels: Float[AnyArray, "8"]) -> Float[Array, "8"]:
    """Finds the clip of least divergence at each width, as a fraction of the range of the bins.

    For a clip of `i` bins: P is the first `i` bins, with all beyond added to the last; Q divides the counts of the
    first `i` bins evenly among the non-empty bins of each quantisation interval; the divergence is
    `sum P log(P / Q)` after both are normalised, an empty Q counting as 1e-12. The first bin counts as much as the
    second: zero is a level of every quantiser, so how many zeros ReLU leaves says nothing of the clip.

    Args:
      counts: in bins of equal width; the last entry counts what is beyond them.
      levels: above zero, at each width.
    """
    outside, counts = counts[-1], counts[:-1]
    counts, edges = counts.at[0].set(counts[1]), jnp.arange(KL_BINS)
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts)])
    occupied = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts > 0)])

    def divergence(kept: Array, intervals: Array) -> Array:
        interval = (edges * intervals) // kept
        start, stop = (jnp.clip(-(-(interval + n) * kept // intervals), 0, kept) for n in (0, 1))
        even = (total[stop] - total[start]) / jnp.maximum(occupied[stop] - occupied[start], 1)
        q = jnp.where((edges < kept) & (counts > 0), even, 0)
        rest = jnp.where(edges == kept - 1, total[-1] - total[kept] + outside, 0)
        p = jnp.where(edges < kept, counts, 0) + rest
        p, q = p / jnp.sum(p), q / jnp.maximum(jnp.sum(q), TINY)
        found = jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, TINY) / jnp.maximum(q, TINY)), 0))
        return jnp.where((kept >= intervals) & ~jnp.isnan(found), found, jnp.inf)

    kept = (jnp.arange(KL_CANDIDATES) + 1) * (KL_BINS // KL_CANDIDATES)

    def at_width(each: Array) -> Array:
        return kept[jnp.argmin(jax.vmap(divergence, (0, None))(kept, each.astype(jnp.int32) + 1))] / KL_BINS

    return jax.lax.map(at_width, levels)


METHODS: dict[str, Method] = {"max": clip_max, "mse": clip_mse, "percentile": clip_percentile, "kl": clip_kl}


def _percentile(counts: Counts, largest: Float[Array, ""]) -> Float[Array, ""]:
    """Finds the percentile of the magnitudes, within its bin by interpolation."""
    above, edges = _above(counts), jnp.asarray(bin_edges())
    rest = (1 - PERCENTILE / 100) * above[0]
    at = jnp.maximum(jnp.sum(above >= rest) - 1, 0)  # the last bin from which so many are left
    part = (above[at] - rest) / jnp.where(counts[at] > 0, counts[at], 1)
    low, high = edges[at], jnp.minimum(edges[at + 1], largest)
    return jnp.minimum(low + jnp.clip(part, 0, 1) * (high - low), largest)


def _above(counts: Counts) -> Float[Array, "BINS+1"]:
    """Sums the counts from each bin on; from the largest magnitude down, so that the few of the tail stay exact."""
    return jnp.concatenate([jnp.cumsum(counts[::-1])[::-1], jnp.zeros(1)])


def _window(counts: Counts, largest: Float[Array, ""]) -> tuple[Array, Array, Array]:
    """Takes the bins that matter beside the largest magnitude: counts, and both edges over the largest."""
    start = jnp.clip(bin_of(largest) + 1 - WINDOW, 0, BINS - WINDOW)
    edges = jax.lax.dynamic_slice(jnp.asarray(bin_edges()), (start,), (WINDOW + 1,))
    edges = _ratio(jnp.minimum(edges, largest), largest)
    return jax.lax.dynamic_slice(counts, (start,), (WINDOW,)), edges[:-1], edges[1:]


def _ratio(part: Array, whole: Float[Array, ""]) -> Array:
    """Divides by a number that may be zero, or too small to divide by."""
    return part / jnp.where(whole >= jnp.finfo(jnp.float32).tiny, whole, 1)


def _integral(t: Array) -> Array:
    nearest = jnp.round(t)
    return nearest / 12 + (t - nearest) ** 3 / 3


def _energy(counts: Counts, largest: Float[Array, ""]) -> Float[Array, ""]:
    """Sums the squares of the magnitudes, over the square of the largest."""
    times, low, high = _window(counts, largest)
    return jnp.sum(times * (low**2 + low * high + high**2) / 3)


def _spread(counts: Counts, largest: Float[Array, ""], limit: Float[Array, ""]) -> Float[Array, "KL_BINS+1"]:
    """Spreads the counts over bins of equal width up to a limit; a last entry holds what is beyond."""
    edges, above = jnp.minimum(jnp.asarray(bin_edges()), largest), _above(counts)
    even = jnp.arange(KL_BINS + 1) * (limit / KL_BINS)
    at = jnp.clip(jnp.searchsorted(edges, even, side="right") - 1, 0, BINS - 1)
    width = edges[at + 1] - edges[at]
    part = jnp.clip((even - edges[at]) / jnp.where(width > 0, width, 1), 0, 1)
    beyond = above[at] - part * counts[at]
    return jnp.append(beyond[:-1] - beyond[1:], beyond[-1])


def _where_positive(clip: Float[Array, "8"], largest: Float[Array, ""]) -> Float[Array, "8"]:
    """Replaces a clip of zero by the largest magnitude, and that of a tensor of zeros by 1: any clip leaves it zero."""
    return jnp.where(clip > 0, clip, jnp.where(largest > 0, largest, 1))
