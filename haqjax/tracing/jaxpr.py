"""The layers of a program, and the plan of where they stand in it."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

BARRIER = "optimization_barrier"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its place in the network and the equation that computes it."""

    index: int  # in order of execution
    name: str  # path of the weight in the parameters, without a last `kernel`, `weight` or `w`
    leaf: int  # the weight's place among the leaves of the parameters
    weight_at: int  # which operand of the equation is the weight: 0 or 1
    equation: JaxprEqn = dataclasses.field(repr=False)
    stored: int = 0  # elements of the leaf that are the weight's
    reads_input: bool = False  # none of its activation has come through another layer, or a lookup
    batched: bool = True  # each example has an activation of its own

    @property
    def dense(self) -> bool:
        return self.equation.primitive.name == "dot_general"

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
        return (self.equation.params["dimension_numbers"].rhs_spec[0],)


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that is no layer: of two activations, of complex numbers, or with a product of parameters."""

    equation: JaxprEqn = dataclasses.field(repr=False)
    times: int  # that it is computed: turns of the loops around it


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of a scan, each with layers of its own, in the order in which they run."""

    plans: tuple["Plan", ...]
    order: tuple[int, ...]  # entry of what is scanned over
    consts: int  # operands that are the same in every turn
    carried: int  # operands that a turn gets from the one before

    def layers(self) -> Iterator[Layer]:
        """Yields the layers of all turns."""
        for plan in self.plans:
            yield from plan.layers()


@dataclasses.dataclass(frozen=True)
class Plan:
    """One entry an equation: a layer, the plan of a call or of turns with layers, or None for one run as it is."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    steps: tuple["Layer | Plan | Turns | None", ...]
    # Of the whole program, at its outermost plan:
    products: tuple[Product, ...] = ()
    reached: tuple[bool, ...] = ()  # arguments that an output depends on
    last: tuple[int, ...] = ()  # layers that an output depends on with no other layer between

    @property
    def has_layers(self) -> bool:
        return any(True for _ in self.layers())

    def layers(self) -> Iterator[Layer]:
        for step in self.steps:
            if isinstance(step, Layer):
                yield step
            elif step is not None:
                yield from step.layers()


def shape_of(atom: Any) -> tuple[int, ...]:
    """Returns the shape of a variable of a jaxpr."""
    return atom.aval.shape


def dtype_of(atom: Any) -> np.dtype:
    """Returns the type of a variable of a jaxpr."""
    return atom.aval.dtype


def elements(shape: Sequence[int], axes: Sequence[int]) -> int:
    """Multiplies the sizes of some axes."""
    return int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
