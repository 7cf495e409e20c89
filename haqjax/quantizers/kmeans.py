"""k-means of least squared error for many tensors at every width, by dynamic programming on sorted numbers.

On a line a cluster is an interval of the sorted values, so a clustering is a row of boundaries, and what an interval
costs follows from running sums at its two ends. Boundaries are found by dynamic programming over windows of places
around each of them: wide and coarse first, which moves shared values from one end of the line to the other; then ever
finer, down to single values. Running sums are 64-bit: call these functions where `jax.enable_x64` is on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from haqjax.types import WIDTHS

CLUSTERS = 2**WIDTHS
WINDOW = 4  # clusters on either side of a boundary in a window of full scale
STAGES = 4, 16  # places in a window for each cluster's length: a rough search, then a thorough one from what it found
FINER = 0.25  # what a window shrinks by when nothing in it is better


class Extent(NamedTuple):
    """A layer's place among the sorted values of all."""

    begin: Int[Array, "*L"]
    size: Int[Array, "*L"]  # distinct values


class Sorted(NamedTuple):
    """Every layer's distinct values in rising order, layer after layer, each after an entry of zeros.

    Entry `begin + i` of a layer holds its `i`-th value, counted from one, and sums over its first `i` values.
    """

    value: Float[Array, "T"]
    members: Float[Array, "T"]  # weights with these values
    total: Float[Array, "T"]
    squares: Float[Array, "T"]
    companded: Float[Array, "T"]  # grows evenly from level to level of a fine quantiser
    extent: Extent


class Search(NamedTuple):
    """State of a search for boundaries."""

    bounds: Int[Array, "257"]  # cluster `c` holds the values after `bounds[c]` up to `bounds[c + 1]`
    error: Float[Array, ""]
    scale: Float[Array, ""]  # of the windows; 0 at the end


def flatten(weights: tuple[Array, ...]) -> tuple[Float[Array, "T"], Int[Array, "T"]]:
    """Joins all tensors' values in one vector, minus infinity before each tensor; also returns each value's tensor."""
    head = jnp.full(1, -jnp.inf, jnp.float32)
    flat = jnp.concatenate([part for weight in weights for part in (head, weight.reshape(-1).astype(jnp.float32))])
    return flat, jnp.cumsum(jnp.isneginf(flat), dtype=jnp.int32) - 1


def sort_values(weights: tuple[Array, ...]) -> Sorted:
    """Sorts each tensor's values, which are finite, and sums them up.

    The best density of many levels is the third root of that of the values (Panter & Dite 1951), which is here the
    times a value occurs over its gap to the one before: a step of `companded` is `gap * (times / gap)**(1/3)`.
    """
    flat, layer = flatten(weights)
    layer, value = jax.lax.sort((layer, flat), num_keys=2)
    new = value != jnp.roll(value, 1)
    (first,) = jnp.nonzero(new, size=len(value), fill_value=len(value))
    times = jnp.diff(first, append=len(value))
    value, layer = value.at[first].get(mode="clip"), layer.at[first].get(mode="clip")
    size = jnp.bincount(jnp.where(times > 0, layer, len(weights)), length=len(weights)).astype(jnp.int32) - 1
    begin = jnp.cumsum(size + 1, dtype=jnp.int32) - size - 1
    place = jnp.arange(len(value), dtype=jnp.int32) - begin[layer]
    exact, times = (jnp.where(place == 0, 0, a).astype(jnp.float64) for a in (value, times))
    gap = jnp.where(place > 1, exact - jnp.roll(exact, 1), 0)
    terms = jnp.stack([times, times * exact, times * exact**2, jnp.cbrt(times * gap**2)])
    longest = max(weight.size for weight in weights)
    members, total, squares, companded = _running_sums(terms, place, longest)
    return Sorted(value, members, total, squares, companded, Extent(begin, size))


def shared_values(ordered: Sorted, together: int | None = None) -> Float[Array, "8 L 256"]:
    """Finds each cluster's mean at every width, in rising order; infinity where a row has no more clusters.

    Args:
      together: layers that are solved side by side; one after another, each in its own time, where None.
    """

    def at_width(bits: Array) -> Array:
        solve = functools.partial(_solve, ordered, jnp.left_shift(1, bits))
        return _means(ordered, jax.lax.map(solve, ordered.extent, batch_size=together))

    return jax.lax.map(at_width, jnp.arange(1, WIDTHS + 1, dtype=jnp.int32))


def _running_sums(terms: Float[Array, "n T"], place: Int[Array, "T"], longest: int) -> Float[Array, "n T"]:
    """Sums from place 0 of each layer on, by doubling, so that a large layer costs no other its digits."""

    def double(n: Array, sums: Array) -> Array:
        shift = jnp.left_shift(1, n)
        return sums + jnp.where((place >= shift)[None], jnp.roll(sums, shift, axis=1), 0)

    return jax.lax.fori_loop(0, longest.bit_length(), double, terms)


def _solve(ordered: Sorted, clusters: Array, extent: Extent) -> Int[Array, "257"]:
    """Finds the boundaries of one layer's clusters; with a cluster for each value there is nothing to search."""
    solved = extent.size <= clusters
    order = jnp.arange(CLUSTERS + 1, dtype=jnp.int32)
    bounds = jnp.where(solved, jnp.minimum(order, extent.size), _even(ordered, extent, clusters, order))
    for places in STAGES:
        look = functools.partial(_look, ordered, extent, clusters, places)
        start = Search(bounds, jnp.array(jnp.inf), jnp.where(solved, 0.0, 1.0))
        bounds = jax.lax.while_loop(lambda search: search.scale > 0, look, start).bounds
    return bounds


def _even(ordered: Sorted, extent: Extent, clusters: Array, order: Int[Array, "257"]) -> Int[Array, "257"]:
    """Finds boundaries that give every cluster the same part of `companded`, by bisection."""
    goal = order / clusters * ordered.companded[extent.begin + extent.size]

    def bisect(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high + 1) // 2
        within = ordered.companded[extent.begin + middle] <= goal
        return jnp.where(within, middle, low), jnp.where(within, high, middle - 1)

    ends = jnp.zeros_like(order), jnp.full_like(order, extent.size)
    bounds, _ = jax.lax.fori_loop(0, len(ordered.value).bit_length(), bisect, ends)
    return jnp.where(order == 0, 0, jnp.where(order >= clusters, extent.size, bounds))


def _look(ordered: Sorted, extent: Extent, clusters: Array, places: int, search: Search) -> Search:
    """Searches one round: keeps the scale while that helps, and ends where windows of single values hold no better."""
    rows = jnp.clip(_windows(search.bounds, search.scale, clusters, places), 0, extent.size)
    bounds, error = _best_path(ordered, extent, clusters, rows)
    better = error < search.error
    single = search.scale * jnp.max(jnp.diff(search.bounds)) <= places
    scale = jnp.where(better, search.scale, jnp.where(single, 0, FINER * search.scale))
    return Search(jnp.where(better, bounds, search.bounds), jnp.minimum(error, search.error), scale)


def _windows(bounds: Array, scale: Array, clusters: Array, places: int) -> Int[Array, "257 W"]:
    """Lists places to try for each boundary, itself in the middle, counted in lengths of the clusters around it.

    At full scale other boundaries are among the places, so all between two clusters can move up by one.
    """
    step, order = jnp.arange(-WINDOW * places, WINDOW * places + 1)[None], jnp.arange(CLUSTERS + 1)[:, None]
    at = jnp.clip(order + scale * step / places, 0, CLUSTERS)
    left = at.astype(jnp.int32)
    near, far = bounds[left], bounds[jnp.minimum(left + 1, CLUSTERS)]
    moved = near + jnp.round((at - left) * (far - near)).astype(jnp.int32)
    single = bounds[:, None] + step.astype(jnp.int32)
    rows = jnp.where(step < 0, jnp.minimum(moved, single), jnp.maximum(moved, single))
    return jnp.where((order > 0) & (order < clusters) & (step != 0), rows, bounds[:, None])


def _best_path(
    ordered: Sorted, extent: Extent, clusters: Array, rows: Int[Array, "257 W"]
) -> tuple[Int[Array, "257"], Float[Array, ""]]:
    """Finds the boundaries of least squared error with one place from each row; also returns that error."""
    entry, middle = extent.begin + rows, rows.shape[1] // 2
    points = jnp.stack([ordered.members[entry], ordered.total[entry], ordered.squares[entry]], axis=1)

    def forward(c: Array, errors: Array) -> Array:
        ways = errors[c][:, None] + _squared_error(points[c + 1][:, None, :] - points[c][:, :, None])
        return errors.at[c + 1].set(jnp.min(ways, axis=0))

    def backward(back: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        place, bounds = state
        c = clusters - 1 - back
        ways = errors[c] + _squared_error(points[c + 1][:, place][:, None] - points[c])
        place = jnp.argmin(ways)  # found again along one way back, which is cheaper than to remember it for all
        return place, bounds.at[c].set(rows[c, place])

    errors = jax.lax.fori_loop(0, clusters, forward, jnp.zeros(rows.shape))
    _, bounds = jax.lax.fori_loop(0, clusters, backward, (jnp.array(middle), rows[:, middle]))
    return bounds, errors[clusters, middle]


def _squared_error(sums: Float[Array, "3 *n"]) -> Float[Array, "*n"]:
    """Computes the squared error of a cluster about its mean from its count, sum and sum of squares."""
    count, total, squares = sums
    return jnp.where(count < 0, jnp.inf, squares - total**2 / jnp.maximum(count, 0.5))


def _means(ordered: Sorted, bounds: Int[Array, "L 257"]) -> Float[Array, "L 256"]:
    entry = ordered.extent.begin[:, None] + bounds
    low, high = entry[:, :-1], entry[:, 1:]
    count, total = ordered.members[high] - ordered.members[low], ordered.total[high] - ordered.total[low]
    # Within its members, so that the mean of one value is that value to the last bit.
    mean = jnp.clip(total / jnp.maximum(count, 1), ordered.value[low + 1], ordered.value[high])
    return jnp.sort(jnp.where(count > 0, mean, jnp.inf).astype(jnp.float32))
