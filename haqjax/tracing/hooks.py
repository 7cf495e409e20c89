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
import numpy as np
from jaxtyping import Array, PyTree

from haqjax.tracing.interpreter import UNKNOWN, After, Compute, Computed, run_plan
from haqjax.tracing.jaxpr import Layer, Plan
from haqjax.tracing.names import make_names
from haqjax.tracing.plan import make_plan

Apply = Callable[..., PyTree]
Hook = Callable[[Layer, Any, Array, Compute], Any]  # (layer, activation, weight, compute) -> output


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
    """Returns `apply` as `with_hook` does, for a hook that returns `(output, record)`; it also returns all records.

    One record for each use of a layer, in order of execution. In a loop that stays one it has an axis of turns in
    front; in a branch that is not taken it is zero.
    """

    def recorded(params: PyTree, *inputs: PyTree) -> tuple[PyTree, tuple]:
        program = trace(apply, params, inputs)
        arguments = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)] + jax.tree.leaves(inputs)
        values, records = run_plan(program.plan, arguments, hook, after)
        return jax.tree.unflatten(jax.tree.structure(program.output), values), records

    return recorded


def map_weights(
    function: Callable[[Layer, Array], PyTree], apply: Apply, params: PyTree, x: PyTree, *, each_use: bool = False
) -> tuple:
    """Calls `function(layer, weight)` on each layer; weights are computed from the parameters alone.

    Args:
      function: gets the layer and its weight operand as the layer uses it.
      x: only shapes are read.
      each_use: call it on every use of a weight, not on the first alone.
    Returns:
      What `function` returned, one entry a layer, or a use, in order of execution.

    >>> apply = lambda params, x: x @ (2 * params["w"])
    >>> x = jax.ShapeDtypeStruct((5, 1), "float32")
    >>> map_weights(lambda layer, weight: (layer.name, weight.shape), apply, {"w": jax.numpy.ones((1, 3))}, x)
    (('w', (1, 3)),)
    """
    plan = trace(apply, params, (x,)).plan
    inputs = [UNKNOWN] * len(jax.tree.leaves(x))

    def hook(layer: Layer, activation: Any, weight: Array, compute: Compute) -> tuple[Any, PyTree]:
        return UNKNOWN, (layer, function(layer, weight) if layer.use == 0 or each_use else None)

    given = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    found = run_plan(plan, [*given, *inputs], hook)[1]
    return tuple(value for layer, value in found if layer.use == 0 or each_use)


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


def compute_in(layer: Layer, sum_type: Any) -> Compute:
    """Returns a layer as a function of its operands, of any type, that adds up products in `sum_type`."""
    typed = layer.equation.replace(params={**layer.equation.params, "preferred_element_type": np.dtype(sum_type)})
    return Computed(dataclasses.replace(layer, equation=typed))
