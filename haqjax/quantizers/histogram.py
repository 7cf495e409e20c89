"""Histograms of magnitudes whose range grows with the data, so that one pass over the batches is enough."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

BINS = 2048
SAMPLES = 1 << 15  # of a tensor, at most so many elements are counted; extremes are taken over all


class Sample(NamedTuple):
    """What one tensor adds to its histogram; every tensor gives the same shapes."""

    magnitude: Float[Array, "S"]
    weight: Float[Array, "S"]  # how often each one counts; 0 fills up a small tensor
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

    @property
    def centres(self) -> Float[Array, "L BINS"]:
        return (jnp.arange(BINS) + 0.5)[None] * (self.limit / BINS)[:, None]


def draw(x: Array, weight: Array | float = 1.0) -> Sample:
    """Evenly spaced elements of a tensor, each counted `weight` times (a scalar, or of the shape of `x`).

    >>> draw(jnp.array([0.5, -2.0])).magnitude[:3].tolist()
    [0.5, 2.0, 0.0]
    """
    stride = _stride(x.size)
    taken = x.reshape(-1)[::stride].astype(jnp.float32)
    weights = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), x.shape).reshape(-1)[::stride]
    fill = (0, SAMPLES - taken.size)
    return Sample(jnp.pad(jnp.abs(taken), fill), jnp.pad(weights, fill), jnp.min(x), jnp.max(x))


def _stride(size: int) -> int:
    """Steps through a tensor without falling in with its axes, which would count some channels and never others."""
    stride = -(-size // SAMPLES)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def empty(rows: int) -> Histogram:
    """No counts yet."""
    zeros = jnp.zeros(rows, jnp.float32)
    return Histogram(jnp.zeros((rows, BINS), jnp.float32), zeros, zeros, zeros)


def add(histogram: Histogram, samples: Sample) -> Histogram:
    """Counts one sample a row. Beyond its limit a row's limit doubles until it is not: neighbouring bins merge.

    >>> import jax
    >>> samples = jax.tree.map(lambda leaf: leaf[None], draw(jnp.array([0.5, -2.0])))
    >>> grown = add(add(empty(1), samples), samples._replace(highest=jnp.array([3.0])))
    >>> print(grown.limit, grown.counts.sum())
    [4.] 4.0
    """
    lowest = jnp.minimum(histogram.lowest, samples.lowest)
    highest = jnp.maximum(histogram.highest, samples.highest)
    largest = jnp.maximum(-lowest, highest)
    doublings = _doublings(histogram.limit, largest)
    limit = jnp.where(histogram.limit > 0, histogram.limit * jnp.exp2(doublings), largest)
    rows = jnp.arange(len(limit))[:, None]
    merged = jnp.arange(BINS)[None] >> doublings.astype(jnp.int32)[:, None]
    counts = jnp.zeros_like(histogram.counts).at[rows, merged].add(histogram.counts)
    per_bin = BINS / jnp.maximum(limit, jnp.finfo(jnp.float32).tiny)
    at = jnp.clip(samples.magnitude * per_bin[:, None], 0, BINS - 1).astype(jnp.int32)
    return Histogram(counts.at[rows, at].add(samples.weight), limit, lowest, highest)


def _doublings(limit: Float[Array, "L"], largest: Float[Array, "L"]) -> Float[Array, "L"]:
    growth = jnp.where(limit > 0, largest / jnp.where(limit > 0, limit, 1), 1)
    return jnp.clip(jnp.nan_to_num(jnp.ceil(jnp.log2(jnp.maximum(growth, 1)))), 0, 30)
