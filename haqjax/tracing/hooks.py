"""Hooks: any JAX function as a network, run with a hook in place of each of its layers.

`apply(params, x)` may come from Flax NNX or Linen, Equinox, Haiku or plain code. Batch normalisation, products of two
activations (attention) and element-wise weights are left alone. The hook is Python that runs while JAX traces: nothing
of it is left in the compiled program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, PyTree

from haqjax.tracing.jaxpr import BARRIER, Layer, Plan, elements, make_plan, shape_of
from haqjax.types import LayerTable

Apply = Callable[..., PyTree]
Compute = Callable[[Array, Array], Array]  # (activation, weight) -> output of the layer
Hook = Callable[[Layer, Any, Array, Compute], Any]  # (layer, activation, weight, compute) -> output
After = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]  # (equation, its outputs) -> outputs

WEIGHT_NAMES = ("kernel", "weight", "w")  # a last path component that only says "this is the weight"
# Of batch normalisation: not learned.
STATISTICS = ("mean", "var", "running_mean", "running_var", "num_batches_tracked")


class _Unknown:
    """Placeholder for every value that depends on the input when only the parameters are at hand."""


UNKNOWN = _Unknown()


class _Program(NamedTuple):
    plan: Plan
    output: Any  # tree of the output's shapes


def layers(apply: Apply, params: PyTree, x: PyTree) -> LayerTable:
    """Reads the layer table of a network off its jaxpr; nothing is computed.

    Args:
      apply: pure function `apply(params, x)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      x: one example batch or its `ShapeDtypeStruct`s; the first axis of its first leaf counts examples, any number.
    Returns:
      One row for each layer, in order of execution, for one example.
    Raises:
      ValueError: no layer; a weight used by two layers; a layer inside `scan`, `while` or `cond`.

    >>> apply = lambda params, x: jax.nn.relu(x @ params["first"]["kernel"]) @ params["second"]["kernel"]
    >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    >>> params = {"first": {"kernel": shape(8, 16)}, "second": {"kernel": shape(16, 4)}}
    >>> table = layers(apply, params, shape(1, 8))
    >>> table.names, table.macs
    (('first', 'second'), array([128,  64]))
    """
    plan = _trace(apply, params, (x,)).plan
    batch = jax.tree.leaves(x)[0].shape[0]
    rows = [(_read_dense if layer.dense else _read_convolution)(layer, batch) for layer in plan.layers()]
    columns = {field: np.array([row[field] for row in rows], np.int64) for field in rows[0]}
    weights = {layer.leaf for layer in plan.layers()}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    others = (leaf.size for i, (path, leaf) in enumerate(leaves) if i not in weights and not is_statistic(path))
    return LayerTable(
        names=tuple(layer.name for layer in plan.layers()),
        dense=np.array([layer.dense for layer in plan.layers()]),
        other_parameters=np.array(sum(others), np.int64),
        **columns,
    )


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
        program = _trace(apply, params, inputs)
        values, records = _run(program.plan, jax.tree.leaves((params, inputs)), hook, after)
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
    plan = _trace(apply, params, (x,)).plan
    inputs = [UNKNOWN] * len(jax.tree.leaves(x))

    def hook(layer: Layer, activation: Any, weight: Array, compute: Compute) -> tuple[Any, PyTree]:
        return UNKNOWN, function(layer, weight)

    return _run(plan, [*jax.tree.leaves(params), *inputs], hook)[1]


def _trace(apply: Apply, params: PyTree, inputs: tuple) -> _Program:
    closed, output = jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return _Program(make_plan(closed, _names(paths), sizes, len(jax.tree.leaves(inputs))), output)


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
        elif unknown:
            outputs = operands if equation.primitive.name == BARRIER else [UNKNOWN] * len(equation.outvars)
        else:
            outputs = run_equation(equation, operands)
            outputs = outputs if after is None else [*after(equation, outputs)]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in plan.jaxpr.outvars], records


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


def _read_dense(layer: Layer, batch: int) -> dict[str, Any]:
    contract, batched = layer.dot_axes
    inputs, groups = elements(layer.weight_shape, contract), elements(layer.weight_shape, batched)
    total = elements(layer.activation_shape, range(len(layer.activation_shape)))
    rows = _per_example(total // (inputs * groups), batch, layer)
    outputs = elements(layer.weight_shape, layer.channel_axes)
    return dict(
        kernel=(1, 1),
        stride=(1, 1),
        in_channels=inputs * groups,
        out_channels=outputs,
        groups=groups,
        in_size=(rows, 1),
        out_size=(rows, 1),
    )


def _read_convolution(layer: Layer, batch: int) -> dict[str, Any]:
    params = layer.equation.params
    if params["batch_group_count"] != 1:
        raise ValueError(f"layer {layer.name!r} has batch_group_count {params['batch_group_count']}: only 1 is a layer")
    axes = params["dimension_numbers"]
    repeats = _per_example(layer.activation_shape[axes.lhs_spec[0]], batch, layer)
    output_shape = shape_of(layer.equation.outvars[0])

    def plane(sizes: Sequence[int], times: int = 1) -> tuple[int, int]:
        *rows, last = (1, *sizes) if len(sizes) < 2 else sizes
        return int(np.prod(rows)) * times, int(last)

    return dict(
        kernel=plane([layer.weight_shape[axis] for axis in axes.rhs_spec[2:]]),
        stride=plane(params["window_strides"]),
        in_channels=layer.activation_shape[axes.lhs_spec[1]],
        out_channels=layer.weight_shape[axes.rhs_spec[0]],
        groups=params["feature_group_count"],
        in_size=plane([layer.activation_shape[axis] for axis in axes.lhs_spec[2:]], repeats),
        out_size=plane([output_shape[axis] for axis in axes.out_spec[2:]], repeats),
    )


def _per_example(total: int, batch: int, layer: Layer) -> int:
    if total % batch:
        raise ValueError(
            f"layer {layer.name!r} does not treat the {batch} examples of the batch alike (shape "
            f"{layer.activation_shape}): the first axis of `x` must count examples"
        )
    return total // batch


def is_statistic(path: Sequence[Any]) -> bool:
    """Returns True for the path of a leaf that is a running statistic of batch normalisation, by its name.

    >>> from jax.tree_util import DictKey
    >>> is_statistic((DictKey("norm"), DictKey("mean"))), is_statistic((DictKey("norm"), DictKey("scale")))
    (True, False)
    """
    parts = _parts(path)
    return bool(parts) and (parts[-1] in STATISTICS or parts[0] == "batch_stats")


def _parts(path: Sequence[Any]) -> list[str]:
    """Returns path components as plain text, without the wrappers that Flax puts around them."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    while len(parts) > 1 and parts[-1] in ("value", "raw_value") and not hasattr(path[len(parts) - 1], "key"):
        parts.pop()
    return parts[1:] if len(parts) > 1 and parts[0] == "params" else parts


def _names(paths: Sequence[Sequence[Any]]) -> list[str]:
    """Makes a readable, unique name for each leaf: `stem.conv` for `params["stem"]["conv"]["kernel"]`."""
    parts = [_parts(path) for path in paths]
    full = [".".join(each) or "weight" for each in parts]
    short = [".".join(each[:-1]) if each and each[-1] in WEIGHT_NAMES else "" for each in parts]
    return [s if s and short.count(s) == 1 and s not in full else f for s, f in zip(short, full, strict=True)]
