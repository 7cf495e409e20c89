"""Choices of a linear programme: the pairs of widths that each layer may have, as columns."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from haqjax.policies.bounds import ladder
from haqjax.policies.cost import tables
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Bounds, Budget, Cost, CostTable


class Choices(NamedTuple):
    """C pairs of widths for G groups of tied layers; most groups are one layer."""

    group_of: Int[np.ndarray, "L"]
    group: Int[np.ndarray, "C"]  # rising
    bits: Int[np.ndarray, "C 2"]
    loss: Float[np.ndarray, "C"]  # summed over the group
    fractions: Float[np.ndarray, "R C"]  # costs as fractions of the R limits, summed over the group
    room: Float[np.ndarray, "R"]  # the fractions that are left to the groups: 1, less what no policy changes


def list_choices(sensitivity: Float[np.ndarray, "L 8 8"], table: CostTable, bounds: Bounds, budget: Budget) -> Choices:
    """Lists every pair that the bounds allow, with what it loses and costs; pinned layers have one.

    Args:
      sensitivity: loss of each layer at each pair of widths.
      table, bounds, budget: as for `haqjax.project`; peak memory, which is no sum, is not among the costs.
    """
    first = np.arange(len(table)) if bounds.tied is None else np.asarray(bounds.tied)
    leaders, group_of = np.unique(first, return_inverse=True)
    there = allowed(bounds)[leaders]
    group, weight, activation = np.nonzero(there[:, WEIGHT, :, None] & there[:, ACTIVATION, None, :])
    fractions, room = limited(table, budget)

    def collect(values: Float[np.ndarray, "L 8 8"]) -> Float[np.ndarray, "C"]:
        total = np.zeros((len(leaders), WIDTHS, WIDTHS))
        np.add.at(total, group_of, values)
        return total[group, weight, activation]

    costs = np.array([collect(values) for values in fractions]).reshape(len(fractions), len(group))
    bits = np.stack([weight, activation], axis=-1) + 1
    return Choices(group_of, group, bits, collect(sensitivity), costs, room)


def allowed(bounds: Bounds) -> Bool[np.ndarray, "L 2 8"]:
    """Marks the widths that each entry may have, by bits - 1."""
    widths, _ = ladder(bounds)
    there = np.zeros((*bounds.low.shape, WIDTHS), bool)
    np.put_along_axis(there, np.asarray(widths) - 1, True, axis=-1)
    return there


def limited(table: CostTable, budget: Budget) -> tuple[list[Float[np.ndarray, "L 8 8"]], Float[np.ndarray, "R"]]:
    """Divides the tables of resources by their limits, and says what is left of each limit that no policy changes."""
    fractions, room = [], []
    for name, values in zip(Cost._fields, tables(table), strict=False):
        limit, fixed = getattr(budget, name), getattr(table.fixed, name)
        if limit is None or np.isposinf(limit):
            continue
        fractions.append(np.asarray(values, np.float64) / float(limit))
        room.append(1 - (0.0 if fixed is None else float(fixed)) / float(limit))
    return fractions, np.array(room)


def without_dominated(choices: Choices) -> Choices:
    """Leaves out the pairs that another pair of the group beats in every respect; of equals the first stays."""
    value = np.concatenate([choices.loss[None], choices.fractions])
    keep = np.ones(len(choices.group), bool)
    for group in range(choices.group[-1] + 1):
        rows = np.flatnonzero(choices.group == group)
        mine = value[:, rows]
        no_worse = (mine[:, :, None] <= mine[:, None, :]).all(axis=0)  # [by, of]
        equal = no_worse & no_worse.T
        beaten = no_worse & (~equal | (np.arange(len(rows))[:, None] < np.arange(len(rows))[None]))
        keep[rows] = ~beaten.any(axis=0)
    return choices._replace(
        group=choices.group[keep],
        bits=choices.bits[keep],
        loss=choices.loss[keep],
        fractions=choices.fractions[:, keep],
    )


def to_policy(choices: Choices, taken: Int[np.ndarray, "G"]) -> Int[np.ndarray, "L 2"]:
    """Makes the policy in which each group has the pair at these columns, in the order of groups."""
    return choices.bits[taken][choices.group_of].astype(np.int32)
