"""Slices of leaves, and what the body of a loop is given in each turn."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from haqjax.tracing.finder import COPIED, INPUT, MOVED, Sources
from haqjax.tracing.jaxpr import shape_of
from haqjax.tracing.leaves import Cut, Leaves


def find_slices(equation: JaxprEqn, sources: Sources, leaves: Leaves) -> list[Sources]:
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


def take_turn(equation: JaxprEqn, operands: list[Sources], leaves: Leaves, turn: int) -> list[Sources]:
    """Finds the sources of what one turn of a scan gets: a slice of each leaf that is scanned over."""
    length, same = equation.params["length"], sum(scan_counts(equation))

    def cut(sources: Sources, size: int) -> Sources:
        if COPIED in sources or INPUT in sources or not any(source >= 0 for source in sources):
            return sources
        if leaves[leaves.largest(sources)].size != size:
            return sources
        entry = Cut(-1 if MOVED in sources else 0, turn, turn + 1)
        whole = [source for source in sources if source < 0 or leaves[source].size % length]
        return frozenset(whole) | {leaves.cut(source, entry, length) for source in sources.difference(whole)}

    sizes = [math.prod(shape_of(atom)) for atom in equation.invars[same:]]
    return operands[:same] + [cut(sources, size) for sources, size in zip(operands[same:], sizes, strict=True)]


def scan_counts(equation: JaxprEqn) -> tuple[int, int]:
    """Counts the constants and carried values of a scan by shapes: what is scanned over has one axis more outside.

    The parameters that hold these counts have other names in other versions of JAX.
    """
    body, _ = open_body(equation.params["jaxpr"])
    scanned = sum(shape_of(a) != shape_of(b) for a, b in zip(equation.invars, body.invars, strict=True))
    carried = sum(shape_of(a) == shape_of(b) for a, b in zip(equation.outvars, body.outvars, strict=True))
    return len(equation.invars) - carried - scanned, carried


def inner_bodies(values: Any) -> Iterator[Any]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from inner_bodies(value)


def open_body(body: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """Returns a jaxpr and its constants."""
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
