"""Rounding offsets: whole levels by which a weight moves before it is rounded to the nearest one.

COMQ chooses levels at every width; an offset is the chosen level less the nearest one, so that a policy is data and the
forward pass rounds as it always does.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from threadpoolctl import threadpool_limits

from haqjax.quantizers.bias_correction import mean_inputs
from haqjax.quantizers.comq import round_levels
from haqjax.quantizers.im2col import arrangement, from_matrix, to_matrix
from haqjax.quantizers.input_moments import Moments
from haqjax.quantizers.linear import SIDES, Grid, widen
from haqjax.quantizers.per_channel import broadcast_channels, host_ratios
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.jaxpr import Layer
from haqjax.types import WEIGHT, WIDTHS, Ranges, Rounding

INT8 = 127
SAME = 1e-5  # relative change of a weight that is none: computed in another program it can differ in its last bits
Policy = Int[Array, "L 2"]


def make_rounding(
    rows: Sequence[tuple[Layer, np.ndarray]], clip: Float[np.ndarray, "L 8"], moments: tuple[Moments, ...]
) -> Rounding:
    """Makes the record of `Ranges.rounding`: levels of least error at each layer's output, and mean inputs.

    Levels are kept as offsets and clip factors relative to nearest rounding.

    Args:
      rows: each use of a layer with its weight, in order of execution.
      clip: of the weights, as in `Ranges.clip`, scaled to each channel.
      moments: sums over the calibration images, one entry a use.
    """
    uses, sums = [use for use, _ in rows], jax.tree.map(np.asarray, moments)
    every = [np.asarray(weight, np.float32) for _, weight in rows]
    products = [row for row in zip(uses, every, sums, strict=True) if not row[0].lookup]
    means = tuple(mean_inputs(*row) for row in products) if any(row[2].first is not None for row in products) else None
    if all(mine.second is None for *_, mine in products):
        return Rounding(None, None, means, None)
    layers, weights = zip(
        *((use, weight) for use, weight in zip(uses, every, strict=True) if use.use == 0), strict=True
    )
    sums = _add_uses(uses, sums)
    # Layers side by side, and each product in one thread: products as small as these wait longer for threads of the
    # library of linear algebra than they take.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_round, layers, weights, sums, [clip[layer.index] for layer in layers])
        offsets, factors = zip(*found, strict=True)
    return Rounding(offsets, np.concatenate(factors, axis=1), means, weights)


def _add_uses(uses: Sequence[Layer], sums: Sequence[Moments]) -> list[Moments]:
    """Adds up the second moments of a layer's uses, one entry a layer; none where they sum over other axes."""
    total: dict[int, Moments] = {}
    first = {use.index: use for use in reversed(uses)}
    for use, mine in zip(uses, sums, strict=True):
        known = total.get(use.index)
        if known is None:
            total[use.index] = mine._replace(second=None) if use.one_scale else mine
        elif known.second is not None:
            alike = mine.second is not None and use.order is None and arrangement(use) == arrangement(first[use.index])
            second = np.asarray(known.second) + np.asarray(mine.second) if alike else None
            total[use.index] = Moments(known.total + mine.total, None, second)
    return list(total.values())


def to_nearest(ranges: Ranges) -> Ranges:
    """Returns the same clips with each weight rounded to its nearest level, as for weights that have moved."""
    means = None if ranges.rounding is None else ranges.rounding.means
    return dataclasses.replace(ranges, rounding=None if means is None else Rounding(None, None, means, None))


def find_unmoved(apply: Apply, params: PyTree, x: PyTree, ranges: Ranges) -> Bool[Array, "C"] | None:
    """Finds the output channels of all layers that hold the weights that their levels were chosen for.

    None where no levels were chosen. Of `x` only shapes are read.
    """
    if ranges.rounding is None or ranges.rounding.origin is None:
        return None
    origin = ranges.rounding.origin

    def same(layer: Layer, weight: Array) -> Array:
        summed = tuple(axis for axis in range(weight.ndim) if axis not in layer.channel_axes)
        before = jnp.asarray(origin[layer.index])
        return jnp.all(jnp.abs(weight - before) <= SAME * jnp.abs(before), axis=summed).reshape(-1)

    return jnp.concatenate(map_weights(same, apply, params, x))


def clip_factor(bits: Int[Array, "C"], unmoved: Bool[Array, "C"] | None, ranges: Ranges) -> Array | int:
    """Returns the factor on the clip of each output channel of all layers at its width."""
    if unmoved is None or ranges.rounding is None or ranges.rounding.factor is None:
        return 1
    column = jnp.clip(bits, 1, WIDTHS) - 1
    return jnp.where(unmoved, jnp.take_along_axis(jnp.asarray(ranges.rounding.factor), column[None], axis=0)[0], 1)


def apply_offsets(
    layer: Layer, weight: Array, grid: Grid, unmoved: Bool[Array, "C"] | None, policy: Policy, ranges: Ranges
) -> Array:
    """Moves a weight by whole levels, such that its nearest level is the one chosen for it.

    What is then less than half a step beyond the clip is clipped to it, and keeps its gradient.

    Args:
      unmoved: of the layer's own channels.
    """
    if unmoved is None or ranges.rounding is None or ranges.rounding.offsets is None:
        return weight
    column = jnp.clip(jnp.asarray(policy)[layer.index, WEIGHT], 1, WIDTHS) - 1
    moves = jnp.asarray(ranges.rounding.offsets[layer.index])[column]
    weight = widen(weight)
    step = jax.lax.stop_gradient(grid.step.astype(weight.dtype))
    moved = weight + moves.astype(weight.dtype) * step
    limit = grid.highest.astype(weight.dtype)
    near = jnp.abs(moved) < limit + step / 2
    leave = grid.identity | ~broadcast_channels(layer, unmoved)
    return jnp.where(leave, weight, jnp.where(near, _clip_straight_through(moved, limit), moved))


@jax.custom_jvp
def _clip_straight_through(x: Array, limit: Array) -> Array:
    return jnp.clip(x, -limit, limit)


@_clip_straight_through.defjvp
def _straight_through(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _clip_straight_through(*primals), tangents[0]


def _round(
    layer: Layer, weight: np.ndarray, sums: Moments, clip: Float[np.ndarray, "8"]
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds one layer by COMQ at every width: offsets [8, *weight] and clip factors [8, C].

    To the nearest levels where no moments tell more.
    """
    if sums.second is None or not sums.total:
        channels = math.prod(weight.shape[axis] for axis in layer.channel_axes)
        return np.zeros((WIDTHS, *weight.shape), np.int8), np.ones((WIDTHS, channels), np.float32)
    matrix = np.asarray(to_matrix(layer, weight))
    levels = round_levels(matrix, np.asarray(sums.second) / sums.total)
    steps = np.stack([_by_channel(layer, step, matrix.shape) for step in levels.step])  # [8, C]
    factor = (steps * SIDES / (clip[:, None] * host_ratios(layer, weight))).astype(np.float32)
    return np.stack([_offsets(layer, weight, *pair) for pair in zip(levels.level, steps, strict=True)]), factor


def _by_channel(layer: Layer, step: Float[np.ndarray, "G R"], shape: tuple[int, ...]) -> Float[np.ndarray, "C"]:
    """Reorders one value an output channel from groups and columns to the order of the weight's axes."""
    whole = np.asarray(from_matrix(layer, np.broadcast_to(step[:, None], shape)))
    first = tuple(slice(None) if axis in layer.channel_axes else 0 for axis in range(whole.ndim))
    return whole[first].reshape(-1)


def _offsets(layer: Layer, weight: np.ndarray, level: np.ndarray, step: Float[np.ndarray, "C"]) -> np.ndarray:
    chosen = np.asarray(from_matrix(layer, level))
    shape = [size if axis in layer.channel_axes else 1 for axis, size in enumerate(weight.shape)]
    nearest = np.rint(weight / step.reshape(shape))
    beyond = (np.abs(nearest) > np.abs(chosen)) & (np.abs(chosen) == np.abs(level).max(initial=0))
    return np.clip(np.where(beyond & (nearest * chosen > 0), 0, chosen - nearest), -INT8, INT8).astype(np.int8)
