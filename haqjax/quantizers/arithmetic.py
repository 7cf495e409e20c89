"""Arithmetic of a network's layers: in how many parts each sum has to be cut so that float32 holds it exactly.

Codes of 8 bits multiply to at most 255 x 127, of which float32 holds the sums of 518 and no more. Real weights are far
smaller than their largest one, and positive and negative ones do not add up: for given weights and clips most sums of
thousands of products are known to be exact in one part.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, PyTree

from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.integer_products import FLOAT_LIMIT, Arithmetic, Form, count_summed, safe_arithmetic
from haqjax.tracing.jaxpr import Layer
from haqjax.types import WEIGHT, WIDTHS, Ranges

LEVELS = np.maximum(2 ** np.arange(WIDTHS) - 1, 1)[:, None]  # of a weight on a side of zero, by bits - 1
LARGEST_ACTIVATION, LARGEST_SIGNED = 255, 127  # codes at 8 bits


def choose_arithmetic(
    apply: Apply, params: PyTree, x: PyTree, ranges: Ranges, forms: Sequence[Form] | None = None
) -> tuple[Arithmetic, ...]:
    """Chooses how each layer's products are computed, exactly and in as few parts as these weights allow.

    It holds for these parameters and ranges, at every width: weights that move need another choice, or none.

    Args:
      params: with their values; not under `jit`.
      x: only shapes are read.
      forms: of each layer; None is float32.
    Returns:
      One entry a layer, for `haqjax.evaluation.make_evaluator`.

    >>> from haqjax.quantizers.calibration import calibrate
    >>> import jax.numpy as jnp
    >>> apply, params = lambda params, x: x @ params["w"], {"w": jnp.ones((600, 2)).at[0].set(100.0)}
    >>> ranges = calibrate(apply, params, [jnp.ones((1, 600))], rounding="nearest")
    >>> choose_arithmetic(apply, params, jnp.ones((1, 600)), ranges)
    (Arithmetic(form='float32', parts=1),)
    """

    pairs = map_weights(lambda layer, weight: (layer, weight), apply, params, x)
    channels = [math.prod(weight.shape[axis] for axis in layer.channel_axes) for layer, weight in pairs]
    ends = np.cumsum(channels)
    parts = [
        _count_parts(layer, weight, ranges, slice(end - count, end))
        for (layer, weight), count, end in zip(pairs, channels, ends, strict=True)
    ]
    chosen: Sequence[Form] = ["float32"] * len(parts) if forms is None else forms
    if ranges.codebook is not None:
        chosen = ["float32"] * len(parts)
    elif ranges.reached is not None:  # what calibration did not reach is left in floating point
        chosen = [form if there else "float32" for form, there in zip(chosen, ranges.reached, strict=True)]
    return tuple(Arithmetic(form, count) for form, count in zip(chosen, parts, strict=True))


def _count_parts(layer: Layer, weight: Array, ranges: Ranges, mine: slice) -> int:
    safe = safe_arithmetic(layer).parts
    if safe == 1 or ranges.codebook is not None:  # the values of codebooks are no codes
        return 1
    return 1 if _bound_sums(layer, np.asarray(weight, np.float64), ranges, mine) <= FLOAT_LIMIT else safe


def _bound_sums(layer: Layer, weight: np.ndarray, ranges: Ranges, mine: slice) -> float:
    """Bounds every partial sum of the layer's codes, in any order, over all widths and channels.

    Unsigned codes meet either the positive weights or the negative ones, signed codes both.
    """
    summed = tuple(axis for axis in range(weight.ndim) if axis not in layer.channel_axes)
    sides = [np.maximum(sign * weight, 0).sum(summed).reshape(-1) for sign in (1, -1)]
    count, signed = count_summed(layer), np.asarray(ranges.signed)[layer.index]
    bound = 0.0
    for step, moves in _steps(layer, weight, summed, ranges, mine):
        # Rounding adds half a level to a magnitude at most; one signed bit has no levels.
        up, down = (np.minimum(side / step + count / 2 + moves, count * LEVELS)[1:] for side in sides)
        unsigned = LARGEST_ACTIVATION * np.maximum(up, down).max() if not signed.all() else 0
        bound = max(bound, unsigned, LARGEST_SIGNED * (up + down).max() if signed.any() else 0)
    return bound


def _steps(
    layer: Layer, weight: np.ndarray, summed: tuple[int, ...], ranges: Ranges, mine: slice
) -> list[tuple[Float[np.ndarray, "8 C"], Float[np.ndarray, "8 C"] | int]]:
    """Computes the steps of each channel by bits - 1, and the levels that its weights are moved by, summed.

    Twice where levels were chosen: for channels that hold the weights that they were chosen for, and for others.
    """
    largest = np.abs(weight).max(summed).reshape(-1)
    ratio = np.where(largest > 0, largest / max(largest.max(), np.finfo(np.float32).tiny), 1)
    clip = np.asarray(ranges.clip, np.float64)[layer.index, WEIGHT][:, None] * (ratio if ranges.per_channel else 1)
    steps: list[tuple[np.ndarray, np.ndarray | int]] = [(clip / LEVELS, 0)]
    rounding = ranges.rounding
    if rounding is not None and rounding.offsets is not None and rounding.factor is not None:
        moves = np.abs(np.asarray(rounding.offsets[layer.index], np.int64)).sum(tuple(axis + 1 for axis in summed))
        factor = np.asarray(rounding.factor, np.float64)[:, mine]
        steps.append((clip * factor / LEVELS, moves.reshape(WIDTHS, -1)))
    return steps
