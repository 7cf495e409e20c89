"""Hooks: any JAX function as a network, run with a hook in place of each of its layers.

`apply(params, x)` may come from Flax NNX or Linen, Equinox, Haiku or plain code. Batch normalisation, products of two
activations (attention) and element-wise weights are left alone. The hook is Python that runs while JAX traces: nothing
of it is left in the compiled program.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, PyTree

from haqjax.tracing.jaxpr import BARRIER, Layer, Plan, Turns
from haqjax.tracing.names import make_names
from haqjax.tracing.plan import make_plan

Apply = Callable[..., PyTree]
Compute = Callable[[Array, Array], Array]  # (activation, weight) -> output of the layer
Hook = Callable[[Layer, Any, Array, Compute], Any]  # (layer, activation, weight, compute) -> output
After = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]  # (equation, its outputs) -> outputs


class _Unknown:
    """Placeholder for every value that depends on the input when only the parameters are at hand."""


UNKNOWN = _Unknown()


class Program(NamedTuple):
    """A traced network."""

    plan: Plan
    output: Any  # tree of the output's shapes


def with_hook(apply: Apply, hook: Hook, after: After | None = None) -> Apply:
    """Returns `apply` with each layer's output computed by a hook.

    Args:
      apply: pure function `apply(params, *inputs)`.
      hook: called as `hook(layer, activation, weight, compute)` in order of execution; `compute(activation, weight)`
        is the layer as it was. With `hook = lambda layer, a, w, compute: compute(a, w)` nothing changes.
      after: gets every other equation that is run as it is, with its outputs, and returns those that take their place.
    Returns:
      A pure function of the same arguments; works under `jit`, `vmap` and `grad`. A `custom_jvp` or `custom_vjp` that
      holds a layer is differentiated through its body, not by its own rule.

    >>> doubled = with_hook(lambda params, x: x @ params["w"], lambda layer, a, w, compute: 2 * compute(a, w))
    >>> doubled({"w": jax.numpy.ones((3, 1))}, jax.numpy.ones((1, 3)))
    Array([[6.]], dtype=float32)
    """

    def hooked(params: PyTree, *inputs: PyTree) -> PyTree:
        return with_records(apply, lambda *layer: (hook(*layer), None), after)(params, *inputs)[0]

    return hooked


def with_records(
    apply: Apply, hook: Callable[..., tuple[Any, PyTree]], after: After | None = None
) -> Callable[..., tuple[PyTree, tuple]]:
    """Returns `apply` as `with_hook` does, for a hook that returns `(output, record)`; it also returns all records."""

    def recorded(params: PyTree, *inputs: PyTree) -> tuple[PyTree, tuple]:
        program = trace(apply, params, inputs)
        arguments = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)] + jax.tree.leaves(inputs)
        values, records = _run(program.plan, arguments, hook, after)
        return jax.tree.unflatten(jax.tree.structure(program.output), values), records

    return recorded


def map_weights(function: Callable[[Layer, Array], PyTree], apply: Apply, params: PyTree, x: PyTree) -> tuple:
    """Calls `function(layer, weight)` on each layer; weights are computed from the parameters alone.

    Args:
      function: gets the layer and its weight operand as the layer uses it.
      x: only shapes are read.
    Returns:
      What `function` returned, one entry a layer, in order of execution.

    >>> apply = lambda params, x: x @ (2 * params["w"])
    >>> x = jax.ShapeDtypeStruct((5, 1), "float32")
    >>> map_weights(lambda layer, weight: (layer.name, weight.shape), apply, {"w": jax.numpy.ones((1, 3))}, x)
    (('w', (1, 3)),)
    """
    plan = trace(apply, params, (x,)).plan
    inputs = [UNKNOWN] * len(jax.tree.leaves(x))

    def hook(layer: Layer, activation: Any, weight: Array, compute: Compute) -> tuple[Any, PyTree]:
        return UNKNOWN, function(layer, weight)

    given = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    return _run(plan, [*given, *inputs], hook)[1]


def trace(
    apply: Apply,
    params: PyTree,
    inputs: tuple,
    names: Sequence[str] | None = None,
    batched: Sequence[bool] | None = None,
) -> Program:
    """Traces `apply(params, *inputs)` and finds its layers; nothing is computed.

    Args:
      names: of the leaves of the parameters; None makes them from their paths.
      batched: whether each example has its own, for each leaf of the inputs; None is true for all.
    """
    apply, params = only_arrays(apply, params)
    closed, output = jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    batched = [True] * len(jax.tree.leaves(inputs)) if batched is None else batched
    return Program(make_plan(closed, names or make_names(paths), sizes, batched), output)


def only_arrays(apply: Apply, params: PyTree) -> tuple[Apply, PyTree]:
    """Takes leaves that are no arrays, such as an activation function of an Equinox module, out of the parameters.

    >>> apply = lambda params, x: params["activation"](x @ params["w"])
    >>> apply, params = only_arrays(apply, {"w": np.ones((2, 1), np.float32), "activation": jax.nn.relu})
    >>> params["activation"], apply(params, np.ones((1, 2), np.float32)).tolist()
    (None, [[2.0]])
    """
    leaves, tree = jax.tree.flatten(params)
    if all(is_array(leaf) for leaf in leaves):
        return apply, params

    others = tuple((at, leaf) for at, leaf in enumerate(leaves) if not is_array(leaf))
    return _Whole(apply, tree, others), jax.tree.unflatten(tree, [leaf if is_array(leaf) else None for leaf in leaves])


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A function with the leaves that are no arrays in their places; equal ones share what is compiled."""

    apply: Apply
    tree: Any
    others: tuple[tuple[int, Any], ...]  # place and leaf

    def __call__(self, params: PyTree, *inputs: PyTree) -> PyTree:
        leaves = jax.tree.leaves(params)
        for at, leaf in self.others:
            leaves.insert(at, leaf)
        return self.apply(jax.tree.unflatten(self.tree, leaves), *inputs)


def is_array(leaf: Any) -> bool:
    """Returns True for an array or a shape of one; a number of Python is part of the function."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _run(plan: Plan, arguments: Sequence[Any], hook: Callable, after: After | None = None) -> tuple[list[Any], tuple]:
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
            output, record = hook(step, operands[1 - step.weight_at], operands[step.weight_at], _make_compute(step))
            outputs, records = [output], (*records, record)
        elif isinstance(step, Plan) and (step.has_layers or unknown):
            outputs, inner = _call(equation, step, operands, hook, after)
            records = (*records, *inner)
        elif isinstance(step, Turns):
            outputs, inner = _run_turns(step, operands, hook, after)
            records = (*records, *inner)
        elif unknown:
            outputs = operands if equation.primitive.name == BARRIER else [UNKNOWN] * len(equation.outvars)
        else:
            outputs = run_equation(equation, operands)
            outputs = outputs if after is None else [*after(equation, outputs)]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars], records


def _run_turns(turns: Turns, operands: list[Any], hook: Callable, after: After | None) -> tuple[list[Any], tuple]:
    """Runs a scan turn by turn, and stacks what they put out."""
    first = turns.consts + turns.carried
    consts, carry, scanned = operands[: turns.consts], operands[turns.consts : first], operands[first:]
    rows: dict[int, list[Any]] = {}
    records: tuple = ()
    for plan, at in zip(turns.plans, turns.order, strict=True):
        entries = [UNKNOWN if whole is UNKNOWN else whole[at] for whole in scanned]
        values, inner = _run(plan, [*consts, *carry, *entries], hook, after)
        carry, rows[at], records = values[: turns.carried], values[turns.carried :], (*records, *inner)
    columns = zip(*(rows[at] for at in sorted(rows)), strict=True)
    stacked = [UNKNOWN if any(entry is UNKNOWN for entry in column) else jnp.stack(column) for column in columns]
    return [*carry, *stacked], records


def _call(
    equation: JaxprEqn, plan: Plan, operands: list[Any], hook: Callable, after: After | None
) -> tuple[list[Any], tuple]:
    """Runs a call in place; rematerialisation stays, since it bounds memory."""
    if "policy" not in equation.params or any(operand is UNKNOWN for operand in operands):
        return _run(plan, operands, hook, after)
    keep = {name: equation.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(lambda *arguments: _run(plan, arguments, hook, after), **keep)(*operands)


def _make_compute(layer: Layer) -> Compute:
    def compute(activation: Array, weight: Array) -> Array:
        operands = [weight, activation] if layer.weight_at == 0 else [activation, weight]
        return run_equation(layer.equation, operands)[0]

    return compute


def compute_in(layer: Layer, sum_type: Any) -> Compute:
    """Returns a layer as a function of its operands, of any type, that adds up products in `sum_type`."""
    typed = layer.equation.replace(params={**layer.equation.params, "preferred_element_type": np.dtype(sum_type)})
    return _make_compute(dataclasses.replace(layer, equation=typed))


def run_equation(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Runs one equation of a jaxpr: the only place that depends on how this version of JAX binds primitives."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        output = equation.primitive.bind(*functions, *operands, **params)
    return list(output) if equation.primitive.multiple_results else [output]
