"""The layer table of a network, read off its program."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from haqjax.tracing.batch_axes import count_examples, fill_prefix, list_leaves, with_axes
from haqjax.tracing.hooks import Apply, is_array, only_arrays, trace
from haqjax.tracing.jaxpr import Layer, Product
from haqjax.tracing.names import is_statistic, make_names, parts_of
from haqjax.tracing.rows import columns, read_product, read_row
from haqjax.types import LayerTable

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
    turns: int | None = None,
) -> LayerTable:
    """Reads the layer table of a network off its jaxpr; nothing is computed.

    Layers are products of a parameter with what is computed from the input, and lookups in a parameter by what is
    computed from it, as far as an output needs them. Products
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
      turns: that a `while` takes for one example, on average: the program does not tell.

    Returns:
      One row for each weight, in order of execution, for one example. A weight that is read at several places, or in
      every turn of a loop, is one row with the products of all uses. The branches of a `cond` or `switch` have rows of
      their own, with products as if each was taken once.

    Raises:
      ValueError: no layer; a weight that two layers read in different forms, or that changes in a loop; a layer in the
        condition of a `while`, or in one without `turns`; leaves of `x` that count different numbers of examples, or
        a layer that does not treat them alike; `batch_axis`, `is_state` or `names` that do not fit their tree; two
        layers of one name.

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
    batch, batched = count_examples(x, batch_axis), [axis is not None for _, _, axis in with_axes(x, batch_axis)]
    plan = trace(apply, arrays, (x,), _name_leaves(params, arrays, names), batched).plan
    found = tuple(plan.uses())
    _check_turns([*found, *plan.products], turns)
    often = [use.turns * (turns or 1) ** use.untold for use in found]
    read = [read_row(use, batch if use.batched else 1, each) for use, each in zip(found, often, strict=True)]
    rows = [row | {"lookup": use.lookup} for use, (row, _) in zip(found, read, strict=True)]
    repeats = [each for _, each in read]
    first, further = _join_rows(found, rows, repeats)
    outer = np.zeros(len(first), bool)
    outer[[use.index for use in found if use.reads_input]] = outer[list(plan.last)] = True
    return dataclasses.replace(
        _make_table(found, rows, repeats, first),
        other_parameters=np.array(_count_others(arrays, found, plan.reached, _find_state(params, arrays, is_state))),
        products=_read_products(plan.products, batch, turns),
        outer=outer,
        further=_make_table(found, rows, repeats, further) if further else None,
        further_of=np.array([found[place].index for place in further]) if further else None,
    )


def _check_turns(runs: Sequence[Layer | Product], turns: int | None) -> None:
    if turns is not None and (isinstance(turns, bool) or turns < 1):
        raise ValueError(f"turns is {turns!r}: expected how many a `while` takes, 1 or more")
    unknown = [run for run in runs if run.untold]
    if unknown and turns is None:
        name = f"layer {unknown[0].name!r}" if isinstance(unknown[0], Layer) else "a product"
        raise ValueError(
            f"{name} is in a `while`, and the program does not tell how many turns it takes: say it by `turns`, such "
            "as turns=10"
        )


def _join_rows(
    found: Sequence[Layer], rows: Sequence[dict[str, Any]], repeats: list[int]
) -> tuple[list[int], list[int]]:
    """Adds up uses of a weight on inputs of equal sizes; returns the first use of each, and those of other sizes."""
    kept: dict[int, list[int]] = {}
    for place, use in enumerate(found):
        mine = kept.setdefault(use.index, [])
        alike = next((other for other in mine if rows[other] == rows[place]), None)
        if alike is None:
            mine.append(place)
        else:
            repeats[alike] += repeats[place]
    # Of a table that is looked up in and multiplied with, the product comes first.
    places = [sorted(kept[index], key=lambda place: found[place].lookup) for index in sorted(kept)]
    return [first for first, *_ in places], [place for _, *others in places for place in others]


def _make_table(
    found: Sequence[Layer], rows: Sequence[dict[str, Any]], repeats: Sequence[Any], places: Sequence[int]
) -> LayerTable:
    often = np.array([repeats[place] for place in places], np.int64)
    return LayerTable(
        names=tuple(found[place].name for place in places),
        dense=np.array([found[place].dense or found[place].lookup for place in places]),
        other_parameters=np.array(0),
        repeats=None if (often == 1).all() else often,
        **_table_columns([rows[place] for place in places]),
    )


def _table_columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = columns(rows)
    lookup = found.pop("lookup").astype(bool)
    return found | {"lookup": lookup if lookup.any() else None}


def _name_leaves(params: PyTree, arrays: PyTree, names: Names | None) -> list[str]:
    paths = [path for path, _ in list_leaves(arrays)]
    if names is None:
        return make_names(paths)
    found = [names(parts_of(path)) for path in paths] if callable(names) else _of_arrays("names", names, params)
    bad = next((name for name in found if not isinstance(name, str) or found.count(name) > 1), None)
    if bad is not None:
        raise ValueError(f"names gives {bad!r}: expected a string of its own for each leaf of the parameters")
    return found


def _find_state(params: PyTree, arrays: PyTree, is_state: IsState) -> list[bool]:
    if callable(is_state):
        return [is_state(path) for path, _ in list_leaves(arrays)]
    return _of_arrays("is_state", is_state, params)


def _of_arrays(option: str, values: PyTree, params: PyTree) -> list[Any]:
    """Lists the values of the leaves that are arrays."""
    pairs = zip(fill_prefix(option, values, params), jax.tree.leaves(params), strict=True)
    return [value for value, leaf in pairs if is_array(leaf)]


def _count_others(params: PyTree, found: Sequence[Layer], reached: Sequence[bool], states: Sequence[bool]) -> int:
    """Counts the learned numbers outside the layers' weights."""
    stored: dict[int, int] = {}
    for use in found:
        if use.use == 0:
            stored[use.leaf] = stored.get(use.leaf, 0) + use.stored
            stored |= {at: math.prod(jax.tree.leaves(params)[at].shape) for at in use.joined}
    total = 0
    for at, (leaf, state) in enumerate(zip(jax.tree.leaves(params), states, strict=True)):
        if reached[at] and not state and jnp.issubdtype(leaf.dtype, jnp.inexact):
            left = math.prod(leaf.shape) - stored.get(at, 0)
            total += left * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
    return total


def _read_products(products: Sequence[Product], batch: int, turns: int | None) -> LayerTable | None:
    """Reads the products without a weight as dense layers whose second operand is the weight; None where there is none.

    A convolution of two activations becomes the matrix product of its patches.
    """
    if not products:
        return None
    return LayerTable(
        names=tuple(f"product {at}" for at in range(len(products))),
        dense=np.ones(len(products), bool),
        other_parameters=np.array(0),
        **columns([read_product(product, batch, turns) for product in products]),
    )
