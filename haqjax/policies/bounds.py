"""The bits that each entry of a policy may have."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from haqjax.types import ACTIVATION, WIDTHS, Bounds, LayerTable


def find_outer(layers: LayerTable | int) -> tuple[int, ...]:
    """Finds the layers that keep 8 bits by default (Wang et al. 2019, section 4): the first and the last of each path.

    They are those that read the input and those that write an output; by place where only the number is known.

    >>> find_outer(3)
    (0, 2)
    """
    if isinstance(layers, int) or layers.outer is None:
        count = layers if isinstance(layers, int) else len(layers)
        return tuple(sorted({0, count - 1}))
    return tuple(np.flatnonzero(layers.outer).tolist())


def make_bounds(
    layers: LayerTable | int,
    low: int | tuple[int, int] = 2,
    high: int | tuple[int, int] = WIDTHS,
    pinned: Mapping[int, int] | None = None,
    allowed: Bool[np.ndarray, "L 2 8"] | None = None,
    tied: Sequence[Sequence[int]] = (),
) -> Bounds:
    """Makes the bounds of the bits that a search may give each layer.

    Args:
      layers: the network's layers, or how many there are.
      low: fewest bits, for weights and activations alike or as a pair (weights, activations). Weights of one bit
        need a binary code: symmetric linear quantisation has no level left but zero.
      high: most bits, in the same form. A pair such as `low=(2, 8), high=(8, 8)` searches the weights only.
      pinned: bits of the layers that no search may change, by index (negative from the end); by default 8 for those of
        `find_outer`, `{}` for none.
      allowed: which widths there are at all, by `bits - 1`: a machine may compute at 2, 4 and 8 bits only. A layer
        that is pinned by default to a width that it does not have gets its widest.
      tied: groups of layers that must have the same bits, such as those whose outputs are added.

    Returns:
      Bounds, each int32 [L, 2]; a pinned entry has `low == high`.

    Raises:
      ValueError: a width outside 1..8, `low` above `high`, an index that is no layer, or a layer that no width is
        left for.

    >>> make_bounds(3, low=2, high=6).high.tolist()
    [[8, 8], [6, 6], [8, 8]]
    """
    count = layers if isinstance(layers, int) else len(layers)
    least, most = (np.empty((count, 2), np.int32) for _ in range(2))
    least[:], most[:] = low, high
    outer = find_outer(layers)
    for index, bits in (dict.fromkeys(outer, WIDTHS) if pinned is None else pinned).items():
        _check_layer("pinned", index, count)
        least[index] = most[index] = bits
    if not isinstance(layers, int) and layers.lookup is not None:  # what is picked has no bits of its own
        least[layers.lookup, ACTIVATION] = most[layers.lookup, ACTIVATION] = WIDTHS
    if least.min() < 1 or most.max() > WIDTHS or np.any(least > most):
        raise ValueError(f"bits must satisfy 1 <= low <= high <= {WIDTHS}, got low={low}, high={high}, pinned={pinned}")
    if allowed is None and not tied:
        return Bounds(jnp.asarray(least), jnp.asarray(most))
    there = np.ones((count, 2, WIDTHS), bool) if allowed is None else np.array(allowed, bool)
    if pinned is None:
        for index in outer:
            least[index] = most[index] = WIDTHS - there[index][:, ::-1].argmax(axis=-1)
    width = np.arange(1, WIDTHS + 1)
    return _tie(there & (least[..., None] <= width) & (width <= most[..., None]), tied)


def ladder(bounds: Bounds) -> tuple[Int[Array, "L 2 8"], Int[Array, "L 2"]]:
    """Lists the widths of each entry, fewest first, and counts them; the rest of a row repeats the last.

    >>> widths, count = ladder(make_bounds(1, low=2, high=4, pinned={}))
    >>> widths[0, 0].tolist(), int(count[0, 0])
    ([2, 3, 4, 4, 4, 4, 4, 4], 3)
    """
    width = jnp.arange(1, WIDTHS + 1).reshape((1,) * bounds.low.ndim + (-1,))
    inside = (bounds.low[..., None] <= width) & (width <= bounds.high[..., None])
    inside = inside if bounds.allowed is None else inside & bounds.allowed
    count = inside.sum(axis=-1)
    order = jnp.argsort(~inside, axis=-1, stable=True) + 1
    return jnp.where(width <= count[..., None], order, bounds.high[..., None]), count


def to_rank(policy: Int[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Counts the allowed widths below each entry's; a width between two counts as the narrower.

    >>> to_rank(jnp.asarray([[2, 8]]), make_bounds(1, low=1, pinned={})).tolist()
    [[1, 7]]
    """
    widths, count = ladder(bounds)
    below = (lead(widths, policy, 1) <= policy[..., None]).sum(axis=-1) - 1
    return jnp.clip(below, 0, lead(count, policy) - 1)


def at_rank(rank: Int[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Finds the width that has so many allowed ones below it.

    >>> at_rank(jnp.asarray([[1, 7]]), make_bounds(1, low=1, pinned={})).tolist()
    [[2, 8]]
    """
    widths = jnp.broadcast_to(lead(ladder(bounds)[0], rank, 1), (*rank.shape, WIDTHS))
    return jnp.take_along_axis(widths, rank[..., None], axis=-1)[..., 0]


def follow(policy: Int[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Gives every layer the bits of the first layer of its group.

    >>> follow(jnp.asarray([[2, 3], [4, 5]]), make_bounds(2, pinned={}, tied=[(0, 1)])).tolist()
    [[2, 3], [2, 3]]
    """
    return policy if bounds.tied is None else jnp.take(policy, bounds.tied, axis=-2)


def clip_policy(policy: Int[Array, "*n L 2"], bounds: Bounds) -> Int[Array, "*n L 2"]:
    """Clips bits to the nearest ones within the bounds, of two the fewer.

    >>> clip_policy(jnp.asarray([[1, 9]]), make_bounds(1, pinned={})).tolist()
    [[2, 8]]
    """
    if bounds.allowed is None:
        return follow(jnp.clip(policy, lead(bounds.low, policy), lead(bounds.high, policy)), bounds)
    return follow(at_rank(to_rank(policy, bounds), bounds), bounds)


def lead(values: Array, like: Array, more: int = 0) -> Array:
    """`values` with the leading axes of `like`, which lacks the last `more`; so that no rank is promoted silently."""
    return jnp.reshape(values, (1,) * (like.ndim + more - values.ndim) + values.shape)


def _tie(there: Bool[np.ndarray, "L 2 8"], groups: Sequence[Sequence[int]]) -> Bounds:
    """Bounds of the widths that every layer of a group has."""
    count = len(there)
    first = np.arange(count)
    for group in groups:
        for index in group:
            _check_layer("tied", index, count)
        members = np.array(sorted(np.arange(count)[list(group)]))
        if np.any(first[members] != members):
            raise ValueError(f"tied layers {list(group)}: one of them is in another group already; make one of both")
        first[members] = members[0]
        there[members] = there[members].all(axis=0)
    empty = ~there.any(axis=(-1))
    if empty.any():
        layer, column = np.argwhere(empty)[0]
        kind = ("weights", "activations")[column]
        raise ValueError(f"layer {layer} has no width left for its {kind}: allow more, or untie it")
    low, high = there.argmax(axis=-1) + 1, WIDTHS - there[..., ::-1].argmax(axis=-1)
    tied = jnp.asarray(first, jnp.int32) if groups else None
    return Bounds(jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32), jnp.asarray(there), tied)


def _check_layer(what: str, index: int, count: int) -> None:
    if not -count <= index < count:
        raise ValueError(f"{what} layer {index} does not exist: the network has {count} layers")
