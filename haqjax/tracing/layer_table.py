"""The layer table of a network, read off its program."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from haqjax.reading import quote
from haqjax.tracing.hooks import Apply, is_array, only_arrays, trace
from haqjax.tracing.jaxpr import Layer, Product, dtype_of, elements, shape_of
from haqjax.tracing.names import is_statistic, make_names, parts_of
from haqjax.types import LayerTable

COMPLEX_PRODUCTS = 4  # real products of a complex one

IsState = Any  # a predicate on paths, or a tree of booleans
Names = Any  # a function of the parts of a path, or a tree of strings


def layers(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    *,
    batch_axis: PyTree = 0,
    is_state: IsState = is_statistic,
    names: Names | None = None,
) -> LayerTable:
    """Reads the layer table of a network off its jaxpr; nothing is computed.

    Layers are products of a parameter with what is computed from the input, as far as an output needs them. Products
    that carry no weight, such as those of attention, stand in `products` of the table.

    Args:
      apply: pure function `apply(params, x)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s; leaves that are no arrays are left alone.
      x: one example batch or its `ShapeDtypeStruct`s, of any number of examples.
      batch_axis: the axis of `x` that counts examples: a number for every leaf of at least that rank, or a tree of
        numbers; None for a leaf that all examples share, and instead of the tree where `x` is one example.
      is_state: which leaves are not learned, such as running statistics: a predicate on paths, as `jax.tree_util` gives
        them, or a tree of booleans. Integers, random keys and what no output depends on are never counted as learned.
      names: for the layers, in place of the paths of their weights: a function of a path's parts, or a tree of strings.

    Returns:
      One row for each layer, in order of execution, for one example.

    Raises:
      ValueError: no layer; a weight used by two layers; a layer inside `while` or `cond`, or the same in every turn of
        a `scan`; leaves of `x` that count different numbers of examples, or a layer that does not treat them alike;
        `batch_axis`, `is_state` or `names` that do not fit their tree; two layers of one name.

    >>> apply = lambda params, x: jax.nn.relu(x @ params["first"]["kernel"]) @ params["second"]["kernel"]
    >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    >>> params = {"first": {"kernel": shape(8, 16)}, "second": {"kernel": shape(16, 4)}}
    >>> table = layers(apply, params, shape(1, 8))
    >>> table.names, table.macs
    (('first', 'second'), array([128,  64]))
    >>> layers(apply, params, shape(5, 8), batch_axis=None).macs  # one example of five rows
    array([640, 320])
    """
    apply, arrays = only_arrays(apply, params)
    batch, batched = count_examples(x, batch_axis), [axis is not None for _, _, axis in _with_axes(x, batch_axis)]
    plan = trace(apply, arrays, (x,), _name_leaves(params, arrays, names), batched).plan
    found = tuple(plan.layers())
    rows = [
        (_read_dense if layer.dense else _read_convolution)(layer, batch if layer.batched else 1) for layer in found
    ]
    return LayerTable(
        names=tuple(layer.name for layer in found),
        dense=np.array([layer.dense for layer in found]),
        other_parameters=np.array(_count_others(arrays, found, plan.reached, _find_state(params, arrays, is_state))),
        products=_read_products(plan.products, batch),
        outer=np.array([layer.reads_input or layer.index in plan.last for layer in found]),
        **_columns(rows),
    )


def count_examples(x: PyTree, batch_axis: PyTree) -> int:
    """Counts the examples of a batch; 1 where no leaf of it has an axis for them.

    Raises:
      ValueError: leaves that differ, or lack their axis; names them and `batch_axis`.

    >>> x = {"image": np.ones((3, 8)), "anchors": np.ones((7, 2)), "temperature": np.float32(1)}
    >>> count_examples(x, {"image": 0, "anchors": None, "temperature": None})
    3
    >>> count_examples(x, 0)
    Traceback (most recent call last):
    ValueError: the leaves of `x` count different numbers of examples: ...
    """
    counts = {}
    for path, leaf, axis in _with_axes(x, batch_axis):
        sizes = np.shape(leaf)
        if axis is None:
            continue
        if not -len(sizes) <= axis < len(sizes):
            raise ValueError(f"batch_axis of {quote(path)} is {axis}, but its shape is {sizes}")
        counts[path] = sizes[axis]
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{quote(path)} {count}" for path, count in list(counts.items())[:4])
        raise ValueError(
            f"the leaves of `x` count different numbers of examples: {shown}; say which axis of each counts them, None "
            "for a leaf that all examples share, as in batch_axis={'image': 0, 'anchors': None}"
        )
    if 0 in counts.values():
        raise ValueError("the batch has no examples: pass at least one")
    return next(iter(counts.values()), 1)


def _with_axes(x: PyTree, batch_axis: PyTree) -> list[tuple[str, Any, int | None]]:
    """Lists the path, the leaf and the axis of every array of a batch.

    One number is for the leaves that have such an axis; a tree of numbers is a prefix of the batch's.
    """
    axes = _spread("batch_axis", batch_axis, x)
    if isinstance(batch_axis, int | np.integer):
        ranks = [np.ndim(leaf) for leaf in jax.tree.leaves(x)]
        axes = [axis if -rank <= axis < rank else None for axis, rank in zip(axes, ranks, strict=True)]
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in _leaves(x)]
    return [(path or "x", leaf, axis) for path, leaf, axis in zip(paths, jax.tree.leaves(x), axes, strict=True)]


def _leaves(tree: PyTree) -> list[tuple[tuple, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _spread(option: str, values: PyTree, tree: PyTree) -> list[Any]:
    """Lists the value of each leaf of a tree, where the tree of values is a prefix of it, or a single value."""
    none = {"is_leaf": lambda value: value is None}
    try:
        whole = jax.tree.map(lambda value, part: jax.tree.map(lambda leaf: value, part), values, tree, **none)
    except ValueError as error:
        where = str(error).splitlines()[0]
        raise ValueError(f"{option} does not fit its tree ({where}): give one value, or a prefix of the tree") from None
    return jax.tree.leaves(whole, **none)


def _name_leaves(params: PyTree, arrays: PyTree, names: Names | None) -> list[str]:
    paths = [path for path, _ in _leaves(arrays)]
    if names is None:
        return make_names(paths)
    found = [names(parts_of(path)) for path in paths] if callable(names) else _of_arrays("names", names, params)
    bad = next((name for name in found if not isinstance(name, str) or found.count(name) > 1), None)
    if bad is not None:
        raise ValueError(f"names gives {bad!r}: expected a string of its own for each leaf of the parameters")
    return found


def _find_state(params: PyTree, arrays: PyTree, is_state: IsState) -> list[bool]:
    if callable(is_state):
        return [is_state(path) for path, _ in _leaves(arrays)]
    return _of_arrays("is_state", is_state, params)


def _of_arrays(option: str, values: PyTree, params: PyTree) -> list[Any]:
    """Lists the values of the leaves that are arrays."""
    pairs = zip(_spread(option, values, params), jax.tree.leaves(params), strict=True)
    return [value for value, leaf in pairs if is_array(leaf)]


def _count_others(params: PyTree, found: Sequence[Layer], reached: Sequence[bool], states: Sequence[bool]) -> int:
    """Counts the learned numbers outside the layers' weights."""
    stored: dict[int, int] = {}
    for layer in found:
        stored[layer.leaf] = stored.get(layer.leaf, 0) + layer.stored
    total = 0
    for at, (leaf, state) in enumerate(zip(jax.tree.leaves(params), states, strict=True)):
        if reached[at] and not state and jnp.issubdtype(leaf.dtype, jnp.inexact):
            left = math.prod(leaf.shape) - stored.get(at, 0)
            total += left * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
    return total


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {field: np.array([row[field] for row in rows], np.int64) for field in rows[0]}


def _read_dense(layer: Layer, batch: int) -> dict[str, Any]:
    contract, batched = layer.dot_axes
    inputs, groups = elements(layer.weight_shape, contract), elements(layer.weight_shape, batched)
    total = elements(layer.activation_shape, range(len(layer.activation_shape)))
    rows = _per_example(total // (inputs * groups), batch, layer)
    return _matrix_product(rows, inputs, elements(layer.weight_shape, layer.channel_axes) // groups, groups)


def _matrix_product(rows: int, inputs: int, outputs: int, groups: int) -> dict[str, Any]:
    """Describes `groups` products of [rows, inputs] and [inputs, outputs]."""
    return dict(
        kernel=(1, 1),
        stride=(1, 1),
        upsampling=(1, 1),
        in_channels=inputs * groups,
        out_channels=outputs * groups,
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
        upsampling=plane(params["lhs_dilation"]),
        in_channels=layer.activation_shape[axes.lhs_spec[1]],
        out_channels=layer.weight_shape[axes.rhs_spec[0]],
        groups=params["feature_group_count"],
        in_size=plane([layer.activation_shape[axis] for axis in axes.lhs_spec[2:]], repeats),
        out_size=plane([output_shape[axis] for axis in axes.out_spec[2:]], repeats),
    )


def _read_products(products: Sequence[Product], batch: int) -> LayerTable | None:
    """Reads the products without a weight as dense layers whose second operand is the weight; None where there is none.

    A convolution of two activations becomes the matrix product of its patches.
    """
    if not products:
        return None
    return LayerTable(
        names=tuple(f"product {at}" for at in range(len(products))),
        dense=np.ones(len(products), bool),
        other_parameters=np.array(0),
        products=None,
        outer=None,
        **_columns([_read_product(product, batch) for product in products]),
    )


def _read_product(product: Product, batch: int) -> dict[str, Any]:
    equation = product.equation
    (left, right), output = map(shape_of, equation.invars), shape_of(equation.outvars[0])
    times = product.times
    if jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.complexfloating):
        times *= COMPLEX_PRODUCTS
    if equation.primitive.name == "dot_general":
        (contract, _), (batched, _) = equation.params["dimension_numbers"]
        groups, inputs = elements(left, batched), elements(left, contract)
        rows = math.prod(left) // (groups * inputs)
    else:
        outputs = right[equation.params["dimension_numbers"].rhs_spec[0]]
        groups, inputs, rows = 1, math.prod(right) // outputs, math.prod(output) // outputs
    sizes = [groups, rows, math.prod(output) // (groups * rows), times]
    shares_batch = next((at for at, size in enumerate(sizes) if size % batch == 0), 1)
    sizes[shares_batch] = -(-sizes[shares_batch] // batch)
    groups, rows, outputs, times = sizes
    return _matrix_product(rows * times, inputs, outputs, groups)


def _per_example(total: int, batch: int, layer: Layer) -> int:
    if total % batch:
        raise ValueError(
            f"layer {layer.name!r} does not treat the {batch} examples of the batch alike (shape "
            f"{layer.activation_shape}): say which axis of `x` counts examples by `batch_axis`"
        )
    return total // batch
