"""Observations of an agent at each of a network's 2L decisions: HAQ's ten numbers, and costs."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.types import WIDTHS, Budget, CostTable, LayerTable

COSTS = 2  # numbers of `describe_costs`
FEWER = 4  # bits, whose cost is held against that of 8
FIRST = 1.0  # what was decided before the first decision: the input image, 8 bits of 8


def describe(layers: LayerTable) -> Float[Array, "2L 9"]:
    """Computes the nine numbers that do not depend on earlier decisions.

    They are HAQ's (Wang et al. 2019, section 3.1): layer index, input channels, output channels, kernel size, stride,
    area of the input map, number of weights, depthwise or not, and whether the decision is on weights (1) or
    activations (0). A dense layer has kernel 1 and stride 0. Each number is scaled to [0, 1] over the decisions, from
    its least to its greatest. One that is the same everywhere tells nothing: it is left alone if it lies in [0, 1],
    else brought there, because a constant input of thousands would drown the others.

    Returns:
      A row for each decision: (layer 0, weights), (layer 0, activations), (layer 1, weights), ...
    """
    count = len(layers)
    dense = np.asarray(layers.dense)
    columns = [
        np.arange(count),
        layers.in_channels,
        layers.out_channels,
        np.where(dense, 1, layers.kernel[:, 0]),
        np.where(dense, 0, layers.stride[:, 0]),
        np.prod(np.asarray(layers.in_size, np.int64), axis=-1),
        layers.weights,
        layers.depthwise,
    ]
    rows = np.repeat(np.stack(columns, axis=-1).astype(np.float64), 2, axis=0)
    rows = np.column_stack([rows, np.tile([1.0, 0.0], count)])  # weights, then activations
    least, most = rows.min(axis=0), rows.max(axis=0)
    span = np.where(most > least, most - least, 1.0)
    scaled = np.where(most > least, (rows - least) / span, np.clip(rows, 0, 1))
    return jnp.asarray(scaled, jnp.float32)


def describe_costs(table: CostTable, budget: Budget) -> Float[Array, "2L 2"]:
    """Computes the cost of each decision in limited resources: no part of HAQ's ten numbers.

    What the layer costs at 8 bits, and what 4 bits in this entry alone would save, each over the greatest of its kind;
    the mean over the resources that have a limit. Peak memory is no sum over layers: it is left out. What a machine
    cannot compute at these widths counts as nothing.

    >>> from haqjax.types import Cost
    >>> each = jnp.ones((2, 8, 8)).at[1].set(4.0).at[1, 3, 7].set(2.0)  # layer 1 saves by weights
    >>> budget = Budget(jnp.float32(3.0), jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    >>> describe_costs(CostTable(each, each, each, Cost(0, 0, 0)), budget).tolist()
    [[0.25, 0.0], [0.25, 0.0], [1.0, 1.0], [1.0, 0.0]]
    """
    columns, count = jnp.zeros((2 * len(table), COSTS)), jnp.float32(0)
    for name in ("latency", "energy", "size", "bops"):
        costs, limit = getattr(table, name), getattr(budget, name)
        if costs is None or limit is None:
            continue
        each, wide, few = jnp.asarray(costs, jnp.float32), WIDTHS - 1, FEWER - 1
        whole = each[:, wide, wide]
        freed = whole[:, None] - jnp.stack([each[:, few, wide], each[:, wide, few]], axis=1)
        columns_of = jnp.stack([jnp.repeat(whole, 2), freed.ravel()], axis=1)
        columns_of = jnp.where(jnp.isfinite(columns_of), columns_of, 0)
        columns_of = columns_of / jnp.maximum(
            jnp.abs(columns_of).max(axis=0, keepdims=True), jnp.finfo(jnp.float32).tiny
        )
        limited = jnp.isfinite(limit)
        columns, count = columns + jnp.where(limited, columns_of, 0), count + limited
    return columns / jnp.maximum(count, 1)


def observe(features: Float[Array, "2L f"], policy: Int[Array, "*n L 2"]) -> Float[Array, "*n 2L f+1"]:
    """Observations of walks over the layers: each decision's features and the width decided before it, over 8.

    Args:
      features: of each decision.
      policy: what was decided on the walks, weights before activations.

    >>> observe(jnp.zeros((4, 9)), jnp.asarray([[8, 4], [2, 6]]))[:, -1].tolist()
    [1.0, 1.0, 0.5, 0.25]
    """
    decided = policy.reshape(*policy.shape[:-2], -1) / WIDTHS
    first = jnp.full((*decided.shape[:-1], 1), FIRST)
    before = jnp.concatenate([first, decided[..., :-1]], axis=-1)[..., None]
    return jnp.concatenate([jnp.broadcast_to(features, (*before.shape[:-1], features.shape[-1])), before], axis=-1)
