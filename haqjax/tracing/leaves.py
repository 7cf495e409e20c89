"""Leaves of the parameters, and slices that a network takes of them: what tells two weights apart."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Cut(NamedTuple):
    """A slice along one axis of what it is taken of."""

    axis: int  # -1 where it is not known which axis of the leaf that is
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of the parameters, or a slice of one."""

    name: str
    size: int  # elements
    root: int  # place of the leaf among those of the parameters
    cuts: tuple[Cut, ...] = ()  # from the outermost to the innermost


class Leaves:
    """All leaves by number: those of the parameters first, then their slices as they are met.

    >>> leaves = Leaves(["w"], [24])
    >>> first, second = leaves.cut(0, Cut(0, 0, 1), 3), leaves.cut(0, Cut(0, 1, 2), 3)
    >>> leaves[first].name, leaves[second].size, leaves.overlap(first, second), leaves.overlap(first, 0)
    ('w[0]', 8, False, True)
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int]):
        self._leaves = [Leaf(name, size, at) for at, (name, size) in enumerate(zip(names, sizes, strict=True))]
        self._numbers: dict[tuple[int, Cut], int] = {}

    def __getitem__(self, number: int) -> Leaf:
        return self._leaves[number]

    def largest(self, numbers: Iterable[int]) -> int:
        """Finds the leaf of the most elements, of several the first; what is below 0 is none."""
        return max(sorted(number for number in numbers if number >= 0), key=lambda number: self[number].size)

    def count(self, numbers: Iterable[int]) -> int:
        """Counts the elements of some leaves together."""
        return sum(self[number].size for number in numbers if number >= 0)

    def cut(self, number: int, cut: Cut, extent: int) -> int:
        """Numbers a slice; `extent` is the size of the axis."""
        whole = self[number]
        if cut.stop - cut.start == extent:
            return number
        if (number, cut) not in self._numbers:
            self._numbers[number, cut] = len(self._leaves)
            size = whole.size // extent * (cut.stop - cut.start)
            self._leaves.append(Leaf(whole.name + _write(cut), size, whole.root, (*whole.cuts, cut)))
        return self._numbers[number, cut]

    def within(self, number: int, whole: int) -> bool:
        """Tells whether a leaf is another one, or a slice of it."""
        a, b = self[number], self[whole]
        return a.root == b.root and a.cuts[: len(b.cuts)] == b.cuts

    def overlap(self, a: int, b: int) -> bool:
        """Tells whether two leaves may have numbers in common."""
        if self[a].root != self[b].root:
            return False
        for mine, other in zip(self[a].cuts, self[b].cuts, strict=False):
            if mine != other:
                return mine.axis != other.axis or (mine.start < other.stop and other.start < mine.stop)
        return True


def _write(cut: Cut) -> str:
    if cut.axis <= 0 and cut.stop == cut.start + 1:
        return f"[{cut.start}]"
    return f"[{':, ' * cut.axis}{cut.start}:{cut.stop}]"
