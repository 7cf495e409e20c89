"""Means and second moments of each layer's inputs over the calibration images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from haqjax.quantizers.im2col import take_rows, to_matrix
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.jaxpr import Layer

LARGEST = 640  # inputs whose products are all kept; more are cut into equal parts, and products inside a part are kept


class Moments(NamedTuple):
    """Sums over `total` rows of a layer's input; P parts of each group's D inputs."""

    total: Float[Array, ""]
    first: Float[Array, "G D"] | None  # None where it is not asked for
    second: Float[Array, "GP d d"] | None  # of pairs in one part, `d = D / P`


def parts(inputs: int) -> int:
    """Counts the fewest equal parts of at most `LARGEST` inputs.

    >>> parts(576), parts(1280), parts(4608)
    (1, 2, 8)
    """
    return next(count for count in range(-(-inputs // LARGEST), inputs + 1) if inputs % count == 0)


def empty_moments(apply: Apply, params: PyTree, x: PyTree, second: bool, first: bool) -> tuple[Moments, ...]:
    """Makes sums over no rows, one entry a layer; of `x` only shapes are read."""

    def empty(layer: Layer, weight: Array) -> Moments:
        groups, inputs, _ = to_matrix(layer, weight).shape
        cut = parts(inputs)
        pairs = (groups * cut, inputs // cut, inputs // cut)
        zeros = jnp.zeros((), jnp.float32)
        return Moments(zeros, jnp.zeros((groups, inputs)) if first else None, jnp.zeros(pairs) if second else None)

    return map_weights(empty, apply, params, x)


def add_moments(so_far: Moments, layer: Layer, activation: Array, most: int) -> Moments:
    """Adds `most` rows of one batch at most."""
    if so_far.first is None and so_far.second is None:
        return so_far
    rows = take_rows(layer, activation, most).astype(jnp.float32)
    groups, count, inputs = rows.shape
    first = None if so_far.first is None else so_far.first + rows.sum(1)
    if so_far.second is None:
        return Moments(so_far.total + count, first, None)
    cut = parts(inputs)
    pieces = rows.reshape(groups, count, cut, inputs // cut).transpose(0, 2, 1, 3).reshape(groups * cut, count, -1)
    second = jnp.einsum("gnd,gne->gde", pieces, pieces, precision=jax.lax.Precision.HIGHEST)
    return Moments(so_far.total + count, first, so_far.second + second)
