"""Uses of one weight: which products of a program read the same numbers, and so are one layer.

A layer is a weight. Values that are computed from parameters alone are numbered such that equal numbers mean equal
values: the same primitive of the same operands gives the same number. A transposition keeps it, and is noted.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal

from haqjax.tracing.jaxpr import BARRIER, Branches, Layer, Loop, Plan, Turns, shape_of
from haqjax.tracing.leaves import Leaves
from haqjax.tracing.scans import inner_bodies, open_body

SAME = ("copy", "copy_p", "stop_gradient", "device_put")


class Value(NamedTuple):
    """A value that is computed from parameters alone."""

    number: int
    order: tuple[int, ...]  # in which its axes lie, of those that the number is given to


Values = list[Value | None]  # None: it depends on the input, or on the turn of a loop


def join_uses(
    plan: Plan, uses: Sequence[Layer], numbers: Sequence[frozenset[int]], leaves: Leaves, parameters: int
) -> tuple[Plan, dict[int, int]]:
    """Joins the uses of one weight to a layer.

    Args:
      uses: of layers, in order of execution.
      numbers: of the leaves that each one's weight is computed from.
      parameters: arguments of the program that are parameters.

    Returns:
      The plan, and the layer of each use.

    Raises:
      ValueError: a weight that is read in two forms, or changes from turn to turn; names it.
    """
    roots = [root for layer in uses for root in (layer.leaf, *layer.joined)]
    if len(set(roots)) == len(roots) and not any(layer.looped for layer in uses):
        return plan, {place: place for place in range(len(uses))}
    found: dict[int, Value | None] = {}
    arguments: Values = [_Walk.whole(at, var) for at, var in enumerate(plan.jaxpr.invars[:parameters])]
    _Walk(found).run(plan, [*arguments, *[None] * (len(plan.jaxpr.invars) - parameters)])
    groups: dict[int, list[int]] = {}
    for place, layer in enumerate(uses):
        value = found[place]
        if value is None:
            raise ValueError(
                f"weight {layer.name!r} changes from turn to turn of a loop: compute it before the loop, or stack the "
                "weights of all turns along the first axis and scan over them"
            )
        groups.setdefault(value.number, []).append(place)
    _check_apart(uses, numbers, leaves, list(groups.values()))
    layer_of = {place: index for index, group in enumerate(groups.values()) for place in group}
    joined = {place: layer for group in groups.values() for place, layer in _join(uses, found, group, layer_of).items()}
    return plan.replace_layers(lambda layer: joined[layer.place]), layer_of


def _check_apart(
    uses: Sequence[Layer], numbers: Sequence[frozenset[int]], leaves: Leaves, groups: Sequence[Sequence[int]]
) -> None:
    """Checks that different layers have no number in common."""
    known: dict[int, list[int]] = {}  # by the leaf of the parameters
    for first, *_ in groups:
        mine = numbers[first]
        if any(leaves.overlap(a, b) for a in mine for b in known.get(leaves[a].root, [])):
            raise ValueError(
                f"weight {uses[first].name!r} is read in two forms: two layers have numbers of it in common, but do "
                "not read the same array; compute what both of them read once, or give each a parameter of its own"
            )
        for number in mine:
            known.setdefault(leaves[number].root, []).append(number)


def _join(
    uses: Sequence[Layer], found: dict[int, Value | None], group: Sequence[int], layer_of: dict[int, int]
) -> dict[int, Layer]:
    """Makes the uses of one weight know of each other."""
    values = [found[place] for place in group]
    orders = [value.order for value in values if value is not None]
    channels = {
        frozenset(order[axis] for axis in uses[place].channel_axes) for order, place in zip(orders, group, strict=True)
    }
    joined = {}
    for use, (place, order) in enumerate(zip(group, orders, strict=True)):
        lies = None if order == orders[0] else tuple(orders[0].index(axis) for axis in order)
        layer = dataclasses.replace(uses[place], index=layer_of[place], name=uses[group[0]].name)
        joined[place] = dataclasses.replace(layer, use=use, order=lies, one_scale=len(channels) > 1)
    return joined


class _Walk:
    """Numbers what is computed from parameters alone, and notes the weight of each use."""

    def __init__(self, found: dict[int, Value | None]):
        self.found = found
        self.numbers: dict[Hashable, int] = {}

    @staticmethod
    def whole(number: int, var: Any) -> Value:
        return Value(-1 - number, tuple(range(len(shape_of(var)))))

    def name(self, key: Hashable, var: Any) -> Value:
        number = self.numbers.setdefault(key, len(self.numbers))
        return Value(number, tuple(range(len(shape_of(var)))))

    def run(self, plan: Plan, arguments: Values) -> Values:
        known = dict(zip(plan.jaxpr.invars, arguments, strict=True))
        known |= {
            var: self.name(("constant", id(value)), var)
            for var, value in zip(plan.jaxpr.constvars, plan.consts, strict=True)
        }

        def read(atom: Any) -> Value | None:
            return self.name(("literal", str(atom)), atom) if isinstance(atom, Literal) else known[atom]

        for equation, step in zip(plan.jaxpr.eqns, plan.steps, strict=True):
            operands = [read(atom) for atom in equation.invars]
            known.update(zip(equation.outvars, self.step(equation, step, operands), strict=True))
        return [read(atom) for atom in plan.jaxpr.outvars]

    def step(self, equation: JaxprEqn, step: Any, operands: Values) -> Values:
        if isinstance(step, Layer):
            self.found[step.place] = operands[step.weight_at]
            return [None]
        if isinstance(step, Plan):
            return self.run(step, operands)
        if isinstance(step, Turns):
            return self.turns(equation, step, operands)
        if isinstance(step, Loop):
            return self.loop(equation, step, operands[step.condition :])
        if isinstance(step, Branches):
            for plan in step.plans:
                self.run(plan, operands[1:])
            return [None] * len(equation.outvars)
        return self.compute(equation, operands)

    def compute(self, equation: JaxprEqn, operands: Values) -> Values:
        name, given = equation.primitive.name, [value for value in operands if value is not None]
        if name == BARRIER:
            return operands
        if len(given) < len(operands):
            return [None] * len(equation.outvars)
        if name == "transpose":
            permutation = equation.params["permutation"]
            return [Value(given[0].number, tuple(given[0].order[axis] for axis in permutation))]
        if name in SAME:
            return [given[0]]
        options = str(sorted(equation.params.items(), key=lambda item: item[0]))  # what is called is written out
        constants = [id(value) for body in inner_bodies(equation.params.values()) for value in open_body(body)[1]]
        return [self.name((name, options, *constants, *given, at), var) for at, var in enumerate(equation.outvars)]

    def turns(self, equation: JaxprEqn, turns: Turns, operands: Values) -> Values:
        first = turns.consts + turns.carried
        carry = operands[turns.consts : first]
        for plan, at in zip(turns.plans, turns.order, strict=True):
            entries = [
                None if value is None else self.name(("entry", value, at), var)
                for value, var in zip(operands[first:], plan.jaxpr.invars[first:], strict=True)
            ]
            carry = self.run(plan, [*operands[: turns.consts], *carry, *entries])[: turns.carried]
        return [*carry, *[None] * (len(equation.outvars) - turns.carried)]

    def loop(self, equation: JaxprEqn, loop: Loop, operands: Values) -> Values:
        """Numbers what is the same in every turn: constants, and what is carried through as it is."""
        (plan,), first = loop.plans, loop.consts + loop.carried
        inside, after = plan.jaxpr.invars[loop.consts : first], plan.jaxpr.outvars[: loop.carried]
        carry = [
            value if var is end else None
            for value, var, end in zip(operands[loop.consts : first], inside, after, strict=True)
        ]
        self.run(plan, [*operands[: loop.consts], *carry, *[None] * (len(operands) - first)])
        return [*carry, *[None] * (len(equation.outvars) - loop.carried)]
