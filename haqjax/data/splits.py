"""Splits: parts of a labelled data set, stratified by class."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from haqjax.data.labels import check_split


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, or other inputs of a network, on the host."""

    images: Any  # float32 [n, H, W, 3]; or any array, or tree of arrays, with n examples along the first axis
    labels: Int[np.ndarray, "n"]  # int32, 0 .. classes - 1

    def __post_init__(self) -> None:
        """Raises a ValueError where the labels are no whole numbers from 0 on, one an image."""
        check_split(self.images, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Returns height, width, channels."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def pixels(self) -> int:
        """Returns the places of an example's largest input: height times width of an image."""
        return max(math.prod(leaf.shape[1:3]) for leaf in jax.tree.leaves(self.images))

    def take(self, rows: Int[np.ndarray, "m"] | slice) -> "Split":
        """Makes the split of the given rows."""
        return Split(jax.tree.map(lambda leaf: leaf[rows], self.images), self.labels[rows])

    def first(self, count: int) -> Any:
        """Returns the inputs of the first examples."""
        return self.take(slice(count)).images

    def shaped(self, count: int) -> Any:
        """Returns shapes and types of a batch of so many examples."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), self.images)


def stratified(labels: Int[np.ndarray, "n"], sizes: Sequence[int], seed: int) -> list[Int[np.ndarray, "m"]]:
    """Cuts rows into disjoint random parts, stratified: each class in proportion, to within one row.

    Each class is shuffled and placed evenly over [0, 1); the parts are consecutive pieces of that line.

    Args:
      labels: class of each row.
      sizes: rows of each part; what is left over belongs to none.
      seed: same seed, same parts.

    Returns:
      The row numbers of each part, in random order.

    Raises:
      ValueError: there are fewer rows than the parts need.

    >>> first, second = stratified(np.array([0, 0, 0, 0, 1, 1]), [3, 3], seed=0)
    >>> sorted(np.array([0, 0, 0, 0, 1, 1])[first].tolist()), sorted([*first.tolist(), *second.tolist()])
    ([0, 0, 1], [0, 1, 2, 3, 4, 5])
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"cannot cut parts of {list(sizes)} rows from {len(labels)} rows")
    random = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = (random.permutation(len(rows)) + random.uniform()) / len(rows)
    cuts = np.cumsum(sizes)
    return [random.permutation(part) for part in np.split(np.argsort(place, kind="stable"), cuts)[:-1]]
