"""The layers of a program, and the plan of where they stand in it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

BARRIER = "optimization_barrier"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One use of a layer: its place in the network and the equation that computes it.

    A weight that is read at several places, or in several turns of a loop, is one layer of several uses.
    """

    index: int  # of the layer: in order of execution, by its first use
    name: str  # path of the weight in the parameters, without a last `kernel`, `weight` or `w`
    leaf: int  # the weight's place among the leaves of the parameters
    weight_at: int  # which operand of the equation is the weight: 0 or 1
    equation: JaxprEqn = dataclasses.field(repr=False)
    stored: int = 0  # elements of the leaf that are the weight's
    joined: tuple[int, ...] = ()  # other leaves that the weight is put together of, all their elements
    reads_input: bool = False  # none of its activation has come through another layer, or a lookup
    batched: bool = True  # each example has an activation of its own
    place: int = 0  # of the use: in order of execution
    use: int = 0  # of the layer's uses, in order of execution
    product: int = 0  # of the uses that are no lookups, in order of execution
    turns: int = 1  # of the loops around it, but for a `while`
    untold: int = 0  # loops around it whose turns the program does not tell: each `while`
    looped: bool = False  # in a loop that stays one
    # How the axes of the weight lie in that of the first use; None: alike.
    order: tuple[int, ...] | None = None
    # Another use of the weight sums over other axes: a scale for each output channel of one is none of the other's.
    one_scale: bool = False

    @property
    def dense(self) -> bool:
        return self.equation.primitive.name == "dot_general"

    @property
    def lookup(self) -> bool:
        """Whether the weight is a table of which entries are picked; the activation holds their numbers."""
        return self.equation.primitive.name == "gather"

    @property
    def activation_shape(self) -> tuple[int, ...]:
        return shape_of(self.equation.invars[1 - self.weight_at])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return shape_of(self.equation.invars[self.weight_at])

    @property
    def dot_axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Contracted and batched axes of the weight of a `dot_general`."""
        contract, batch = self.equation.params["dimension_numbers"]
        return tuple(contract[self.weight_at]), tuple(batch[self.weight_at])

    @property
    def activation_axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Contracted and batched axes of the activation of a `dot_general`, in the order of the weight's."""
        contract, batch = self.equation.params["dimension_numbers"]
        return tuple(contract[1 - self.weight_at]), tuple(batch[1 - self.weight_at])

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Axes of the weight that count output channels; over the others one output is summed."""
        if self.dense:
            contract, _ = self.dot_axes
            return tuple(axis for axis in range(len(self.weight_shape)) if axis not in contract)
        if self.lookup:  # an entry is what is stored with one scale
            numbers, sizes = self.equation.params["dimension_numbers"], self.equation.params["slice_sizes"]
            return tuple(axis for axis in numbers.start_index_map if sizes[axis] < self.weight_shape[axis])
        return (self.equation.params["dimension_numbers"].rhs_spec[0],)

    def arrange(self, weight: Any) -> Any:
        """Returns what is laid out as the weight of the first use as this one has it."""
        return weight if self.order is None else weight.transpose(self.order)

    def arrange_channels(self, values: Any) -> Any:
        """Returns one value for each output channel of the first use, flat, as this one has them."""
        if self.one_scale:
            return values[:1].repeat(elements(self.weight_shape, self.channel_axes))
        if self.order is None:
            return values
        mine = [self.order[axis] for axis in sorted(self.channel_axes)]
        sizes = {self.order[axis]: self.weight_shape[axis] for axis in self.channel_axes}
        first = sorted(mine)
        return (
            values.reshape([sizes[axis] for axis in first]).transpose([first.index(axis) for axis in mine]).reshape(-1)
        )


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that is no layer: of two activations, of complex numbers, or with a product of parameters."""

    equation: JaxprEqn = dataclasses.field(repr=False)
    turns: int  # as of a `Layer`
    untold: int = 0


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of a scan, each with layers of its own, in the order in which they run."""

    plans: tuple["Plan", ...]
    order: tuple[int, ...]  # entry of what is scanned over
    consts: int  # operands that are the same in every turn
    carried: int  # operands that a turn gets from the one before


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan or a while whose layers are the same in every turn: it stays a loop."""

    plans: tuple["Plan"]  # of the body
    condition: int  # operands that the condition of a while reads before all others
    consts: int
    carried: int


@dataclasses.dataclass(frozen=True)
class Branches:
    """The branches of a `cond` or `switch`, with layers in some of them."""

    plans: tuple["Plan", ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One entry an equation: a layer, the plan of a call, of loops or branches with layers, or None: run as it is."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    steps: tuple["Step", ...]
    # Of the whole program, at its outermost plan:
    products: tuple[Product, ...] = ()
    reached: tuple[bool, ...] = ()  # arguments that an output depends on
    last: tuple[int, ...] = ()  # layers that an output depends on with no other layer between

    @property
    def has_layers(self) -> bool:
        return any(True for _ in self.uses())

    def uses(self) -> Iterator[Layer]:
        """Yields the uses of layers in order of execution; each turn of a loop that stays one is the same use."""
        for step in self.steps:
            if isinstance(step, Layer):
                yield step
            elif isinstance(step, Plan):
                yield from step.uses()
            elif step is not None:
                for plan in step.plans:
                    yield from plan.uses()

    def replace_layers(self, change: Callable[[Layer], Layer]) -> "Plan":
        """Returns the same plan with other records of its layers."""

        def replace(step: "Step") -> "Step":
            if isinstance(step, Layer):
                return change(step)
            if isinstance(step, Plan):
                return step.replace_layers(change)
            if step is None:
                return None
            plans: Any = tuple(plan.replace_layers(change) for plan in step.plans)
            return dataclasses.replace(step, plans=plans)

        return dataclasses.replace(self, steps=tuple(map(replace, self.steps)))


Step = Layer | Plan | Turns | Loop | Branches | None


def shape_of(atom: Any) -> tuple[int, ...]:
    """Returns the shape of a variable of a jaxpr."""
    return atom.aval.shape


def dtype_of(atom: Any) -> np.dtype:
    """Returns the type of a variable of a jaxpr."""
    return atom.aval.dtype


def elements(shape: Sequence[int], axes: Sequence[int]) -> int:
    """Multiplies the sizes of some axes."""
    return int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
