"""Interpreter of plans: runs a program one equation after another, with a hook in place of each of its layers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from haqjax.tracing.jaxpr import BARRIER, Branches, Layer, Loop, Plan, Turns, dtype_of

Compute = Callable[[Array, Array], Array]  # (activation, weight) -> output of the layer
After = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]  # (equation, its outputs) -> outputs


class _Unknown:
    """Placeholder for every value that depends on the input when only the parameters are at hand."""


UNKNOWN = _Unknown()


def run_plan(
    plan: Plan, arguments: Sequence[Any], hook: Callable, after: After | None = None, turn: Any = 0
) -> tuple[list[Any], tuple]:
    """Runs a plan; where an argument is `UNKNOWN`, so is all that depends on it."""
    values = dict(zip(plan.jaxpr.invars, arguments, strict=True))
    values.update(zip(plan.jaxpr.constvars, plan.consts, strict=True))
    records: tuple = ()

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation, step in zip(plan.jaxpr.eqns, plan.steps, strict=True):
        operands = [read(atom) for atom in equation.invars]
        unknown = any(operand is UNKNOWN for operand in operands)
        if isinstance(step, Layer):
            output, record = hook(step, operands[1 - step.weight_at], operands[step.weight_at], Computed(step, turn))
            outputs, records = [output], (*records, record)
        elif isinstance(step, Plan) and (step.has_layers or unknown):
            outputs, inner = _call(equation, step, operands, hook, after, turn)
            records = (*records, *inner)
        elif isinstance(step, Turns | Loop | Branches):
            outputs, inner = RUN[type(step)](step, equation, operands, hook, after, turn)
            records = (*records, *inner)
        elif unknown:
            outputs = operands if equation.primitive.name == BARRIER else [UNKNOWN] * len(equation.outvars)
        else:
            outputs = run_equation(equation, operands)
            outputs = outputs if after is None else [*after(equation, outputs)]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars], records


def _run_turns(
    turns: Turns, equation: JaxprEqn, operands: list[Any], hook: Callable, after: After | None, turn: Any
) -> tuple[list[Any], tuple]:
    """Runs a scan turn by turn, and stacks what they put out."""
    first = turns.consts + turns.carried
    consts, carry, scanned = operands[: turns.consts], operands[turns.consts : first], operands[first:]
    rows: dict[int, list[Any]] = {}
    records: tuple = ()
    for plan, at in zip(turns.plans, turns.order, strict=True):
        entries = [UNKNOWN if whole is UNKNOWN else whole[at] for whole in scanned]
        values, inner = run_plan(plan, [*consts, *carry, *entries], hook, after, turn)
        carry, rows[at], records = values[: turns.carried], values[turns.carried :], (*records, *inner)
    columns = zip(*(rows[at] for at in sorted(rows)), strict=True)
    stacked = [UNKNOWN if any(entry is UNKNOWN for entry in column) else jnp.stack(column) for column in columns]
    return [*carry, *stacked], records


def _run_loop(
    loop: Loop, equation: JaxprEqn, operands: list[Any], hook: Callable, after: After | None, turn: Any
) -> tuple[list[Any], tuple]:
    """Runs a loop as a loop; records get an axis of turns in front."""
    (plan,), given = loop.plans, operands[loop.condition :]
    first = loop.consts + loop.carried
    consts, carry, scanned = given[: loop.consts], given[loop.consts : first], given[first:]
    length = equation.params.get("length", 1)
    if any(operand is UNKNOWN for operand in operands):
        entries = [UNKNOWN] * len(scanned)
        values, records = run_plan(plan, [*consts, *carry, *entries], hook, after)
        return [*values[: loop.carried], *[UNKNOWN] * (len(equation.outvars) - loop.carried)], records

    def run(carry: Sequence[Any], given: tuple[Any, Sequence[Any]]) -> tuple[list[Any], tuple]:
        number, entries = given
        values, records = run_plan(plan, [*consts, *carry, *entries], hook, after, turn * length + number)
        return values[: loop.carried], (values[loop.carried :], records)

    if equation.primitive.name == "while":
        return _run_while(loop, equation, operands[: loop.condition], carry, lambda carry, at: run(carry, (at, ())))
    options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    carry, (stacked, records) = jax.lax.scan(run, carry, (jnp.arange(length), scanned), **options)
    return [*carry, *stacked], records


def _run_while(
    loop: Loop, equation: JaxprEqn, consts: Sequence[Any], carry: list[Any], turn: Callable
) -> tuple[list[Any], tuple]:
    """Runs a `while`; one whose layers leave records, turn by turn outside of `jit`."""
    condition = equation.params["cond_jaxpr"]

    def goes_on(carry: Sequence[Any]) -> Any:
        return jax.core.eval_jaxpr(condition.jaxpr, condition.consts, *consts, *carry)[0]

    _, (_, shapes) = jax.eval_shape(lambda carry: turn(carry, 0), carry)
    if not jax.tree.leaves(shapes):
        return [*jax.lax.while_loop(goes_on, lambda carry: turn(carry, 0)[0], carry)], shapes
    if isinstance(goes_on(carry), jax.core.Tracer):
        raise ValueError(
            "a `while` with layers in it has records of its turns only outside of `jit` and of other loops: write the "
            "outer loop out, or scan over a number of turns that is known"
        )
    rows: list[tuple] = []
    while goes_on(carry):
        carry, (_, records) = turn(carry, len(rows))
        rows.append(records)
    if not rows:  # no turn: records of none
        return [*carry], jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), shapes)
    return [*carry], jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _run_branches(
    branches: Branches, equation: JaxprEqn, operands: list[Any], hook: Callable, after: After | None, turn: Any
) -> tuple[list[Any], tuple]:
    """Runs the branch that is taken; the records of the others are zeros."""
    index, given = operands[0], operands[1:]
    if any(operand is UNKNOWN for operand in operands):
        found = [run_plan(plan, given, hook, after, turn)[1] for plan in branches.plans]
        return [UNKNOWN] * len(equation.outvars), tuple(record for records in found for record in records)
    types = [dtype_of(var) for var in equation.outvars]
    shapes = [
        jax.eval_shape(lambda *args, p=plan: run_plan(p, args, hook, after, turn)[1], *given) for plan in branches.plans
    ]

    def branch(at: int) -> Callable[..., tuple[list[Any], tuple]]:
        def run(*given: Any) -> tuple[list[Any], tuple]:
            values, records = run_plan(branches.plans[at], given, hook, after, turn)
            empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            rows = [records if other == at else nothing for other, nothing in enumerate(empty)]
            cast = [jnp.asarray(value, dtype) for value, dtype in zip(values, types, strict=True)]
            return cast, tuple(record for row in rows for record in row)

        return run

    return jax.lax.switch(index, [branch(at) for at in range(len(branches.plans))], *given)


RUN: dict[type, Callable[..., tuple[list[Any], tuple]]] = {
    Turns: _run_turns,
    Loop: _run_loop,
    Branches: _run_branches,
}


def _call(
    equation: JaxprEqn, plan: Plan, operands: list[Any], hook: Callable, after: After | None, turn: Any
) -> tuple[list[Any], tuple]:
    """Runs a call in place; rematerialisation stays, since it bounds memory."""
    if "policy" not in equation.params or any(operand is UNKNOWN for operand in operands):
        return run_plan(plan, operands, hook, after, turn)
    keep = {name: equation.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(lambda *arguments: run_plan(plan, arguments, hook, after, turn), **keep)(*operands)


@dataclasses.dataclass(frozen=True)
class Computed:
    """A layer as a function of its operands, and the turn of the loops around it that it is computed in."""

    layer: Layer
    turn: Any = 0

    def __call__(self, activation: Array, weight: Array) -> Array:
        operands = [weight, activation] if self.layer.weight_at == 0 else [activation, weight]
        return run_equation(self.layer.equation, operands)[0]


def run_equation(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Runs one equation of a jaxpr: the only place that depends on how this version of JAX binds primitives."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        output = equation.primitive.bind(*functions, *operands, **params)
    return list(output) if equation.primitive.multiple_results else [output]
