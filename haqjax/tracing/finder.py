"""Finder: what the walk over a program collects."""

import dataclasses
import math
from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from haqjax.tracing.jaxpr import Layer, Product, shape_of
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


# The turns of the loops around an equation that stay loops; None where the program does not tell.
Surroundings = tuple[int | None, ...]


@dataclasses.dataclass
class Finder:
    """Collects layers and products in order of execution."""

    leaves: Leaves
    layers: list[Layer] = dataclasses.field(default_factory=list)
    numbers: list[frozenset[int]] = dataclasses.field(default_factory=list)  # leaves that each weight is computed from
    products: list[Product] = dataclasses.field(default_factory=list)

    def add(
        self, equation: JaxprEqn, weight_at: int, operands: Sequence[Sources], around: Surroundings
    ) -> Layer | None:
        """Adds one use of a layer."""
        activation, weight = operands[1 - weight_at], operands[weight_at]
        whole = self.leaves[self.leaves.largest(weight)]
        every = frozenset(number for number in weight if number >= 0)
        mine = frozenset(number for number in every if self.leaves[number].root == whole.root)
        if COPIED in weight and self.leaves.count(every) == math.prod(shape_of(equation.invars[weight_at])):
            mine = every  # joined, such as the kernels of several gates
        self.numbers.append(mine)
        layer = Layer(
            index=len(self.layers),
            place=len(self.layers),
            name=whole.name,
            leaf=whole.root,
            weight_at=weight_at,
            equation=equation,
            stored=self.leaves.count(number for number in mine if self.leaves[number].root == whole.root),
            joined=tuple(sorted({self.leaves[number].root for number in mine} - {whole.root})),
            reads_input=BEHIND not in activation,
            batched=BATCHED in activation,
            product=sum(not layer.lookup for layer in self.layers),
            turns=math.prod(turns for turns in around if turns is not None),
            untold=around.count(None),
            looped=bool(around),
        )
        self.layers.append(layer)
        return layer

    def note(self, equation: JaxprEqn, around: Surroundings) -> None:
        """Notes a product that is no layer."""
        known = math.prod(turns for turns in around if turns is not None)
        self.products.append(Product(equation, known, around.count(None)))


class Weights(Finder):
    """Only collects the sources of weights."""

    def __init__(self, leaves: Leaves):
        super().__init__(leaves)
        self.sources: list[Sources] = []
        self.reads_input: dict[int, bool] = {}  # by the identity of the equation

    def add(self, equation: JaxprEqn, weight_at: int, operands: Sequence[Sources], around: Surroundings) -> None:
        """Collects the sources."""
        self.sources.append(operands[weight_at])
        self.reads_input[id(equation)] = BEHIND not in operands[1 - weight_at]
