"""Finder: what the walk over a program collects, and the checks that each weight belongs to one layer."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from haqjax.tracing.jaxpr import Layer, Product
from haqjax.tracing.leaves import Leaves

# Sources of a value: leaves by number, and these.
INPUT = -1  # the network's input
PRODUCT = -2  # a product of parameters, whose numbers are stored nowhere
BEHIND = -3  # a layer, or a lookup in a learned table, through which some of the input has come
MOVED = -4  # anything but a slice of a leaf as it is: places in it are not places in the leaf
COPIED = -5  # a leaf several times over, or parts of it: its numbers are not stored as often as they are here
BATCHED = -6  # an input of which each example has its own
LATEST = -7  # and below: the layers that a value comes from with no other layer between, LATEST - index
Sources = frozenset[int]


class Loop(NamedTuple):
    """A loop or a branch around an equation that is not unrolled."""

    name: str
    turns: int  # 1 where they are not known


Loops = tuple[Loop, ...]  # from the outermost to the innermost


@dataclasses.dataclass
class Finder:
    """Collects layers and products in order of execution."""

    leaves: Leaves
    layers: list[Layer] = dataclasses.field(default_factory=list)
    used: set[int] = dataclasses.field(default_factory=set)  # leaves that layers have their weights from
    products: list[Product] = dataclasses.field(default_factory=list)

    def add(self, equation: JaxprEqn, weight_at: int, operands: Sequence[Sources], loops: Loops) -> Layer | None:
        """Adds a layer.

        Raises:
          ValueError: its weight is another layer's, too, or it stands in a loop or a branch.
        """
        activation, weight = operands[1 - weight_at], operands[weight_at]
        whole = self.leaves[self.leaves.largest(weight)]
        if loops:
            raise ValueError(
                f"weight {whole.name!r} belongs to a layer inside `{loops[0].name}`, which runs one layer "
                "several times or not at all: write the layers one after another, or stack their weights along the "
                "first axis and scan over it, so that each can have bits of its own; a network that went through "
                "`use_cpu_kernels` is hooked before that"
            )
        mine = {number for number in weight if number >= 0 and self.leaves[number].root == whole.root}
        if any(self.leaves.overlap(number, other) for number in mine for other in self.used):
            raise ValueError(
                f"weight {whole.name!r} is used by two layers: give each layer a parameter of its own, "
                "so that each can have bits of its own"
            )
        self.used |= mine
        stored = self.leaves.count(mine)
        marks = dict(reads_input=BEHIND not in activation, batched=BATCHED in activation)
        self.layers.append(Layer(len(self.layers), whole.name, whole.root, weight_at, equation, stored, **marks))
        return self.layers[-1]

    def note(self, equation: JaxprEqn, loops: Loops) -> None:
        """Notes a product that is no layer."""
        self.products.append(Product(equation, math.prod(loop.turns for loop in loops)))


class Weights(Finder):
    """Only collects the sources of weights; None for one inside a loop that is not unrolled."""

    def __init__(self, leaves: Leaves):
        super().__init__(leaves)
        self.sources: list[Sources | None] = []

    def add(self, equation: JaxprEqn, weight_at: int, operands: Sequence[Sources], loops: Loops) -> None:
        """Collects the sources."""
        self.sources.append(None if loops else operands[weight_at])
