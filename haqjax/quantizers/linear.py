"""Symmetric linear fake quantisation with the straight-through estimator; the bit-width is data."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from haqjax.types import FULL_PRECISION, WIDTHS


class Grid(NamedTuple):
    """The levels of a quantiser: multiples of `step` from `lowest` to `highest`. Any shape, for many at once."""

    lowest: Float[Array, "*n"]
    highest: Float[Array, "*n"]
    step: Float[Array, "*n"]
    per_unit: Float[Array, "*n"]  # 1 / step
    identity: Bool[Array, "*n"]  # leave the tensor as it is


# Levels of a weight on a side of zero, [8, 1] by bits - 1; one bit has none and counts as one.
SIDES = np.maximum(2 ** np.arange(WIDTHS) - 1, 1)[:, None]


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns float16 and bfloat16 numbers in 32 bits, others as they are: `1 / step` may be beyond what float16 holds.

    >>> widen(jnp.ones(2, jnp.float16)).dtype.name
    'float32'
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def make_grid(clip: Float[Array, "*n"], bits: Int[Array, "*n"], signed: Bool[Array, "*n"]) -> Grid:
    """Makes the levels of a linear quantiser (Wang et al. 2019, section 3.4).

    Signed: `n = 2^(bits - 1) - 1` levels a side of zero in `[-clip, clip]`. Unsigned: `n = 2^bits - 1` levels in
    `[0, clip]`. The step is `clip / n`. One signed bit has no level but zero: its grid gives NaN.

    >>> print(make_grid(jnp.array(3.0), jnp.array(3), jnp.array(True)).step)
    1.0
    """
    clip, bits, signed = jnp.asarray(clip), jnp.asarray(bits), jnp.asarray(signed)
    levels = (jnp.left_shift(1, bits - signed.astype(jnp.int32)) - 1).astype(clip.dtype)
    return Grid(jnp.where(signed, -clip, 0), clip, clip / levels, levels / clip, bits >= FULL_PRECISION)


def snap(x: Float[Array, "*shape"], grid: Grid) -> Float[Array, "*shape"]:
    """Rounds `x` to a grid, ties to the even level; the gradient is that of a rounding with a constant error.

    With `x` clipped, `v = x / step` and the error `r = round(v) - v` held, the result is `x + r step`. The gradient of
    `x` is 1 inside the clip and 0 outside; that of a clip of `n` levels is `r / n` inside and the sign of `x` outside
    (LSQ, Esser et al. 2020, arXiv 1902.08153, equation 3, where `step = clip / n` is learned).

    Args:
      grid: scalars, or arrays of the rank of `x` that broadcast against it.
    """
    values = widen(x)
    grid = _spread(grid, values)
    rounded = _round(_clip(values, grid), grid.per_unit, grid.step)
    return jnp.where(grid.identity, x, rounded.astype(x.dtype))


def encode(x: Float[Array, "*shape"], grid: Grid) -> Float[Array, "*shape"]:
    """Returns the codes of what `snap` rounds to: whole numbers of steps; `x` itself where it is left as it is.

    Numbers of 16 bits are returned in 32. For the forward pass: it has no gradient of its own.

    >>> encode(jnp.array([-2.0, -0.4, 0.6, 0.9]), make_grid(jnp.array(1.0), jnp.array(3), jnp.array(True))).tolist()
    [-3.0, -1.0, 2.0, 3.0]
    """
    values = widen(x)
    grid = _spread(grid, values)
    return jnp.where(grid.identity, values, jnp.round(_clip(values, grid) * grid.per_unit))


def scale_of(grid: Grid) -> Float[Array, "*n"]:
    """Returns the number that the codes of a grid are multiples of; 1 where a tensor is left as it is."""
    return jnp.where(grid.identity, 1, grid.step)


def _spread(grid: Grid, values: Array) -> Grid:
    """Brings a grid to the type of the values, and scalars to their rank."""
    grid = jax.tree.map(lambda leaf: leaf.reshape((1,) * values.ndim) if leaf.ndim == 0 else leaf, grid)
    lowest, highest, step, per_unit = (leaf.astype(values.dtype) for leaf in grid[:4])
    return Grid(lowest, highest, step, per_unit, grid.identity)


def _clip(values: Array, grid: Grid) -> Array:
    # Not minimum and maximum: at a tie, such as the largest weight of a channel, they would give it half the gradient.
    return jnp.where(values > grid.highest, grid.highest, jnp.where(values < grid.lowest, grid.lowest, values))


def fake_quantize(
    x: Float[Array, "*shape"],
    clip: Float[Array, "*#shape"] | float,
    bits: Int[Array, ""] | int,
    signed: Bool[Array, ""] | bool = True,
    gradient: Literal["pact", "lsq"] = "pact",
) -> Float[Array, "*shape"]:
    """Rounds `x` to the levels of a linear quantiser, with the straight-through estimator (see `make_grid`, `snap`).

    The gradient of `x` is 1 inside the clip and 0 outside.

    Args:
      x: any shape.
      clip: positive; a scalar, or one value a channel, of the rank of `x`.
      bits: 2..8, or 1 where unsigned; 32 returns `x` as it is. Traced: another width does not compile again.
      signed: traced.
      gradient: of the clip. "pact": 0 inside and the sign of `x` outside (Choi et al. 2018, arXiv 1805.06085, equation
        3); "lsq": the rounding error counts too, see `snap`.
    Returns:
      Values on the quantiser's levels, of the shape and dtype of `x`.

    >>> fake_quantize(jnp.array([-2.0, -0.4, 0.6, 0.9]), 1.0, 3)
    Array([-1.        , -0.33333334,  0.6666667 ,  1.        ], dtype=float32)
    """
    grid = make_grid(jnp.asarray(clip, widen(x).dtype), jnp.asarray(bits), jnp.asarray(signed))
    return snap(x, hold_step(grid) if gradient == "pact" else grid)


def hold_step(grid: Grid) -> Grid:
    """Returns the same grid, whose step has no gradient: that of the clip is then PACT's, 0 inside."""
    return grid._replace(step=jax.lax.stop_gradient(grid.step))


@jax.custom_jvp
def _round(x: Array, per_unit: Array, step: Array) -> Array:
    return jnp.round(x * per_unit) * step


def _round_straight_through(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, per_unit, step = primals
    by_x, _, by_step = tangents  # `per_unit` only finds the level
    if isinstance(by_x, SymbolicZero):
        by_x = jnp.zeros_like(x)
    if not isinstance(by_step, SymbolicZero):
        by_x = by_x + (jnp.round(x * per_unit) - x * per_unit) * by_step
    return _round(*primals), by_x


_round.defjvp(_round_straight_through, symbolic_zeros=True)
