"""Finds the layers of a program: a walk over its jaxpr that follows what is computed from parameters alone.

A *layer* is a `conv_general_dilated` or `dot_general` with one operand computed from parameters alone (the weight)
and the other from the network's input (the activation). The walk yields a plan as nested as the program: one entry
an equation, because one inner jaxpr may be called at several places with different weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

INPUT = -1  # source of everything computed from the network's input; parameters are their leaf's index
Sources = frozenset[int]
BARRIER = "optimization_barrier"

# Calls whose body may be run in place of the call, and the parameter that holds the body.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its place in the network and the equation that computes it."""

    index: int  # in order of execution
    name: str  # path of the weight in the parameters, without a last `kernel`, `weight` or `w`
    leaf: int  # the weight's place among the leaves of the parameters
    weight_at: int  # which operand of the equation is the weight: 0 or 1
    equation: JaxprEqn = dataclasses.field(repr=False)

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
class Plan:
    """One entry an equation: a layer, the plan of a call that holds layers, or None for an equation run as it is."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    steps: tuple["Layer | Plan | None", ...]

    @property
    def has_layers(self) -> bool:
        return any(True for _ in self.layers())

    def layers(self) -> Iterator[Layer]:
        for step in self.steps:
            if isinstance(step, Layer):
                yield step
            elif step is not None:
                yield from step.layers()


def make_plan(closed: ClosedJaxpr, names: Sequence[str], sizes: Sequence[int], inputs: int) -> Plan:
    """Finds the layers of a program whose arguments are the leaves of the parameters, then `inputs` input leaves.

    Args:
      closed: the program.
      names: a name for each parameter leaf.
      sizes: elements of each parameter leaf; a weight computed from several is named after the largest.
      inputs: number of leaves of the network's input.
    Raises:
      ValueError: no layer; a weight of two layers; a layer inside control flow. Each names the parameter.
    """
    found: dict[int, Layer] = {}

    def add(equation: JaxprEqn, weight_at: int, sources: Sources, inside: str | None) -> Layer:
        leaf = max(sources, key=lambda i: sizes[i])
        if inside:
            raise ValueError(
                f"weight {names[leaf]!r} belongs to a layer inside `{inside}`, which runs one layer several times or "
                "not at all: write the layers one after another, so that each can have bits of its own; a network "
                "that went through `use_cpu_kernels` is hooked before that"
            )
        if leaf in found:
            raise ValueError(
                f"weight {names[leaf]!r} is used by two layers: give each layer a parameter of its own, "
                "so that each can have bits of its own"
            )
        found[leaf] = Layer(len(found), names[leaf], leaf, weight_at, equation)
        return found[leaf]

    sources = [frozenset({i}) for i in range(len(names))] + [frozenset({INPUT})] * inputs
    plan, _ = _walk(closed.jaxpr, closed.consts, sources, add, None)
    if not found:
        raise ValueError(
            "no layer found: no convolution or matrix product has one operand computed from `params` alone. "
            "Pass the weights as the first argument of `apply`, not through a closure"
        )
    return plan


def _walk(
    jaxpr: Jaxpr, consts: Sequence[Any], sources: Sequence[Sources], add: Callable[..., Layer], inside: str | None
) -> tuple[Plan, list[Sources]]:
    known = dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> Sources:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    steps: list[Layer | Plan | None] = []
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        step, outputs = _step(equation, operands, add, inside)
        steps.append(step)
        known.update(zip(equation.outvars, outputs, strict=True))
    return Plan(jaxpr, consts, tuple(steps)), [read(atom) for atom in jaxpr.outvars]


def _step(
    equation: JaxprEqn, operands: list[Sources], add: Callable[..., Layer], inside: str | None
) -> tuple[Layer | Plan | None, list[Sources]]:
    together = frozenset().union(*operands)
    everywhere = [together] * len(equation.outvars)
    weight_at = _weight_operand(equation, operands)
    if weight_at is not None:
        return add(equation, weight_at, operands[weight_at], inside), everywhere
    if equation.primitive.name in INLINED:
        body, consts = _open(equation.params[INLINED[equation.primitive.name]])
        plan, outputs = _walk(body, consts, operands, add, inside)
        # A call is opened too where some of what it gives depends on the parameters alone: it may be a weight.
        mixed = len({INPUT in output for output in outputs}) > 1
        return (plan if plan.has_layers or mixed else None), outputs
    if equation.primitive.name == BARRIER:
        return None, operands  # each output is the operand of its place
    for body, body_sources in _control_flow(equation, operands):
        _walk(*_open(body), body_sources, add, inside or equation.primitive.name)
    return None, everywhere


def _weight_operand(equation: JaxprEqn, operands: list[Sources]) -> int | None:
    name = equation.primitive.name
    candidates = {"dot_general": (0, 1), "conv_general_dilated": (1,)}.get(name, ())
    for at in candidates:
        weight, activation = operands[at], operands[1 - at]
        if weight and INPUT not in weight and INPUT in activation:
            return at
    return None


def _control_flow(equation: JaxprEqn, operands: list[Sources]) -> Iterator[tuple[Any, list[Sources]]]:
    """Yields the bodies of loops and branches with the sources of their arguments."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        yield params["jaxpr"], _fixed_point(params["jaxpr"], operands, *_scan_counts(equation))
    elif name == "while":
        in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]
        looped = _fixed_point(params["body_jaxpr"], operands[in_cond:], in_body, len(operands) - in_cond - in_body)
        yield params["cond_jaxpr"], operands[:in_cond] + looped[in_body:]
        yield params["body_jaxpr"], looped
    elif name == "cond":
        for branch in params["branches"]:
            yield branch, operands[1:]
    else:
        for body in _bodies(params.values()):
            if len(_open(body)[0].invars) == len(operands):
                yield body, operands


def _scan_counts(equation: JaxprEqn) -> tuple[int, int]:
    """Counts the constants and carried values of a scan by shapes: what is scanned over has one axis more outside.

    The parameters that hold these counts have other names in other versions of JAX.
    """
    body, _ = _open(equation.params["jaxpr"])
    scanned = sum(shape_of(a) != shape_of(b) for a, b in zip(equation.invars, body.invars, strict=True))
    carried = sum(shape_of(a) == shape_of(b) for a, b in zip(equation.outvars, body.outvars, strict=True))
    return len(equation.invars) - carried - scanned, carried


def _fixed_point(body: Any, operands: list[Sources], start: int, count: int) -> list[Sources]:
    """Finds the sources of a loop body's arguments after any number of turns: each turn adds to what is carried."""

    def ignore(*layer: Any) -> Any:
        return None

    _, outputs = _walk(*_open(body), operands, ignore, None)
    carried = [old | new for old, new in zip(operands[start : start + count], outputs[:count], strict=True)]
    grown = [*operands[:start], *carried, *operands[start + count :]]
    return operands if grown == operands else _fixed_point(body, grown, start, count)


def _bodies(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _bodies(value)


def _open(body: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())


def shape_of(atom: Any) -> tuple[int, ...]:
    """Returns the shape of a variable of a jaxpr."""
    return atom.aval.shape


def dtype_of(atom: Any) -> np.dtype:
    """Returns the type of a variable of a jaxpr."""
    return atom.aval.dtype


def elements(shape: Sequence[int], axes: Sequence[int]) -> int:
    """Multiplies the sizes of some axes."""
    return int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
