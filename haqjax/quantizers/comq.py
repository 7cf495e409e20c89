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
    most = np.repeat(2 ** np.arange(WIDTHS) - 1, outputs).astype(np.float32)  # levels a side, [8 R]
    weight = np.tile(matrix.astype(np.float32), (1, 1, WIDTHS)).reshape(groups * cut, inputs // cut, -1)
    moments = _damp(second.astype(np.float32))
    step = _first_step(weight, np.maximum(most, 1), moments, cut)
    level = np.clip(np.rint(weight / step[:, None]), -most, most)
    target = moments @ weight
    for _ in range(sweeps):
        product = moments @ level
        step = _best_step(step, _sum_parts(level * target, cut), _sum_parts(level * product, cut))
        _sweep(level, target - product * step[:, None], step, most * (weight != 0), moments)
    shaped = level.reshape(groups, inputs, WIDTHS, outputs).transpose(2, 0, 1, 3)
    return Levels(shaped, step[::cut].reshape(groups, WIDTHS, outputs).transpose(1, 0, 2))


def _first_step(weight: np.ndarray, most: np.ndarray, moments: np.ndarray, cut: int) -> np.ndarray:
    """Chooses among a few clips of each channel, each input weighted by its own second moment."""
    own = np.einsum("gdd->gd", moments)[..., None]
    largest = np.abs(weight).max(1).reshape(-1, cut, weight.shape[-1]).max(1)
    largest = np.repeat(np.where(largest > 0, largest, 1), cut, axis=0)
    steps = [ratio * largest / most for ratio in CLIP_RATIOS]

    def error(step: np.ndarray) -> np.ndarray:
        nearest = np.clip(np.rint(weight / step[:, None]), -most, most) * step[:, None]
        return _sum_parts(own * (weight - nearest) ** 2, cut)

    errors = [error(step) for step in steps]
    return np.take_along_axis(np.stack(steps), np.argmin(errors, axis=0)[None], axis=0)[0]


def _best_step(step: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Solves least squares for given levels; where they are all zero the step stays."""
    good = (numerator > 0) & (denominator > 0)
    return np.where(good, numerator / np.where(good, denominator, 1), step).astype(np.float32)


def _sweep(level: np.ndarray, slope: np.ndarray, step: np.ndarray, most: np.ndarray, moments: np.ndarray) -> None:
    """Moves each weight in turn to its best level, in place; `slope` is `S e`, which changes with every move.

    Levels go up to `most` on either side, which is 0 for a weight of 0.
    """
    per_step = 1 / step
    for start in range(0, level.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        near, moved = slope[:, block].copy(), np.zeros_like(level[:, block])
        for i in range(near.shape[1]):
            at = start + i
            own = moments[:, at, at][:, None]
            best = np.clip(np.rint(level[:, at] + near[:, i] * (per_step / own)), -most[:, at], most[:, at])
            moved[:, i] = (level[:, at] - best) * step
            near += moments[:, block, at][..., None] * moved[:, i][:, None]
            level[:, at] = best
        slope += moments[:, :, block] @ moved


def _damp(second: np.ndarray) -> np.ndarray:
    """Adds a little to the second moment of each input, so that the products are well conditioned."""
    mean = np.einsum("gdd->g", second) / second.shape[-1]
    each = DAMPING * np.where(mean > 0, mean, 1)
    return second + each[:, None, None] * np.eye(second.shape[-1], dtype=np.float32)


def _sum_parts(values: np.ndarray, cut: int) -> np.ndarray:
    """Sums over inputs and parts; every part of a group gets the sum."""
    sums = values.sum(1)
    return np.repeat(sums.reshape(-1, cut, sums.shape[-1]).sum(1), cut, axis=0)
