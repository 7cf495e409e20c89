"""Cost of a policy, from a cost table."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.types import ACTIVATION, FULL_PRECISION, WEIGHT, WIDTHS, AnyArray, Cost, CostTable, Lifetimes
from haqjax.widths import are_widths, check_widths


def policy_cost(table: CostTable, policy: Int[AnyArray, "*n L 2"] | Float[AnyArray, "*n L 2"]) -> Cost:
    """Adds up what every layer costs at its bit-widths, and what no policy changes.

    Integer bits are looked up. Fractional bits are interpolated linearly in both widths between the four
    neighbouring entries, which makes every table differentiable in the bits; at integers the two agree.

    Args:
      table: costs [L, 8, 8] in seconds, joules, bytes and bit operations, and the lifetimes for peak memory.
      policy: bits [..., L, 2] from 1 to 8, weights first; integers, or floating for the interpolation. At 32 a tensor
        is left as it is.

    Returns:
      The cost, leading axes as the policy's. A policy with any other entry (or NaN) costs NaN. One that leaves a tensor
      as it is costs NaN of each resource that depends on the tensor's bits, since no table says what 32 bits cost;
      peak memory is known.

    Raises:
      ValueError: the policy has another number of layers than the table, or its last axis is not 2.

    >>> bits = np.arange(1.0, 9.0)
    >>> cycles = np.broadcast_to(bits[:, None] * bits[None, :], (3, 8, 8))
    >>> table = CostTable(latency=cycles, energy=cycles, size=cycles, fixed=Cost(0.0, 0.0, 5.0))
    >>> float(policy_cost(table, jnp.full((3, 2), 4)).latency)
    48.0
    >>> float(policy_cost(table, jnp.full((3, 2), 4.5)).size)
    65.75
    """
    policy = jnp.asarray(policy)
    check_shape(table, policy)
    at = jnp.where(policy == FULL_PRECISION, WIDTHS, policy)  # not the minimum: at a tie its gradient is half of it
    rows = _interpolate(table, at) if jnp.issubdtype(policy.dtype, jnp.floating) else _look_up(table, at)
    valid = are_widths(policy)
    known = [_is_priced(values, policy) for values in tables(table)]
    found = (jnp.where(good, row, jnp.nan) for good, row in zip(known, rows, strict=True))
    total = dict(zip(Cost._fields, found, strict=False))
    if table.lifetimes is not None:
        total["memory"] = peak_memory(table.lifetimes, policy)
    unknown = jnp.full(valid.shape, jnp.nan)

    def add(name: str) -> Float[Array, "*n"]:
        fixed = getattr(table.fixed, name)
        return jnp.where(valid, total.get(name, unknown) + (0.0 if fixed is None else fixed), jnp.nan)

    return Cost(*map(add, Cost._fields))


def peak_memory(lifetimes: Lifetimes, policy: Int[Array, "*n L 2"] | Float[Array, "*n L 2"]) -> Float[Array, "*n"]:
    """Counts the most bytes of activations that are in memory at a time.

    A tensor is stored at the widest activation bits of the layers that read it: directly or through element-wise
    functions, else through sums. One that no layer reads, such as the output, is stored in 32 bits.

    Args:
      lifetimes: from `haqjax.hardware.find_lifetimes`.
      policy: bits of weights and activations; weights do not matter here.

    Returns:
      Bytes, leading axes as the policy's.

    >>> lifetimes = Lifetimes(np.array([100.0, 2.0]), np.array([[True, True]]), np.array([[True], [False]]))
    >>> float(peak_memory(lifetimes, np.array([[8, 4]])))  # 100 numbers of 4 bits in, 2 of 32 bits out
    58.0
    """
    activation_bits = policy[..., None, :, ACTIVATION]
    readers = jnp.reshape(lifetimes.readers, (1,) * (policy.ndim - 2) + lifetimes.readers.shape)
    bits = jnp.max(jnp.where(readers, activation_bits, 0), axis=-1)
    bits = jnp.where(readers.any(axis=-1), bits, FULL_PRECISION)
    stored = bits * jnp.reshape(lifetimes.elements, (1,) * (bits.ndim - 1) + (-1,))
    alive = jnp.asarray(lifetimes.alive, stored.dtype)
    return jnp.max(stored @ alive.T, axis=-1) / 8


def exact_cost(table: CostTable, policy: Int[np.ndarray, "L 2"]) -> dict[str, float]:
    """Computes `policy_cost` of one policy on the host, in float64; by the names of `Cost`.

    Raises:
      ValueError: bits that are none; names the layer.
    """
    policy = np.asarray(policy)
    check_widths(policy, names=table.names)
    total = {name: layer_costs(values, policy).sum() for name, values in zip(Cost._fields, tables(table), strict=False)}
    if table.lifetimes is not None:
        total["memory"] = (np.asarray(table.lifetimes.alive) @ stored_bytes(table.lifetimes, policy)).max()
    fixed = [0.0 if extra is None else float(extra) for extra in table.fixed]
    return {name: float(total.get(name, math.nan)) + extra for name, extra in zip(Cost._fields, fixed, strict=True)}


def layer_costs(values: Float[np.ndarray, "L 8 8"], policy: Int[np.ndarray, "L 2"]) -> Float[np.ndarray, "L"]:
    """Looks up the cost of each layer under one policy, on the host; NaN where it is not known at 32 bits."""
    values, at = np.asarray(values), np.minimum(policy, WIDTHS) - 1
    unknown = (policy == FULL_PRECISION) & depends_on_bits(values)
    return np.where(unknown.any(-1), np.nan, values[np.arange(len(policy)), at[:, WEIGHT], at[:, ACTIVATION]])


def depends_on_bits(values: Float[AnyArray, "L 8 8"]) -> Bool[np.ndarray, "L 2"]:
    """Tells whether a layer's cost depends on the bits of its weights, and on those of its activations.

    >>> depends_on_bits(np.broadcast_to(np.arange(8.0)[:, None], (1, 8, 8))).tolist()
    [[True, False]]
    """
    by_weight = (values != values[:, -1:, :]).any(axis=(1, 2))
    by_activation = (values != values[:, :, -1:]).any(axis=(1, 2))
    where: Any = np if isinstance(values, np.ndarray) else jnp
    return where.stack([by_weight, by_activation], axis=-1)


def stored_bytes(lifetimes: Lifetimes, policy: Int[np.ndarray, "L 2"]) -> Float[np.ndarray, "V"]:
    """Counts the bytes of each tensor under one policy, on the host."""
    readers = np.asarray(lifetimes.readers)
    bits = np.where(readers, policy[None, :, ACTIVATION], 0).max(axis=-1)
    return np.where(readers.any(axis=-1), bits, FULL_PRECISION) * np.asarray(lifetimes.elements) / 8


def tables(table: CostTable) -> list[Float[np.ndarray, "L 8 8"]]:
    """Lists the costs that add up over layers, in the order of `Cost`."""
    return [table.latency, table.energy, table.size, *([] if table.bops is None else [table.bops])]


def check_shape(table: CostTable, policy: Array) -> None:
    """Raises ValueError unless the policy is [..., L, 2] for the L layers of the table."""
    if policy.ndim < 2 or policy.shape[-2:] != (len(table), 2):
        raise ValueError(
            f"policy has shape {policy.shape}, expected [..., {len(table)}, 2]: one row a layer of the table"
        )


def _is_priced(values: Float[AnyArray, "L 8 8"], policy: Array) -> Bool[Array, "*n"]:
    """Tells whether no tensor is left at 32 bits whose bits matter."""
    matters = jnp.reshape(depends_on_bits(values), (1,) * (policy.ndim - 2) + (-1, 2))
    return ~((policy == FULL_PRECISION) & matters).any(axis=(-2, -1))


def _look_up(table: CostTable, policy: Int[Array, "*n L 2"]) -> tuple[Float[Array, "*n"], ...]:
    # One gather of rows: on a CPU a gather's time goes with the number of indices, not of numbers.
    stacked = jnp.stack(tables(table), axis=-1)
    total = stacked.reshape(-1, stacked.shape[-1]).at[_flat_index(policy)].get(mode="clip").sum(axis=-2)
    return tuple(total[..., i] for i in range(total.shape[-1]))


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
    return tuple(map(total, tables(table)))


def _flat_index(policy: Int[Array, "*n L 2"]) -> Int[Array, "*n L"]:
    """Computes the index of each entry in a table raveled from [L, 8, 8]."""
    first = jnp.arange(policy.shape[-2]) * WIDTHS**2
    entry = WIDTHS * policy[..., WEIGHT] + policy[..., ACTIVATION] - (WIDTHS + 1)
    return entry + first.reshape((1,) * (entry.ndim - 1) + (-1,))
