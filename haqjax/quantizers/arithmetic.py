"""Arithmetic of a network's layers: in how many parts each sum has to be cut so that float32 holds it exactly.

Codes of 8 bits multiply to at most 255 x 127, of which float32 holds the sums of 518 and no more. Real weights are far
smaller than their largest one, and positive and negative ones do not add up: for given weights and clips most sums of
thousands of products are known to be exact in one part.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, PyTree

from haqjax.quantizers.linear import SIDES
from haqjax.quantizers.per_channel import host_ratios
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.integer_products import (
    FLOAT_LIMIT,
    LARGEST_SIGNED,
    LARGEST_UNSIGNED,
    Arithmetic,
    Form,
    cuts_evenly,
    safe_arithmetic,
    summed_axes,
)
from haqjax.tracing.jaxpr import Layer
from haqjax.types import WEIGHT, Ranges

FEW = 1, 2, 3  # parts that are tried before as many as any weights need


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

    pairs = map_weights(lambda layer, weight: (layer, weight), apply, params, x, each_use=True)
    first = [(layer, weight) for layer, weight in pairs if layer.use == 0]
    channels = [math.prod(weight.shape[axis] for axis in layer.channel_axes) for layer, weight in first]
    ends, parts = np.cumsum(channels), [1] * len(first)
    turned = {
        layer.index for layer, _ in pairs if layer.order is not None or layer.one_scale
    }  # what is summed differs by use
    for layer, weight in pairs:
        mine = slice(ends[layer.index] - channels[layer.index], ends[layer.index])
        found = _count_parts(layer, weight, ranges, mine, layer.index in turned)
        parts[layer.index] = max(parts[layer.index], found)
    arithmetic = tuple(Arithmetic("float32", count) for count in parts)
    return arithmetic if forms is None else set_forms(arithmetic, forms, ranges)


def set_forms(arithmetic: Sequence[Arithmetic], forms: Sequence[Form], ranges: Ranges) -> tuple[Arithmetic, ...]:
    """Sets the type of each layer's products, but for layers with operands that are no codes.

    Those are all where the weights have codebooks, and those whose activation calibration did not reach.
    """
    reached = [ranges.codebook is None] * len(forms)
    if ranges.reached is not None:
        reached = [both and bool(there) for both, there in zip(reached, ranges.reached, strict=True)]
    rows = zip(arithmetic, forms, reached, strict=True)
    return tuple(layer._replace(form=form if there else "float32") for layer, form, there in rows)


def _count_parts(layer: Layer, weight: Array, ranges: Ranges, mine: slice, turned: bool) -> int:
    safe = 1 if layer.lookup else safe_arithmetic(layer).parts
    if safe == 1 or ranges.codebook is not None:  # the values of codebooks are no codes
        return 1
    if turned:
        return safe
    values = np.asarray(weight, np.float64)
    tried = (parts for parts in FEW if parts < safe and cuts_evenly(layer, parts))
    return next((parts for parts in tried if _bound_sums(layer, values, ranges, mine, parts) <= FLOAT_LIMIT), safe)


def _bound_sums(layer: Layer, weight: np.ndarray, ranges: Ranges, mine: slice, parts: int) -> float:
    """Bounds every partial sum of the layer's codes within a part, in any order, over all widths and channels.

    Unsigned codes meet either the positive weights or the negative ones, signed codes both.
    """
    sides = [_sum_parts(layer, np.maximum(sign * weight, 0), parts) for sign in (1, -1)]
    count = _sum_parts(layer, np.ones_like(weight), parts)
    signed, bound = np.asarray(ranges.signed)[layer.index], 0.0
    for step, moves in _steps(layer, weight, ranges, mine, parts):
        # Rounding adds half a level to a magnitude at most; one signed bit has no levels.
        up, down = (np.minimum(side / step + count / 2 + moves, count * SIDES)[:, 1:] for side in sides)
        unsigned = LARGEST_UNSIGNED * np.maximum(up, down).max() if not signed.all() else 0
        bound = max(bound, unsigned, LARGEST_SIGNED * (up + down).max() if signed.any() else 0)
    return bound


def _sum_parts(layer: Layer, values: np.ndarray, parts: int) -> Float[np.ndarray, "parts 1 C"]:
    """Sums what belongs to each output channel, within each part of what is summed over."""
    axis = summed_axes(layer)[0]
    size = -(-values.shape[axis] // parts)
    within = np.add.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)
    others = tuple(at for at in range(values.ndim) if at not in (axis, *layer.channel_axes))
    whole = np.moveaxis(within.sum(others, keepdims=True), axis, 0)
    return whole.reshape(len(whole), 1, -1)


def _steps(
    layer: Layer, weight: np.ndarray, ranges: Ranges, mine: slice, parts: int
) -> list[tuple[Float[np.ndarray, "8 C"], Float[np.ndarray, "parts 8 C"] | int]]:
    """Computes the steps of each channel by bits - 1, and the levels that its weights are moved by, summed.

    Twice where levels were chosen: for channels that hold the weights that they were chosen for, and for others.
    """
    ratio = host_ratios(layer, weight) if ranges.per_channel else 1
    clip = np.asarray(ranges.clip, np.float64)[layer.index, WEIGHT][:, None] * ratio
    steps: list[tuple[np.ndarray, np.ndarray | int]] = [(clip / SIDES, 0)]
    rounding = ranges.rounding
    if rounding is not None and rounding.offsets is not None and rounding.factor is not None:
        offsets = np.abs(np.asarray(rounding.offsets[layer.index], np.int32))
        moves = np.concatenate([_sum_parts(layer, each, parts) for each in offsets], axis=1)
        steps.append((clip * np.asarray(rounding.factor, np.float64)[:, mine] / SIDES, moves))
    return steps
