"""Finds the layers of a program: a walk over its jaxpr that follows what is computed from parameters alone.

A *layer* is a `conv_general_dilated` or `dot_general` with one operand computed from parameters alone (the weight)
and the other from the network's input (the activation). A product without a contraction only scales, a product of two
parameters (a learned query) is stored as its factors, and complex numbers have no widths: none of them is a layer. The
walk yields a plan as nested as the program: one entry an equation, because one inner jaxpr may be called at several
places with different weights. What no output needs is left out beforehand.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

from haqjax.tracing.finder import BEHIND, INPUT, LATEST, MOVED, PRODUCT, Finder, Loop, Loops, Sources, Weights
from haqjax.tracing.jaxpr import BARRIER, Layer, Plan, Turns, dtype_of, shape_of
from haqjax.tracing.leaves import Cut, Leaves

SLICES = ("slice", "split")
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
    finder = Finder(Leaves(names, sizes))
    wanted = [True] * len(closed.jaxpr.outvars)
    _, reached = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, wanted, instantiate=True)
    sources = [frozenset({i}) for i in range(len(names))] + [frozenset({INPUT})] * inputs
    plan, outputs = _walk(jaxpr, closed.consts, sources, finder, ())
    if not finder.layers:
        raise ValueError(
            "no layer found: no convolution or matrix product has one operand computed from `params` alone. "
            "Pass the weights as the first argument of `apply`, not through a closure"
        )
    last = {LATEST - source for source in frozenset[int]().union(*outputs) if source <= LATEST}
    products = tuple(finder.products)
    return dataclasses.replace(plan, products=products, reached=tuple(reached), last=tuple(sorted(last)))


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
        weight_at = _weight_operand(equation, operands, finder.leaves)
        if weight_at is not None:
            layer = finder.add(equation, weight_at, operands, loops)
            marks = {INPUT, BEHIND} if layer is None else {INPUT, BEHIND, LATEST - layer.index}
            return layer, [frozenset(marks)]
        if INPUT in together:
            finder.note(equation, loops)
        return None, [together | ({PRODUCT} if all(operands) else set())]
    if name in INLINED:
        body, consts = _open(equation.params[INLINED[name]])
        plan, outputs = _walk(body, consts, operands, finder, loops)
        # A call is opened too where some of what it gives depends on the parameters alone: it may be a weight.
        mixed = len({INPUT in output for output in outputs}) > 1
        return (plan if plan.has_layers or mixed else None), outputs
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
    moved = {MOVED} if together and INPUT not in together and name not in AS_IT_IS else set[int]()
    return None, [_stored(var, equation, operands, together | moved, finder.leaves) for var in equation.outvars]


def _slice(equation: JaxprEqn, sources: Sources, leaves: Leaves) -> list[Sources]:
    """Finds the slices that are taken of a whole leaf; of anything else the sources stay."""
    (number,), shape = sources, shape_of(equation.invars[0])
    if number < 0 or math.prod(shape) != leaves[number].size:
        return [sources] * len(equation.outvars)
    params = equation.params
    if equation.primitive.name == "split":
        axis, ends = params["axis"], np.cumsum(params["sizes"]).tolist()
        cuts = [Cut(axis, end - size, end) for end, size in zip(ends, map(int, params["sizes"]), strict=True)]
        return [frozenset({leaves.cut(number, cut, shape[axis])}) for cut in cuts]
    if any(step != 1 for step in params["strides"] or ()):
        return [sources]
    for axis, (start, stop) in enumerate(zip(params["start_indices"], params["limit_indices"], strict=True)):
        number = leaves.cut(number, Cut(axis, int(start), int(stop)), shape[axis])
    return [frozenset({number})]


def _take_turn(equation: JaxprEqn, operands: list[Sources], leaves: Leaves, turn: int) -> list[Sources]:
    """Finds the sources of what one turn of a scan gets: a slice of each leaf that is scanned over."""
    length = equation.params["length"]

    def cut(sources: Sources) -> Sources:
        entry = Cut(-1 if MOVED in sources else 0, turn, turn + 1)
        whole = [source for source in sources if source < 0 or leaves[source].size % length]
        return frozenset(whole) | {leaves.cut(source, entry, length) for source in sources.difference(whole)}

    stacked = _scanned(equation, operands)
    return operands[: len(operands) - len(stacked)] + [cut(sources) for sources in stacked]


def _scanned(equation: JaxprEqn, operands: list[Sources]) -> list[Sources]:
    """Picks the operands of a scan that each turn gets an entry of."""
    start, carried = _scan_counts(equation)
    return operands[start + carried :]


def _has_stacked_weights(equation: JaxprEqn, operands: list[Sources], leaves: Leaves) -> bool:
    """Tells a scan whose layers have a weight of their own in every turn."""
    body, first = equation.params["jaxpr"], _take_turn(equation, operands, leaves, 0)
    weights = Weights(leaves)
    _walk(*_open(body), _fixed_point(body, first, *_scan_counts(equation), leaves), weights, ())
    same = len(operands) - len(_scanned(equation, operands))
    given = frozenset[int]().union(*first[same:]) - frozenset[int]().union(*operands[:same]) - {INPUT}

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


def _stored(var: Any, equation: JaxprEqn, operands: list[Sources], together: Sources, leaves: Leaves) -> Sources:
    """Takes the mark of a product off what has a parameter of its size in it: `w + a @ b`, `w / (u @ w @ v)`."""
    size = math.prod(shape_of(var))
    for atom, sources in zip(equation.invars, operands, strict=True):
        alike = sources and not sources & {INPUT, PRODUCT} and shape_of(atom) == shape_of(var)
        if alike and leaves[leaves.largest(sources)].size >= size:
            return together - {PRODUCT}
    return together


def _contracts(equation: JaxprEqn) -> bool:
    """Returns False for a product that sums over nothing: it scales and broadcasts."""
    return equation.primitive.name != "dot_general" or bool(equation.params["dimension_numbers"][0][0])


def _weight_operand(equation: JaxprEqn, operands: list[Sources], leaves: Leaves) -> int | None:
    if jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.complexfloating):
        return None
    dense = equation.primitive.name == "dot_general"
    for at in (0, 1) if dense else (1,):
        weight, activation = operands[at], operands[1 - at]
        if weight and not weight & {INPUT, PRODUCT} and INPUT in activation:
            return None if dense and _repeats(equation, at, leaves.count(weight)) else at
    return None


def _repeats(equation: JaxprEqn, at: int, stored: int) -> bool:
    """Tells an operand that has a copy of the parameters for each example: it grows with the batch."""
    shape = shape_of(equation.invars[at])
    batched = [shape[axis] for axis in equation.params["dimension_numbers"][1][at]]
    return bool(batched) and (math.prod(batched) == 1 or math.prod(shape) > stored)


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
