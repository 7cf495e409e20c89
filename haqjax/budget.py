"""Budgets: what a policy may cost, and how a policy is lowered until it fits."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.policy import uniform
from haqjax.pricing import check_shape, price
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Bounds, Budget, Cost, CostTable, Projection

TOLERANCE = 1e-6  # relative; a float32 sum over a network's layers is not exact
SHOWN = {"latency": (1e3, "ms"), "energy": (1e3, "mJ"), "size": (2.0**-10, "KiB")}  # for people to read


def budget(
    table: CostTable,
    latency: float | None = None,
    energy: float | None = None,
    size: float | None = None,
    *,
    latency_s: float | None = None,
    energy_j: float | None = None,
    size_bytes: float | None = None,
) -> Budget:
    """The most that a policy may cost, as fractions of the all-8-bit cost or as absolute limits.

    Args:
      table: costs of the network on the machine.
      latency, energy, size: fractions of what the network costs with 8 bits everywhere.
      latency_s, energy_j, size_bytes: absolute limits. A resource with neither is free.

    Returns:
      The limits in seconds, joules and bytes; `inf` for a free resource.

    Raises:
      ValueError: a limit that is not above zero, given in both forms, or on a resource that the table has no
        finite cost for.

    >>> table = CostTable(*(np.ones((2, 8, 8)) for _ in range(3)), fixed=Cost(0.0, 0.0, 2.0))
    >>> [float(limit) for limit in budget(table, size=0.5, latency_s=3.0)]
    [3.0, inf, 2.0]
    """
    full = _sum_64(table, np.full((len(table), 2), WIDTHS))
    given = ((latency, latency_s), (energy, energy_j), (size, size_bytes))
    limits = (_limit(name, *forms, cost) for name, forms, cost in zip(Cost._fields, given, full, strict=True))
    return Budget(*(jnp.asarray(limit, jnp.float32) for limit in limits))


def fits(cost: Cost, budget: Budget) -> Bool[Array, "*n"]:
    """Whether every limited resource stays within its limit, up to one part in a million.

    A NaN never fits a limit; a free resource (`inf`) is not looked at, so that a machine without an energy model
    can be searched for latency.

    >>> limits = Budget(jnp.float32(2.0), jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    >>> fits(Cost(jnp.asarray([2.0, 2.1]), jnp.asarray([jnp.nan, 0.0]), jnp.ones(2)), limits).tolist()
    [True, False]
    """
    within = [
        (spent <= limit * (1 + TOLERANCE)) | jnp.isposinf(limit) for spent, limit in zip(cost, budget, strict=True)
    ]
    return within[0] & within[1] & within[2]


def floor(table: CostTable, bounds: Bounds) -> Cost:
    """What the network costs with every layer at its lowest bits."""
    return price(table, jnp.asarray(bounds.low))


def check_reachable(table: CostTable, bounds: Bounds, budget: Budget, names: Sequence[str] | None = None) -> None:
    """Stops before a long run whose budget no policy can meet.

    Args:
      table, bounds, budget: as for `project`.
      names: the layers' names; without them layers are called by number.

    Raises:
      ValueError: a limit below the floor. The line says what was asked, the floor, and which layers hold most of it.

    >>> from haqjax.policy import bounds as make_bounds
    >>> table = CostTable(*(np.full((3, 8, 8), 1e-3) for _ in range(3)), fixed=Cost(0.0, 0.0, 0.0))
    >>> check_reachable(table, make_bounds(3), budget(table, latency=0.5))
    Traceback (most recent call last):
    ...
    ValueError: latency budget 1.5 ms is below the floor 3 ms (all layers at their lowest bits), held by layer 0 33 %, \
layer 1 33 %, layer 2 33 %: raise the budget or allow fewer bits
    """
    lowest = np.asarray(bounds.low)
    names = [f"layer {index}" for index in range(len(table))] if names is None else names
    for name, limit, least in zip(Cost._fields, budget, _sum_64(table, lowest), strict=True):
        if np.isposinf(limit) or least <= float(limit) * (1 + TOLERANCE):
            continue
        scale, unit = SHOWN[name]
        raise ValueError(
            f"{name} budget {float(limit) * scale:.4g} {unit} is below the floor {least * scale:.4g} {unit} "
            f"(all layers at their lowest bits), held by {_holders(table, lowest, name, names)}: "
            "raise the budget or allow fewer bits"
        )


def project(policy: Int[Array, "*n L 2"], table: CostTable, bounds: Bounds, budget: Budget) -> Projection:
    """Lowers bits one at a time, last layer first, until the policy fits the budget.

    The order is HAQ's (Wang et al. 2019, section 3.3): from the last layer to the first, at each layer activations,
    then weights, one bit each; then again. Entries at their lowest are passed over. That makes the first `m` of a
    fixed sequence of steps, and `m` is bisected: about ten prices instead of hundreds.

    Where fewer bits never cost more, this is the same policy as the loop's. In a table where they sometimes do
    (a measured one), the policy still fits, and one step less would not; but the loop might have stopped earlier.

    Args:
      policy: int32 [..., L, 2]; clipped into the bounds first.
      table: costs, each [L, 8, 8]; seconds, joules, bytes.
      bounds: fewest and most bits; pinned entries stay.
      budget: the limits.

    Returns:
      The lowered policy, whether it fits, and its cost, leading axes as the policy's. A policy that does not fit even
      at `bounds.low` comes back as `bounds.low` with `feasible` false.

    Raises:
      ValueError: the policy has another number of layers than the table.

    >>> from haqjax.policy import bounds as make_bounds
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits[None, :], (2, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> project(jnp.full((2, 2), 8), table, make_bounds(2, pinned={}), budget(table, latency_s=113.0)).policy.tolist()
    [[8, 8], [7, 7]]
    """
    check_shape(table, policy)
    low, high = (jnp.broadcast_to(bound, policy.shape) for bound in bounds)
    start = jnp.clip(policy, low, high)
    room = start - low
    turn = jnp.broadcast_to(_turns(len(table)), policy.shape)
    sweep = 2 * len(table)
    last = sweep * (WIDTHS - 1)  # after so many steps everything is at its lowest

    def lower(steps: Int[Array, "*n"]) -> Int[Array, "*n L 2"]:
        # An entry's turn comes once a sweep; its bits fall by as many turns as there were, as far as there is room.
        sweeps, rest = steps[..., None, None] // sweep, steps[..., None, None] % sweep
        return start - jnp.minimum(room, sweeps + (turn < rest))

    def halve(_: int, span: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = span
        middle = (least + most) // 2
        enough = fits(price(table, lower(middle)), budget)
        return jnp.where(enough, least, middle + 1), jnp.where(enough, middle, most)

    span = (jnp.zeros(policy.shape[:-2], jnp.int32), jnp.full(policy.shape[:-2], last, jnp.int32))
    _, steps = jax.lax.fori_loop(0, math.ceil(math.log2(last + 1)), halve, span)
    lowered = lower(steps)
    cost = price(table, lowered)
    return Projection(lowered, fits(cost, budget), cost)


def best_uniform(table: CostTable, bounds: Bounds, budget: Budget) -> Projection:
    """The policy with the most bits that are the same everywhere, within the budget; pinned layers keep theirs.

    Returns:
      The policy [L, 2], its cost, and whether it fits. Where none fits, the lowest one with `feasible` false.

    >>> from haqjax.policy import bounds as make_bounds
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits[None, :], (2, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> best_uniform(table, make_bounds(2, pinned={}), budget(table, latency=0.6)).policy.tolist()
    [[6, 6], [6, 6]]
    """
    policies = jax.vmap(uniform, in_axes=(0, None))(jnp.arange(WIDTHS, 0, -1), bounds)
    cost = price(table, policies)
    feasible = fits(cost, budget)
    best = jnp.where(feasible.any(), jnp.argmax(feasible), WIDTHS - 1)
    return jax.tree.map(lambda x: x[best], Projection(policies, feasible, cost))


def _turns(count: int) -> Int[np.ndarray, "L 2"]:
    """When each entry's turn comes within a sweep: last layer first, activations before weights."""
    layer = np.arange(count)[::-1]
    turns = np.stack([2 * layer, 2 * layer], axis=-1)
    turns[:, WEIGHT] += 1
    return turns


def _limit(name: str, fraction: float | None, absolute: float | None, full: float) -> float:
    if fraction is not None and absolute is not None:
        raise ValueError(f"{name} budget given twice, as the fraction {fraction} and as {absolute}: give one of them")
    value, unit = (absolute, 1.0) if absolute is not None else (fraction, full)
    if value is None:
        return math.inf
    if not value > 0:
        raise ValueError(f"{name} budget {value} is not above zero")
    if not math.isfinite(full):
        raise ValueError(f"{name} budget {value}: the table has no {name} (its all-8-bit {name} is {full})")
    return float(value) * unit


def _entries(values: Float[np.ndarray, "L 8 8"], policy: Int[np.ndarray, "L 2"]) -> Float[np.ndarray, "L"]:
    return np.asarray(values)[np.arange(len(policy)), policy[:, WEIGHT] - 1, policy[:, ACTIVATION] - 1]


def _sum_64(table: CostTable, policy: Int[np.ndarray, "L 2"]) -> tuple[float, ...]:
    """`price` of one policy on the host, in float64."""
    values = (table.latency, table.energy, table.size)
    return tuple(float(_entries(v, policy).sum() + extra) for v, extra in zip(values, table.fixed, strict=True))


def _holders(table: CostTable, policy: Int[np.ndarray, "L 2"], resource: str, names: Sequence[str]) -> str:
    """The three largest holders of a resource with their shares."""
    values = _entries(getattr(table, resource), policy)
    parts = [*zip(values, names, strict=True), (float(getattr(table.fixed, resource)), "what no policy changes")]
    total = sum(value for value, _ in parts)
    largest = sorted(parts, key=lambda part: -part[0])[:3]
    return ", ".join(f"{name} {value / total:.0%}".replace("%", " %") for value, name in largest)
