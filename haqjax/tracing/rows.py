"""Rows of the layer table: the sizes of one layer, or product, for one example."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from haqjax.tracing.jaxpr import Layer, Product, dtype_of, elements, shape_of

COMPLEX_PRODUCTS = 4  # real products of a complex one


def read_row(layer: Layer, batch: int, turns: int) -> tuple[dict[str, Any], int]:
    """Reads the sizes of a layer for one example, and how often it runs for that.

    A loop may go over the examples, as `jax.lax.map` does: then its turns are divided among them.

    Args:
      turns: of the loops around it.
    """
    read = _read_dense if layer.dense else _read_lookup if layer.lookup else _read_convolution
    total = _count_rows(layer)
    if total % batch and turns % batch == 0:
        return read(layer, total), turns // batch
    return read(layer, _per_example(total, batch, layer)), turns


def _count_rows(layer: Layer) -> int:
    """Counts the rows of a matrix product, the entries that a lookup picks, or the maps of a convolution."""
    if layer.dense:
        contract, batched = layer.dot_axes
        summed = elements(layer.weight_shape, contract) * elements(layer.weight_shape, batched)
        return math.prod(layer.activation_shape) // summed
    if layer.lookup:
        return math.prod(layer.activation_shape[:-1])
    return layer.activation_shape[layer.equation.params["dimension_numbers"].lhs_spec[0]]


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a column of each field of some rows."""
    return {field: np.array([row[field] for row in rows], np.int64) for field in rows[0]}


def _read_dense(layer: Layer, rows: int) -> dict[str, Any]:
    contract, batched = layer.dot_axes
    inputs, groups = elements(layer.weight_shape, contract), elements(layer.weight_shape, batched)
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


def _read_lookup(layer: Layer, entries: int) -> dict[str, Any]:
    """Reads a table of which entries are picked: out_size counts those of an example."""
    sizes = elements(layer.weight_shape, layer.channel_axes), math.prod(layer.weight_shape)
    return _matrix_product(entries, sizes[0], sizes[1] // sizes[0], 1)


def _read_convolution(layer: Layer, repeats: int) -> dict[str, Any]:
    params = layer.equation.params
    if params["batch_group_count"] != 1:
        raise ValueError(f"layer {layer.name!r} has batch_group_count {params['batch_group_count']}: only 1 is a layer")
    axes, output_shape = params["dimension_numbers"], shape_of(layer.equation.outvars[0])

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


def read_product(product: Product, batch: int, turns: int | None) -> dict[str, Any]:
    """Reads a product without a weight as a matrix product."""
    equation = product.equation
    (left, right), output = map(shape_of, equation.invars), shape_of(equation.outvars[0])
    times = product.turns * (turns or 1) ** product.untold
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
