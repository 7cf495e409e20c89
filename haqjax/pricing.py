"""The cost of a policy, read from a cost table."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Cost, CostTable


def price(table: CostTable, policy: Int[Array, "*n L 2"] | Float[Array, "*n L 2"]) -> Cost:
    """Adds up what every layer costs at its bit-widths, and what no policy changes.

    Integer bits are looked up. Fractional bits are interpolated linearly in both widths between the four
    neighbouring entries, which makes every table differentiable in the bits; at integers the two agree.

    Args:
      table: costs [L, 8, 8] in seconds, joules and bytes.
      policy: bits [..., L, 2] from 1 to 8, weights first; integers, or floating for the interpolation.

    Returns:
      The cost, leading axes as the policy's. A policy with an entry outside 1..8 (or NaN) costs NaN.

    Raises:
      ValueError: the policy has another number of layers than the table, or its last axis is not 2.

    >>> bits = np.arange(1.0, 9.0)
    >>> cycles = np.broadcast_to(bits[:, None] * bits[None, :], (3, 8, 8))
    >>> table = CostTable(latency=cycles, energy=cycles, size=cycles, fixed=Cost(0.0, 0.0, 5.0))
    >>> float(price(table, jnp.full((3, 2), 4)).latency)
    48.0
    >>> float(price(table, jnp.full((3, 2), 4.5)).size)
    65.75
    """
    check_shape(table, policy)
    rows = _interpolate(table, policy) if jnp.issubdtype(policy.dtype, jnp.floating) else _look_up(table, policy)
    valid = jnp.all((policy >= 1) & (policy <= WIDTHS), axis=(-2, -1))
    return Cost(*(jnp.where(valid, row + extra, jnp.nan) for row, extra in zip(rows, table.fixed, strict=True)))


def check_shape(table: CostTable, policy: Array) -> None:
    """Raises ValueError unless the policy is [..., L, 2] for the L layers of the table."""
    if policy.ndim < 2 or policy.shape[-2:] != (len(table), 2):
        raise ValueError(
            f"policy has shape {policy.shape}, expected [..., {len(table)}, 2]: one row a layer of the table"
        )


def _look_up(table: CostTable, policy: Int[Array, "*n L 2"]) -> tuple[Float[Array, "*n"], ...]:
    # One gather of rows of three: on a CPU a gather's time goes with the number of indices, not of numbers.
    rows = jnp.stack([table.latency, table.energy, table.size], axis=-1).reshape(-1, 3)
    total = rows.at[_flat_index(policy)].get(mode="clip").sum(axis=-2)
    return tuple(total[..., i] for i in range(3))


def _interpolate(table: CostTable, policy: Float[Array, "*n L 2"]) -> tuple[Float[Array, "*n"], ...]:
    corner = jnp.clip(jnp.floor(jax.lax.stop_gradient(policy)), 1, WIDTHS - 1).astype(jnp.int32)
    at = _flat_index(corner)
    up = policy - corner
    w, a = up[..., WEIGHT], up[..., ACTIVATION]

    def total(values: Float[np.ndarray, "L 8 8"]) -> Float[Array, "*n"]:
        flat = jnp.asarray(values).reshape(-1)
        low_low, low_high, high_low, high_high = (
            flat.at[at + step].get(mode="clip") for step in (0, 1, WIDTHS, WIDTHS + 1)
        )
        low = low_low + a * (low_high - low_low)
        high = high_low + a * (high_high - high_low)
        return (low + w * (high - low)).sum(axis=-1)

    # Resource by resource: a table without energy (NaN) then leaves the other gradients alone.
    return total(table.latency), total(table.energy), total(table.size)


def _flat_index(policy: Int[Array, "*n L 2"]) -> Int[Array, "*n L"]:
    """Where an entry stands in a table raveled from [L, 8, 8]."""
    first = jnp.arange(policy.shape[-2]) * WIDTHS**2
    entry = WIDTHS * policy[..., WEIGHT] + policy[..., ACTIVATION] - (WIDTHS + 1)
    return entry + first.reshape((1,) * (entry.ndim - 1) + (-1,))
