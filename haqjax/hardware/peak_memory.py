"""Lifetimes of the tensors in a network's program, which its peak memory follows from."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Bool, PyTree

from haqjax.tracing.hooks import trace
from haqjax.tracing.jaxpr import Branches, Layer, Loop, Plan, Turns, shape_of
from haqjax.types import Lifetimes

# Another view of the same numbers: no memory of its own.
VIEWS = {"reshape", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p", "stop_gradient", "rev"}
PRODUCTS = {"dot_general", "conv_general_dilated"}


class _Step(NamedTuple):
    """One equation; tensors go by their place in `Lifetimes.elements`."""

    reads: frozenset[int]
    writes: tuple[int, ...]
    layer: int | None
    product: bool


def find_lifetimes(apply: Callable[..., PyTree], params: PyTree, x: PyTree) -> Lifetimes:
    """Reads the lifetimes off a network's jaxpr; nothing is computed.

    Layers run one after another in the order of the program. What stands between them (activation functions,
    normalisation, sums) is computed on the way and takes no memory of its own.

    Args:
      apply: pure function `apply(params, x)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      x: an example batch or its `ShapeDtypeStruct`s; memory is for this batch.

    Returns:
      The lifetimes, for `cost_table` or `haqjax.policies.cost.peak_memory`.

    Raises:
      ValueError: as `haqjax.layers`.

    >>> from haqjax.policies.cost import peak_memory
    >>> apply = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> lifetimes = find_lifetimes(apply, {"a": np.ones((6, 100)), "b": np.ones((100, 2))}, np.ones((1, 6)))
    >>> float(peak_memory(lifetimes, np.array([[8, 8], [8, 4]])))  # 100 numbers of 4 bits in, 2 of 32 bits out
    58.0
    """
    plan = trace(apply, params, (x,)).plan
    given = len(plan.jaxpr.invars) - len(jax.tree.leaves(x))  # arguments that are parameters
    elements: list[int] = []
    steps: list[_Step] = []
    arguments = [None] * given + [_add(elements, var) for var in plan.jaxpr.invars[given:]]
    outputs = _walk(plan, arguments, elements, steps)
    steps.append(_Step(_tensors(outputs), (), None, product=False))
    layers = len({use.index for use in plan.uses()})
    return Lifetimes(np.array(elements, float), _alive(steps, len(elements)), _readers(steps, len(elements), layers))


def _add(elements: list[int], var: Any) -> int:
    elements.append(math.prod(shape_of(var)))
    return len(elements) - 1


def _walk(plan: Plan, arguments: list[int | None], elements: list[int], steps: list[_Step]) -> list[int | None]:
    """Lists the steps of a program; None stands for what is computed from parameters alone."""
    known = dict(zip(plan.jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> int | None:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation, step in zip(plan.jaxpr.eqns, plan.steps, strict=True):
        operands = [read(atom) for atom in equation.invars]
        if isinstance(step, Plan):
            outputs = _walk(step, operands, elements, steps)
        elif isinstance(step, Turns | Loop):
            skipped = step.condition if isinstance(step, Loop) else 0
            outputs = _walk_turns(step, equation, operands[skipped:], elements, steps)
        elif isinstance(step, Branches):
            outputs = _walk_branches(step, equation, operands[1:], elements, steps)
        elif not _tensors(operands) or equation.primitive.name in VIEWS:
            outputs = [next(iter(_tensors(operands)), None)] * len(equation.outvars)
        else:
            written = tuple(_add(elements, var) for var in equation.outvars)
            layer = step.index if isinstance(step, Layer) and not step.lookup else None
            steps.append(_Step(_tensors(operands), written, layer, equation.primitive.name in PRODUCTS))
            outputs = list(written)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars]


def _walk_turns(
    turns: Turns | Loop, equation: JaxprEqn, operands: list[int | None], elements: list[int], steps: list[_Step]
) -> list[int | None]:
    """Lists the steps of a loop's turns, one where all are alike; what they put out is written where it is stacked."""
    first = turns.consts + turns.carried
    carry, rows = operands[turns.consts : first], []
    looped = isinstance(turns, Loop)
    # What a loop puts out in all turns but the last is there from its first on.
    before = [_add_earlier(elements, var) if looped else None for var in equation.outvars[turns.carried :]]
    steps += [_Step(frozenset(), (tensor,), None, product=False) for tensor in before if tensor is not None]
    # A second turn carries what the first leaves, as all further ones do.
    for plan in turns.plans * (2 if looped and equation.params.get("length", 2) > 1 else 1):
        values = _walk(plan, [*operands[: turns.consts], *carry, *operands[first:]], elements, steps)
        carry = values[: turns.carried]
        rows.append(values[turns.carried :])
    if looped:  # what every turn reads is kept to the end
        kept = _tensors([*operands[: turns.consts], *operands[first:]])
        steps.append(_Step(kept, (), None, product=False))
        rows = rows[-1:]
    outputs: list[int | None] = list(carry)
    columns = zip(equation.outvars[turns.carried :], before, zip(*rows, strict=True), strict=True)
    for var, earlier, column in columns:
        read = _tensors([*column, earlier])
        outputs.append(_add(elements, var) if read else None)
        if read:
            steps.append(_Step(read, (len(elements) - 1,), None, product=False))
    return outputs


def _add_earlier(elements: list[int], var: Any) -> int | None:
    length, *_ = shape_of(var)
    if length < 2:
        return None
    elements.append(math.prod(shape_of(var)) // length * (length - 1))
    return len(elements) - 1


def _walk_branches(
    branches: Branches, equation: JaxprEqn, operands: list[int | None], elements: list[int], steps: list[_Step]
) -> list[int | None]:
    """Lists the steps of all branches, one after another; what they put out is written anew: it may be any one's."""
    ends = [_walk(plan, operands, elements, steps) for plan in branches.plans]
    outputs: list[int | None] = []
    for var, column in zip(equation.outvars, zip(*ends, strict=True), strict=True):
        outputs.append(_add(elements, var))
        steps.append(_Step(_tensors(column), (len(elements) - 1,), None, product=False))
    return outputs


def _tensors(values: Sequence[int | None]) -> frozenset[int]:
    return frozenset(value for value in values if value is not None)


def _alive(steps: list[_Step], count: int) -> Bool[np.ndarray, "E V"]:
    born, last = np.full(count, -1), np.full(count, -1)
    for time, step in enumerate(steps):
        for tensor in step.writes:
            born[tensor] = last[tensor] = time
        for tensor in step.reads:
            last[tensor] = time
    times = np.array([time for time, step in enumerate(steps) if step.product])[:, None]
    return (born[None] <= times) & (times <= last[None])


def _readers(steps: list[_Step], count: int, layers: int) -> Bool[np.ndarray, "V L"]:
    near = np.zeros((count, layers), bool)  # layers that read a tensor, perhaps through functions of it alone
    far = np.zeros((count, layers), bool)  # layers that read it through sums and products with others
    for step in reversed(steps):
        results = np.array(step.writes, int)
        for tensor in step.reads:
            if step.layer is not None:
                near[tensor, step.layer] = True
            elif len(step.reads) == 1:
                near[tensor] |= near[results].any(axis=0)
                far[tensor] |= far[results].any(axis=0)
            else:
                found = near[results].any(axis=0)
                far[tensor] |= found if found.any() else far[results].any(axis=0)
    return np.where(near.any(axis=1, keepdims=True), near, far)
