"""Means and second moments of each layer's inputs over the calibration images."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.quantizers.im2col import take_rows, to_matrix
from haqjax.tracing.jaxpr import Layer
from haqjax.types import AnyArray

LARGEST = 640  # inputs whose products are all kept; more are cut into equal parts, and products inside a part are kept


class Moments(NamedTuple):
    """Sums over `total` rows of a layer's input; P parts of each group's D inputs."""

    total: Float[AnyArray, ""]
    first: Float[AnyArray, "G D"] | None  # None where it is not asked for
    second: Float[AnyArray, "GP d d"] | None  # of pairs in one part, `d = D / P`


def parts(inputs: int) -> int:
    """Counts the fewest equal parts of at most `LARGEST` inputs.

    >>> parts(576), parts(1280), parts(4608)
    (1, 2, 8)
    """
    return next(count for count in range(-(-inputs // LARGEST), inputs + 1) if inputs % count == 0)


def empty_moments(rows: Sequence[tuple[Layer, AnyArray]], second: bool, first: bool) -> tuple[Moments, ...]:
    """Makes sums over no rows, one entry a use of a layer, on the host: each fill would be a program of its own."""

    def empty(layer: Layer, weight: AnyArray) -> Moments:
        if layer.lookup:
            return Moments(np.zeros((), np.float32), None, None)
        groups, inputs, _ = to_matrix(layer, weight).shape
        cut = parts(inputs)
        pairs = (groups * cut, inputs // cut, inputs // cut)
        zeros = [np.zeros(shape, np.float32) for shape in ((), (groups, inputs), pairs)]
        return Moments(zeros[0], zeros[1] if first else None, zeros[2] if second else None)

    return tuple(empty(*row) for row in rows)


def find_moments(layer: Layer, activation: Array, most: int, second: bool, first: bool) -> Moments:
    """Sums over `most` rows of one batch at most."""
    if layer.lookup or not (first or second):
        return Moments(jnp.zeros(()), None, None)
    rows = take_rows(layer, activation, most).astype(jnp.float32)
    groups, count, inputs = rows.shape
    total, means = jnp.float32(count), rows.sum(1) if first else None
    if not second:
        return Moments(total, means, None)
    cut = parts(inputs)
    pieces = rows.reshape(groups, count, cut, inputs // cut).transpose(0, 2, 1, 3).reshape(groups * cut, count, -1)
    pairs = jnp.einsum("gnd,gne->gde", pieces, pieces, precision=jax.lax.Precision.HIGHEST)
    return Moments(total, means, pairs)
