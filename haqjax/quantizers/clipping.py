"""Where to clip a tensor at each bit-width, chosen from the histogram of its magnitudes.

Each method maps one row of a histogram, and whether the quantiser is signed, to one clip value a width, float32 [8].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from haqjax.quantizers.histogram import BINS
from haqjax.types import WIDTHS

CANDIDATES = 128  # clips tried: the limit's 1/128, 2/128, ...
PERCENTILE = 99.99
TINY = 1e-12  # in place of an empty probability


class Row(NamedTuple):
    """The magnitudes of one tensor."""

    counts: Float[Array, "BINS"]
    limit: Float[Array, ""]  # upper edge of the last bin
    largest: Float[Array, ""]


Method = Callable[[Row, Bool[Array, ""]], Float[Array, "8"]]


def clip_max(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """The largest magnitude, at every width."""
    return jnp.full(WIDTHS, row.largest)


def clip_percentile(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """The upper edge of the bin that holds the `PERCENTILE`th percentile of the magnitudes, at every width."""
    reached = jnp.cumsum(row.counts) >= PERCENTILE / 100 * jnp.sum(row.counts)
    edge = (jnp.argmax(reached) + 1) * (row.limit / BINS)
    return jnp.full(WIDTHS, jnp.minimum(edge, row.largest))


def clip_mse(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """The candidate with the least squared error between the magnitudes and their quantised values."""
    values = (jnp.arange(BINS) + 0.5) * (row.limit / BINS)

    def error(clip: Array, bits: Array) -> Array:
        step = clip / _levels(bits, signed)
        rounded = jnp.round(jnp.minimum(values, clip) / step) * step
        return jnp.sum(row.counts * (values - rounded) ** 2)

    return _least(error, row.largest * (jnp.arange(CANDIDATES) + 1) / CANDIDATES)


def clip_kl(row: Row, signed: Bool[Array, ""]) -> Float[Array, "8"]:
    """The candidate whose quantised distribution diverges least from the original one.

    For a clip of `i` bins: P is the first `i` bins, with all beyond added to the last; Q spreads the counts of the
    first `i` bins evenly over the non-empty bins of each quantisation interval; the divergence is
    `sum P log(P / Q)` after both are normalised, an empty Q counting as 1e-12 (Migacz, GTC 2017). The first bin counts
    as much as the second: zero is a level of every quantiser, so how many zeros ReLU leaves says nothing of the clip.
    """
    counts, edges = row.counts.at[0].set(row.counts[1]), jnp.arange(BINS)
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts)])
    filled = jnp.concatenate([jnp.zeros(1), jnp.cumsum(counts > 0)])

    def error(kept: Array, bits: Array) -> Array:
        intervals = _levels(bits, signed).astype(jnp.int32) + 1
        interval = (edges * intervals) // kept
        start, stop = (jnp.clip(-(-(interval + n) * kept // intervals), 0, kept) for n in (0, 1))
        spread = (total[stop] - total[start]) / jnp.maximum(filled[stop] - filled[start], 1)
        q = jnp.where((edges < kept) & (counts > 0), spread, 0)
        p = jnp.where(edges < kept, counts, 0) + jnp.where(edges == kept - 1, total[-1] - total[kept], 0)
        divergence = _divergence(p / jnp.sum(p), q / jnp.maximum(jnp.sum(q), TINY))
        return jnp.where(kept >= intervals, divergence, jnp.inf)

    kept = (jnp.arange(CANDIDATES) + 1) * (BINS // CANDIDATES)
    return jnp.minimum(_least(error, kept) * (row.limit / BINS), row.largest)


METHODS: dict[str, Method] = {"max": clip_max, "mse": clip_mse, "percentile": clip_percentile, "kl": clip_kl}


def _levels(bits: Array, signed: Bool[Array, ""]) -> Float[Array, ""]:
    """Levels above zero; one signed bit has none and counts as one, so that the clip stays finite."""
    return jnp.maximum(jnp.left_shift(1, bits - signed.astype(jnp.int32)) - 1, 1).astype(jnp.float32)


def _least(error: Callable[[Array, Array], Array], candidates: Array) -> Float[Array, "8"]:
    def at_width(bits: Array) -> Array:
        errors = jax.vmap(error, (0, None))(candidates, bits)
        return candidates[jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))]

    return jax.lax.map(at_width, jnp.arange(WIDTHS) + 1)


def _divergence(p: Array, q: Array) -> Array:
    safe_p, safe_q = jnp.maximum(p, TINY), jnp.maximum(q, TINY)
    return jnp.sum(jnp.where(p > 0, p * jnp.log(safe_p / safe_q), 0))
