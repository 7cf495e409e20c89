"""Finds the layers of a program: a walk over its jaxpr that follows what is computed from parameters alone.

A *layer* is a `conv_general_dilated` or `dot_general` with one operand computed from parameters alone (the weight)
and the other from the network's input (the activation). A product without a contraction only scales, a product of two
parameters (a learned query) is stored as its factors, and complex numbers have no widths: none of them is a layer. The
walk yields a plan as nested as the program: one entry an equation, because one inner jaxpr may be called at several
places with different weights. What no output needs is left out beforehand.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

from haqjax.tracing.finder import (
    BATCHED,
    BEHIND,
    COPIED,
    INPUT,
    LATEST,
    MOVED,
    PRODUCT,
    Finder,
    Loop,
    Loops,
    Sources,
    Weights,
)
from haqjax.tracing.jaxpr import BARRIER, Layer, Plan, Turns, dtype_of, shape_of
from haqjax.tracing.leaves import Cut, Leaves

SLICES = ("slice", "split")
COPIES = ("broadcast_in_dim", "gather", "concatenate", "dynamic_slice", "dynamic_update_slice", "pad")
AS_IT_IS = ("squeeze", "convert_element_type", "copy", "copy_p", "stop_gradient")
SUMS = ("add", "add_any", "sub")
CONTRACTIONS = ("dot_general", "conv_general_dilated")

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


def make_plan(closed: ClosedJaxpr, names: Sequence[str], sizes: Sequence[int], batched: Sequence[bool]) -> Plan:
    """Finds the layers of a program whose arguments are the leaves of the parameters, then those of the input.

    Args:
      closed: the program.
      names: a name for each parameter leaf.
      sizes: elements of each parameter leaf; a weight computed from several is named after the largest.
      batched: whether each example has its own, for each leaf of the network's input.
    Raises:
      ValueError: no layer; a weight of two layers; a layer inside control flow. Each names the parameter.
    """
    finder = Finder(Leaves(names, sizes))
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    atoms = itertools.chain(jaxpr.outvars, *(equation.invars for equation in jaxpr.eqns))
    read = {atom for atom in atoms if not isinstance(atom, Literal)}
    reached = tuple(var in read for var in jaxpr.invars)
    inputs = [frozenset({INPUT, BATCHED} if each else {INPUT}) for each in batched]
    sources = [frozenset({i}) for i in range(len(names))] + inputs
    plan, outputs = _walk(jaxpr, closed.consts, sources, finder, ())
    if not finder.layers:
        raise ValueError(
            "no layer found: no convolution or matrix product has one operand computed from `params` alone. "
            "Pass the weights as the first argument of `apply`, not through a closure"
        )
    last = {LATEST - source for source in frozenset[int]().union(*outputs) if source <= LATEST}
    products = tuple(finder.products)
    return dataclasses.replace(plan, products=products, reached=reached, last=tuple(sorted(last)))


def _walk(
    jaxpr: Jaxpr, consts: Sequence[Any], sources: Sequence[Sources], finder: Finder, loops: Loops
) -> tuple[Plan, list[Sources]]:
    known = dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> Sources:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    steps: list[Layer | Plan | Turns | None] = []
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        step, outputs = _step(equation, operands, finder, loops)
        steps.append(step)
        known.update(zip(equation.outvars, outputs, strict=True))
    return Plan(jaxpr, consts, tuple(steps)), [read(atom) for atom in jaxpr.outvars]


def _step(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, loops: Loops
) -> tuple[Layer | Plan | Turns | None, list[Sources]]:
    name, together = equation.primitive.name, frozenset[int]().union(*operands)
    if name in CONTRACTIONS and _contracts(equation):
        weight_at = _weight_operand(equation, operands)
        if weight_at is not None:
            layer = finder.add(equation, weight_at, operands, loops)
            marks = {INPUT, BEHIND} | (together & {BATCHED}) | ({LATEST - layer.index} if layer else set())
            return layer, [frozenset(marks)]
        if INPUT in together:
            finder.note(equation, loops)
        return None, [together | ({PRODUCT} if all(operands) else set())]
    if name in INLINED:
        body, consts = _open(equation.params[INLINED[name]])
        known = len(finder.products)
        plan, outputs = _walk(body, consts, operands, finder, loops)
        # A call is opened too where some of what it gives depends on the parameters alone: it may be a weight.
        mixed = len({INPUT in output for output in outputs}) > 1
        return (plan if plan.has_layers or mixed or len(finder.products) > known else None), outputs
    if name == BARRIER:
        return None, operands  # each output is the operand of its place
    if name in SLICES and len(operands[0]) == 1:
        return None, _slice(equation, operands[0], finder.leaves)
    if name == "scan" and _has_stacked_weights(equation, operands, finder.leaves):
        return _unroll(equation, operands, finder, loops)
    if name == "gather" and operands[0] and INPUT in together - operands[0]:
        return None, [together | {BEHIND}]
    if name in SUMS:  # of a sum with a residual, the last layer is the latest
        latest = min(together, default=INPUT)
        together = frozenset(source for source in together if source > LATEST or source == latest)
    inner = (*loops, Loop(name, equation.params.get("length", 1)))
    for body, body_sources in _control_flow(equation, operands, finder.leaves):
        _walk(*_open(body), body_sources, finder, inner)
    if together and INPUT not in together:
        together |= {COPIED, MOVED} if name in COPIES else set() if name in AS_IT_IS else {MOVED}
    return None, [_clear_marks(var, equation, operands, together, finder.leaves) for var in equation.outvars]


def _slice(equation: JaxprEqn, sources: Sources, leaves: Leaves) -> list[Sources]:
    """Finds the slices that are taken of a whole leaf; of anything else the sources stay."""
    (number,), shape = sources, shape_of(equation.invars[0])
    if number < 0 or math.prod(shape) != leaves[number].size:
        return [sources] * len(equation.outvars)
    params = equation.params
    if equation.primitive.name == "split":
        axis, ends = params["axis"], np.cumsum(params["sizes"]).tolist()
        place = _place(shape, axis)
        cuts = [Cut(place, end - size, end) for end, size in zip(ends, map(int, params["sizes"]), strict=True)]
        return [frozenset({leaves.cut(number, cut, shape[axis])}) for cut in cuts]
    if any(step != 1 for step in params["strides"] or ()):
        return [sources]
    left = list(shape)
    for axis, (start, stop) in enumerate(zip(params["start_indices"], params["limit_indices"], strict=True)):
        number = leaves.cut(number, Cut(_place(left, axis), int(start), int(stop)), shape[axis])
        left[axis] = int(stop) - int(start)
    return [frozenset({number})]


def _place(shape: Sequence[int], axis: int) -> int:
    """Counts the axes before one that have more than one entry: squeezing others away does not change it."""
    return sum(size > 1 for size in shape[:axis])


def _take_turn(equation: JaxprEqn, operands: list[Sources], leaves: Leaves, turn: int) -> list[Sources]:
    """Finds the sources of what one turn of a scan gets: a slice of each leaf that is scanned over."""
    length, stacked = equation.params["length"], _scanned(equation, operands)
    same = len(operands) - len(stacked)

    def cut(sources: Sources, size: int) -> Sources:
        if COPIED in sources or INPUT in sources or not any(source >= 0 for source in sources):
            return sources
        if leaves[leaves.largest(sources)].size != size:
            return sources
        entry = Cut(-1 if MOVED in sources else 0, turn, turn + 1)
        whole = [source for source in sources if source < 0 or leaves[source].size % length]
        return frozenset(whole) | {leaves.cut(source, entry, length) for source in sources.difference(whole)}

    sizes = [math.prod(shape_of(atom)) for atom in equation.invars[same:]]
    return operands[:same] + [cut(sources, size) for sources, size in zip(stacked, sizes, strict=True)]


def _scanned(equation: JaxprEqn, operands: list[Sources]) -> list[Sources]:
    """Picks the operands of a scan that each turn gets an entry of."""
    start, carried = _scan_counts(equation)
    return operands[start + carried :]


def _has_stacked_weights(equation: JaxprEqn, operands: list[Sources], leaves: Leaves) -> bool:
    """Tells a scan whose layers have a weight of their own in every turn."""
    if not equation.params["length"]:
        return False
    body, first = equation.params["jaxpr"], _take_turn(equation, operands, leaves, 0)
    weights = Weights(leaves)
    _walk(*_open(body), _fixed_point(body, first, *_scan_counts(equation), leaves), weights, ())
    other = _take_turn(equation, operands, leaves, 1) if equation.params["length"] > 1 else []
    given = frozenset[int]().union(*first) - frozenset[int]().union(*other)  # what this turn alone has

    def is_own(sources: Sources | None) -> bool:
        return any(leaves.within(source, mine) for source in sources or () for mine in given if min(source, mine) >= 0)

    return bool(weights.sources) and all(map(is_own, weights.sources))


def _unroll(equation: JaxprEqn, operands: list[Sources], finder: Finder, loops: Loops) -> tuple[Turns, list[Sources]]:
    """Plans each turn of a scan by itself, in the order in which they run."""
    (start, carried), length = _scan_counts(equation), equation.params["length"]
    carry, plans = operands[start : start + carried], []
    stacked = [frozenset[int]()] * (len(equation.outvars) - carried)
    order = range(length)[:: -1 if equation.params["reverse"] else 1]
    for turn in order:
        given = _take_turn(equation, operands, finder.leaves, turn)
        given[start : start + carried] = carry
        plan, outputs = _walk(*_open(equation.params["jaxpr"]), given, finder, loops)
        plans.append(plan)
        carry = outputs[:carried]
        stacked = [old | new for old, new in zip(stacked, outputs[carried:], strict=True)]
    return Turns(tuple(plans), tuple(order), start, carried), carry + stacked


def _clear_marks(var: Any, equation: JaxprEqn, operands: list[Sources], together: Sources, leaves: Leaves) -> Sources:
    """Takes marks off what is one parameter, changed by others: `w + a @ b`, `w / (u @ w @ v)`, `w * scale[None]`.

    That parameter has the size of the result, and none of the others is larger.
    """
    marks = frozenset({PRODUCT, COPIED})
    if not together & marks or INPUT in together or equation.primitive.name in COPIES:
        return together
    largest, size = leaves.largest(together), math.prod(shape_of(var))
    for atom, sources in zip(equation.invars, operands, strict=True):
        if largest in sources and not sources & marks and math.prod(shape_of(atom)) == size == leaves[largest].size:
            return together - marks
    return together


def _contracts(equation: JaxprEqn) -> bool:
    """Returns False for a product that sums over nothing: it scales and broadcasts."""
    return equation.primitive.name != "dot_general" or bool(equation.params["dimension_numbers"][0][0])


def _weight_operand(equation: JaxprEqn, operands: list[Sources]) -> int | None:
    """Finds which operand is a weight. Copies of one, as many as there are examples, are none."""
    if jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.complexfloating):
        return None
    dense = equation.primitive.name == "dot_general"
    for at in (0, 1) if dense else (1,):
        weight, activation = operands[at], operands[1 - at]
        if weight and not weight & {INPUT, PRODUCT} and INPUT in activation:
            copied = dense and COPIED in weight and bool(equation.params["dimension_numbers"][1][at])
            return None if copied else at
    return None


def _control_flow(equation: JaxprEqn, operands: list[Sources], leaves: Leaves) -> Iterator[tuple[Any, list[Sources]]]:
    """Yields the bodies of loops and branches with the sources of their arguments."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        yield params["jaxpr"], _fixed_point(params["jaxpr"], operands, *_scan_counts(equation), leaves)
    elif name == "while":
        in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]
        carried = len(operands) - in_cond - in_body
        looped = _fixed_point(params["body_jaxpr"], operands[in_cond:], in_body, carried, leaves)
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


def _fixed_point(body: Any, operands: list[Sources], start: int, count: int, leaves: Leaves) -> list[Sources]:
    """Finds the sources of a loop body's arguments after any number of turns: each turn adds to what is carried."""
    _, outputs = _walk(*_open(body), operands, Weights(leaves), ())
    carried = [old | new for old, new in zip(operands[start : start + count], outputs[:count], strict=True)]
    grown = [*operands[:start], *carried, *operands[start + count :]]
    return operands if grown == operands else _fixed_point(body, grown, start, count, leaves)


def _bodies(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _bodies(value)


def _open(body: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
