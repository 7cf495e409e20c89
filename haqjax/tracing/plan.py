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
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
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
    Sources,
    Surroundings,
    Weights,
)
from haqjax.tracing.jaxpr import BARRIER, Branches, Layer, Loop, Plan, Step, Turns, dtype_of, shape_of
from haqjax.tracing.leaves import Leaves
from haqjax.tracing.scans import find_slices, inner_bodies, open_body, scan_counts, take_turn
from haqjax.tracing.uses import join_uses

SLICES = ("slice", "split")
COPIES = ("broadcast_in_dim", "gather", "concatenate", "dynamic_slice", "dynamic_update_slice", "pad")
AS_IT_IS = ("squeeze", "convert_element_type", "copy", "copy_p", "stop_gradient", "device_put")
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
      ValueError: no layer; a weight that is read in two forms; a layer in the condition of a `while`, or with a weight
        that changes from turn to turn. Each names the parameter.
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
    plan, layer_of = join_uses(plan, finder.layers, finder.numbers, finder.leaves, len(names))
    last = {layer_of[LATEST - source] for source in frozenset[int]().union(*outputs) if source <= LATEST}
    products = tuple(finder.products)
    return dataclasses.replace(plan, products=products, reached=reached, last=tuple(sorted(last)))


def _walk(
    jaxpr: Jaxpr, consts: Sequence[Any], sources: Sequence[Sources], finder: Finder, around: Surroundings
) -> tuple[Plan, list[Sources]]:
    known = dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> Sources:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    steps: list[Step] = []
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        step, outputs = _step(equation, operands, finder, around)
        steps.append(step)
        known.update(zip(equation.outvars, outputs, strict=True))
    return Plan(jaxpr, consts, tuple(steps)), [read(atom) for atom in jaxpr.outvars]


def _step(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Step, list[Sources]]:
    name, together = equation.primitive.name, frozenset[int]().union(*operands)
    if name in CONTRACTIONS and _contracts(equation):
        weight_at = _weight_operand(equation, operands)
        if weight_at is not None:
            layer = finder.add(equation, weight_at, operands, around)
            marks = {INPUT, BEHIND} | (together & {BATCHED}) | ({LATEST - layer.place} if layer else set())
            return layer, [frozenset(marks)]
        if INPUT in together:
            finder.note(equation, around)
        return None, [together | ({PRODUCT} if all(operands) else set())]
    if name in INLINED:
        body, consts = open_body(equation.params[INLINED[name]])
        known = len(finder.products)
        plan, outputs = _walk(body, consts, operands, finder, around)
        # A call is opened too where some of what it gives depends on the parameters alone: it may be a weight.
        mixed = len({INPUT in output for output in outputs}) > 1
        return (plan if plan.has_layers or mixed or len(finder.products) > known else None), outputs
    if name == BARRIER:
        return None, operands  # each output is the operand of its place
    if name in SLICES and len(operands[0]) == 1:
        return None, find_slices(equation, operands[0], finder.leaves)
    if name == "gather" and operands[0] and INPUT in together - operands[0]:
        if not _picks_entries(equation, operands[0]):
            return None, [together | {BEHIND}]
        layer = finder.add(equation, 0, operands, around)
        return layer, [
            frozenset({INPUT, BEHIND} | (together & {BATCHED}) | ({LATEST - layer.place} if layer else set()))
        ]
    if name in CONTROL_FLOW:
        found = CONTROL_FLOW[name](equation, operands, finder, around)
        if found is not None:
            return found
    if name in SUMS:  # of a sum with a residual, the last layer is the latest
        latest = min(together, default=INPUT)
        together = frozenset(source for source in together if source > LATEST or source == latest)
    for body in inner_bodies(equation.params.values()):  # of a primitive that is not known here
        if name not in CONTROL_FLOW and len(open_body(body)[0].invars) == len(operands):
            _refuse_layers(body, operands, finder, f"inside `{name}`")
    if together and INPUT not in together:
        together |= {COPIED, MOVED} if name in COPIES else set() if name in AS_IT_IS else {MOVED}
    return None, [_clear_marks(var, equation, operands, together, finder.leaves) for var in equation.outvars]


def _plan_scan(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Step, list[Sources]] | None:
    """Plans a scan: turn by turn where layers have weights of their own in each, else as a loop."""
    body, length, (start, carried) = equation.params["jaxpr"], equation.params["length"], scan_counts(equation)
    if not length:
        return None
    if _has_stacked_weights(equation, operands, finder.leaves):
        return _unroll(equation, operands, finder, around)
    sources = _fixed_point(body, operands, start, carried, finder.leaves)
    plan, outputs = _walk_loop(body, operands, sources, finder, (*around, length))
    return (Loop((plan,), 0, start, carried), outputs) if plan.has_layers else None


def _plan_while(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Step, list[Sources]] | None:
    """Plans a `while`, which may take no turn."""
    params = equation.params
    in_condition, start = params["cond_nconsts"], params["body_nconsts"]
    carried = len(operands) - in_condition - start
    sources = _fixed_point(params["body_jaxpr"], operands[in_condition:], start, carried, finder.leaves)
    condition = [*operands[:in_condition], *sources[start:]]
    _refuse_layers(params["cond_jaxpr"], condition, finder, "in the condition of a `while`")
    if shape_of(open_body(params["cond_jaxpr"])[0].outvars[0]):
        raise ValueError(
            "a `while` under `vmap` takes turns of its own for each example: pass the batch through it as a whole, or "
            "scan over a number of turns that is known"
        )
    plan, outputs = _walk_loop(params["body_jaxpr"], operands[in_condition:], sources, finder, (*around, None))
    if not plan.has_layers:
        return None
    ends = [before | after for before, after in zip(operands[in_condition + start :], outputs, strict=True)]
    return Loop((plan,), in_condition, start, carried), ends


def _walk_loop(
    body: Any, first: list[Sources], sources: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Plan, list[Sources]]:
    """Walks over the body of a loop; a layer that reads the input in the first turn reads it."""
    begun, start = Weights(finder.leaves), len(finder.layers)
    _walk(*open_body(body), first, begun, ())
    plan, outputs = _walk(*open_body(body), sources, finder, around)

    def mark(layer: Layer) -> Layer:
        return dataclasses.replace(
            layer, reads_input=layer.reads_input or begun.reads_input.get(id(layer.equation), False)
        )

    finder.layers[start:] = map(mark, finder.layers[start:])
    return plan.replace_layers(mark), outputs


def _plan_branches(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Step, list[Sources]] | None:
    """Plans the branches of a `cond`, all of them as if each was taken."""
    found = [_walk(*open_body(body), operands[1:], finder, around) for body in equation.params["branches"]]
    plans = tuple(plan for plan, _ in found)
    if not any(plan.has_layers for plan in plans):
        return None
    ends = [operands[0].union(*sources) for sources in zip(*(outputs for _, outputs in found), strict=True)]
    return Branches(plans), ends


CONTROL_FLOW = {"scan": _plan_scan, "while": _plan_while, "cond": _plan_branches}


def _refuse_layers(body: Any, sources: list[Sources], finder: Finder, where: str) -> None:
    weights = Weights(finder.leaves)
    _walk(*open_body(body), sources, weights, ())
    if weights.sources:
        name = finder.leaves[finder.leaves.largest(weights.sources[0])].name
        raise ValueError(
            f"weight {name!r} belongs to a layer {where}, where no bits can be given to it: write the layer outside"
        )


def _has_stacked_weights(equation: JaxprEqn, operands: list[Sources], leaves: Leaves) -> bool:
    """Tells a scan in which a layer has a weight of its own in every turn."""
    body, first = equation.params["jaxpr"], take_turn(equation, operands, leaves, 0)
    weights = Weights(leaves)
    _walk(*open_body(body), _fixed_point(body, first, *scan_counts(equation), leaves), weights, ())
    other = take_turn(equation, operands, leaves, 1) if equation.params["length"] > 1 else []
    given = frozenset[int]().union(*first) - frozenset[int]().union(*other)  # what this turn alone has
    mine = {number for number in given if number >= 0}
    found = {source for sources in weights.sources for source in sources if source >= 0}
    return any(leaves.within(source, own) for source in found for own in mine)


def _unroll(
    equation: JaxprEqn, operands: list[Sources], finder: Finder, around: Surroundings
) -> tuple[Turns, list[Sources]]:
    """Plans each turn of a scan by itself, in the order in which they run."""
    (start, carried), length = scan_counts(equation), equation.params["length"]
    carry, plans = operands[start : start + carried], []
    stacked = [frozenset[int]()] * (len(equation.outvars) - carried)
    order = range(length)[:: -1 if equation.params["reverse"] else 1]
    for turn in order:
        given = take_turn(equation, operands, finder.leaves, turn)
        given[start : start + carried] = carry
        plan, outputs = _walk(*open_body(equation.params["jaxpr"]), given, finder, around)
        plans.append(plan)
        carry = outputs[:carried]
        stacked = [old | new for old, new in zip(stacked, outputs[carried:], strict=True)]
    return Turns(tuple(plans), tuple(order), start, carried), carry + stacked


def _fixed_point(body: Any, operands: list[Sources], start: int, count: int, leaves: Leaves) -> list[Sources]:
    """Finds the sources of a loop body's arguments after any number of turns: each turn adds to what is carried."""
    _, outputs = _walk(*open_body(body), operands, Weights(leaves), ())
    carried = [old | new for old, new in zip(operands[start : start + count], outputs[:count], strict=True)]
    grown = [*operands[:start], *carried, *operands[start + count :]]
    return operands if grown == operands else _fixed_point(body, grown, start, count, leaves)


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


def _picks_entries(equation: JaxprEqn, table: Sources) -> bool:
    """Tells a lookup of whole entries of a learned table, such as an embedding's."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    learned = not table & {INPUT, PRODUCT} and jnp.issubdtype(dtype_of(equation.invars[0]), jnp.floating)
    extents = shape_of(equation.invars[0])
    whole = all(size in (1, extent) for size, extent in zip(sizes, extents, strict=True))
    several = 1 < math.prod(sizes) < math.prod(extents)
    return learned and whole and several and not numbers.operand_batching_dims


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
