"""COMQ (Zhang et al. 2024, arXiv 2403.07134): integer levels of least output error by coordinate descent.

Nearest rounding makes the least error in each weight, and not in their sum. With `S` the second moments of a layer's
inputs, the squared error of one output is `e' S e`, where `e` is the error of its weights. One weight after another
moves to the level that is best while the others stay, and the channel's step to the best one for its levels. All widths
are solved at once; nothing is learned and nothing drawn at random. A weight of exactly 0, such as one that was pruned,
stays 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from haqjax.types import WIDTHS

SWEEPS = 3  # over all weights
CLIP_RATIOS = np.linspace(0.3, 1, 8, dtype=np.float32)  # first clips tried, over the channel's largest magnitude
DAMPING = 0.01  # of the mean second moment, added to each input's own
BLOCK = 32  # inputs between two products with the whole matrix of moments
CHUNK = 128  # output channels that are solved at a time: they are independent, and caches small


class Levels(NamedTuple):
    """Levels of one layer's weights at every width, and the step between them."""

    level: Float[np.ndarray, "8 G D R"]  # whole numbers
    step: Float[np.ndarray, "8 G R"]


def round_levels(
    matrix: Float[np.ndarray, "G D R"], second: Float[np.ndarray, "GP d d"], sweeps: int = SWEEPS
) -> Levels:
    """Finds levels of least squared error at the output of a layer, or close to it.

    Args:
      matrix: the weight, see `haqjax.quantizers.im2col`.
      second: second moments of the inputs, in P parts of `d = D / P`; products across parts count as zero.
      sweeps: passes over the weights; 0 is nearest rounding with the best of a few clips.

    Returns:
      Levels and positive steps at 1..8 bits; at one bit, which has no level but zero, all levels are zero.

    >>> pair = np.array([[[0.4], [0.4]]], np.float32)  # of inputs that are always equal: only the sum of both counts
    >>> levels, step = round_levels(pair, np.ones((1, 2, 2), np.float32))
    >>> (levels * step[:, :, None])[1].sum().round(2)
    np.float32(0.8)
    """
    groups, inputs, outputs = matrix.shape
    cut = len(second) // groups
    weight = matrix.astype(np.float32).reshape(groups * cut, inputs // cut, outputs)
    moments = _damp(second.astype(np.float32))
    level = np.zeros((WIDTHS, groups, inputs, outputs), np.float32)
    step = np.empty((WIDTHS, groups, outputs), np.float32)
    for start in range(0, outputs, CHUNK):
        some = slice(start, start + CHUNK)
        level[1:, ..., some], step[..., some] = _descend(weight[..., some], moments, cut, sweeps)
    return Levels(level, step)


def _descend(weight: np.ndarray, moments: np.ndarray, cut: int, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds levels [7, G, D, r] at 2..8 bits and steps [8, G, r] of some output channels, from the nearest ones on."""
    rows, inputs, outputs = weight.shape
    most = np.repeat(2 ** np.arange(1, WIDTHS) - 1, outputs).astype(np.float32)  # levels a side, [7 r]
    target = np.tile(moments @ weight, (1, 1, WIDTHS - 1))
    weight = np.tile(weight, (1, 1, WIDTHS - 1))
    step = first = _first_step(weight, most, moments, cut)
    level = np.clip(np.rint(weight / step[:, None]), -most, most)
    product, limit = moments @ level, most * (weight != 0)
    for sweep in range(sweeps):
        step = _best_step(step, _sum_parts(level, target, cut), _sum_parts(level, product, cut))
        _sweep(level, product, target, step, limit, moments, last=sweep == sweeps - 1)
    shaped = level.reshape(rows // cut, inputs * cut, WIDTHS - 1, outputs).transpose(2, 0, 1, 3)
    steps = np.concatenate([first[:, :outputs], step], axis=1)[::cut]  # at one bit that of two: as many levels count
    return shaped, steps.reshape(rows // cut, WIDTHS, outputs).transpose(1, 0, 2)


def _first_step(weight: np.ndarray, most: np.ndarray, moments: np.ndarray, cut: int) -> np.ndarray:
    """Chooses among a few clips of each channel, each input weighted by its own second moment."""
    own = np.einsum("gdd->gd", moments)
    largest = np.abs(weight).max(1).reshape(-1, cut, weight.shape[-1]).max(1)
    largest = np.repeat(np.where(largest > 0, largest, 1), cut, axis=0)
    scaled, nearest = np.empty_like(weight), np.empty_like(weight)  # new memory each time takes longer than the sums

    def error(step: np.ndarray) -> np.ndarray:
        np.multiply(weight, 1 / step[:, None], out=scaled)
        np.rint(scaled, out=nearest)
        np.clip(nearest, -most, most, out=nearest)
        np.subtract(scaled, nearest, out=scaled)
        np.square(scaled, out=scaled)
        return _sum_over_parts((own[:, None] @ scaled)[:, 0] * step**2, cut)

    steps = np.stack([ratio * largest / most for ratio in CLIP_RATIOS])
    errors = [error(step) for step in steps]
    return np.take_along_axis(steps, np.argmin(errors, axis=0)[None], axis=0)[0]


def _best_step(step: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Solves least squares for given levels; where they are all zero the step stays."""
    good = (numerator > 0) & (denominator > 0)
    return np.where(good, numerator / np.where(good, denominator, 1), step).astype(np.float32)


def _sweep(
    level: np.ndarray,
    product: np.ndarray,
    target: np.ndarray,
    step: np.ndarray,
    limit: np.ndarray,
    moments: np.ndarray,
    last: bool,
) -> None:
    """Moves each weight in turn to its best level, in place, and `product`, which is `S level`, with it.

    Levels go up to `limit` on either side, which is 0 for a weight of 0. After the last sweep nobody reads `product`.
    """
    per_step = 1 / step
    for start in range(0, level.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        near = target[:, block] * per_step[:, None] - product[:, block]  # `S e` in steps
        moved = np.zeros_like(near)
        for i in range(near.shape[1]):
            at = start + i
            slope = near[:, i]
            if i:  # what moved before in this block
                slope = slope - (moments[:, at, None, start:at] @ moved[:, :i])[:, 0]
            slope = slope / moments[:, at, at, None]
            slope += level[:, at]
            np.rint(slope, out=slope)
            np.minimum(slope, limit[:, at], out=slope)
            np.maximum(slope, -limit[:, at], out=slope)
            np.subtract(slope, level[:, at], out=moved[:, i])
            level[:, at] = slope
        rest = slice(start + BLOCK if last else 0, None)
        product[:, rest] += moments[:, rest, block] @ moved


def _damp(second: np.ndarray) -> np.ndarray:
    """Adds a little to the second moment of each input, so that the products are well conditioned."""
    mean = np.einsum("gdd->g", second) / second.shape[-1]
    each = DAMPING * np.where(mean > 0, mean, 1)
    return second + each[:, None, None] * np.eye(second.shape[-1], dtype=np.float32)


def _sum_parts(one: np.ndarray, other: np.ndarray, cut: int) -> np.ndarray:
    """Sums products over inputs and parts; every part of a group gets the sum."""
    return _sum_over_parts(np.einsum("gdc,gdc->gc", one, other), cut)


def _sum_over_parts(sums: np.ndarray, cut: int) -> np.ndarray:
    return np.repeat(sums.reshape(-1, cut, sums.shape[-1]).sum(1), cut, axis=0)
