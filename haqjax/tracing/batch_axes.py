"""Axes that count examples, and trees of options that are prefixes of other trees."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from haqjax.reading import quote


def count_examples(x: PyTree, batch_axis: PyTree) -> int:
    """Counts the examples of a batch; 1 where no leaf of it has an axis for them.

    Raises:
      ValueError: leaves that differ, or lack their axis; names them and `batch_axis`.

    >>> x = {"image": np.ones((3, 8)), "anchors": np.ones((7, 2)), "temperature": np.float32(1)}
    >>> count_examples(x, {"image": 0, "anchors": None, "temperature": None})
    3
    >>> count_examples(x, 0)
    Traceback (most recent call last):
    ValueError: the leaves of `x` count different numbers of examples: ...
    """
    counts = {}
    for path, leaf, axis in with_axes(x, batch_axis):
        sizes = np.shape(leaf)
        if axis is None:
            continue
        if not -len(sizes) <= axis < len(sizes):
            raise ValueError(f"batch_axis of {quote(path)} is {axis}, but its shape is {sizes}")
        counts[path] = sizes[axis]
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{quote(path)} {count}" for path, count in list(counts.items())[:4])
        raise ValueError(
            f"the leaves of `x` count different numbers of examples: {shown}; say which axis of each counts them, None "
            "for a leaf that all examples share, as in batch_axis={'image': 0, 'anchors': None}"
        )
    if 0 in counts.values():
        raise ValueError("the batch has no examples: pass at least one")
    return next(iter(counts.values()), 1)


def with_axes(x: PyTree, batch_axis: PyTree) -> list[tuple[str, Any, int | None]]:
    """Lists the path, the leaf and the axis of every array of a batch.

    One number is for the leaves that have such an axis; a tree of numbers is a prefix of the batch's.
    """
    axes = fill_prefix("batch_axis", batch_axis, x)
    if isinstance(batch_axis, int | np.integer):
        ranks = [np.ndim(leaf) for leaf in jax.tree.leaves(x)]
        axes = [axis if -rank <= axis < rank else None for axis, rank in zip(axes, ranks, strict=True)]
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in list_leaves(x)]
    return [(path or "x", leaf, axis) for path, leaf, axis in zip(paths, jax.tree.leaves(x), axes, strict=True)]


def list_leaves(tree: PyTree) -> list[tuple[tuple, Any]]:
    """Lists the leaves of a tree with their paths."""
    return jax.tree_util.tree_leaves_with_path(tree)


def fill_prefix(option: str, values: PyTree, tree: PyTree) -> list[Any]:
    """Lists the value of each leaf of a tree, where the tree of values is a prefix of it, or a single value."""
    none = {"is_leaf": lambda value: value is None}
    try:
        whole = jax.tree.map(lambda value, part: jax.tree.map(lambda leaf: value, part), values, tree, **none)
    except ValueError as error:
        where = str(error).splitlines()[0]
        raise ValueError(f"{option} does not fit its tree ({where}): give one value, or a prefix of the tree") from None
    return jax.tree.leaves(whole, **none)
