"""Partial evaluation: cuts a function into what does not depend on its last argument and what does."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, PyTree

from haqjax.tracing.interpreter import run_equation

COMMON, FIRST, REST = range(3)  # what a value depends on


class SplitProgram(NamedTuple):
    """A function `(common, first, rest) -> output` in two parts."""

    head: Callable[[PyTree, PyTree], list[Array]]  # (common, first) -> kept
    tail: Callable[[PyTree, list[Array], PyTree], PyTree]  # (common, kept, rest) -> output


def split_program(function: Callable, common: PyTree, first: PyTree, rest: PyTree) -> SplitProgram:
    """Cuts `function(common, first, rest)` into what does not depend on `rest` and what does.

    What depends on `common` alone is computed in both parts. The arguments may be shapes.

    >>> program = split_program(lambda w, x, y: jax.numpy.sin(w * x) + y, 2.0, 3.0, 1.0)
    >>> kept = program.head(2.0, 3.0)
    >>> len(kept), float(program.tail(2.0, kept, 1.0)) == float(jax.numpy.sin(6.0) + 1)
    (1, True)
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(common, first, rest)
    jaxpr, sizes = closed.jaxpr, [len(jax.tree.leaves(part)) for part in (common, first, rest)]
    kinds = dict(zip(jaxpr.invars, np.repeat((COMMON, FIRST, REST), sizes).tolist(), strict=True))

    def kind_of(atom: Any) -> int:
        return COMMON if isinstance(atom, Literal) else kinds.get(atom, COMMON)

    parts: tuple[list[JaxprEqn], ...] = ([], [], [])
    for equation in jaxpr.eqns:
        kind = max(map(kind_of, equation.invars), default=COMMON)
        kinds.update(dict.fromkeys(equation.outvars, kind))
        parts[kind].append(equation)
    read = [atom for equation in parts[REST] for atom in equation.invars] + jaxpr.outvars
    kept = list(dict.fromkeys(atom for atom in read if kind_of(atom) == FIRST))
    inputs = [jaxpr.invars[at - size : at] for at, size in zip(np.cumsum(sizes), sizes, strict=True)]
    consts = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def head(common: PyTree, first: PyTree) -> list[Array]:
        leaves = jax.tree.leaves((common, first))
        values = consts | dict(zip(inputs[COMMON] + inputs[FIRST], leaves, strict=True))
        return _run(parts[COMMON] + parts[FIRST], values, kept)

    def tail(common: PyTree, values: list[Array], rest: PyTree) -> PyTree:
        leaves = [*jax.tree.leaves(common), *values, *jax.tree.leaves(rest)]
        known = consts | dict(zip(inputs[COMMON] + kept + inputs[REST], leaves, strict=True))
        return jax.tree.unflatten(jax.tree.structure(shape), _run(parts[COMMON] + parts[REST], known, jaxpr.outvars))

    return SplitProgram(head, tail)


def _run(equations: Sequence[JaxprEqn], values: dict[Any, Any], wanted: Sequence[Any]) -> list[Any]:
    """Evaluates equations in the order given; `values` grows on the way."""

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in equations:
        values.update(zip(equation.outvars, run_equation(equation, [*map(read, equation.invars)]), strict=True))
    return [read(atom) for atom in wanted]
