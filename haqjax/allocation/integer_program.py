"""Integer linear programme of allocation: the best policy within budgets when the losses of layers add up."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # each of its parts is imported where it is first used: all take a second
from jaxtyping import Float, Int

from haqjax.allocation._highs_output import hide_highs_output
from haqjax.allocation.additive import Sensitivity, guard, predict, to_pairs
from haqjax.allocation.choices import Choices, list_choices, to_policy, without_dominated
from haqjax.policies.budgets import TOLERANCE, fits_exactly
from haqjax.types import ACTIVATION, FULL_PRECISION, WIDTHS, Bounds, Budget, CostTable, Lifetimes

GAP = 1e-6  # relative: how far the loss may be from the least one
SECONDS = 10.0  # the most that one programme may take
INFEASIBLE = 2  # status of scipy.optimize.milp


class Allocation(NamedTuple):
    """A policy from sensitivities."""

    policy: Int[np.ndarray, "L 2"]
    loss: float  # what the sensitivities add up to
    bound: float  # no policy within the budget has less


class Programme(NamedTuple):
    """Columns: a binary one for each choice, then the activation bits of each tensor, over 8, where memory counts."""

    rows: "scipy.sparse.csr_array"
    low: Float[np.ndarray, "R"]
    high: Float[np.ndarray, "R"]


def allocate(
    sensitivity: Sensitivity,
    table: CostTable,
    bounds: Bounds,
    budget: Budget,
    *,
    names: Sequence[str] | None = None,
    other_than: Sequence[Int[np.ndarray, "L 2"]] = (),
    near: tuple[Int[np.ndarray, "L 2"], int] | None = None,
    gap: float = GAP,
    seconds: float = SECONDS,
) -> Allocation:
    """Finds the policy within the budget whose layers' sensitivities add up to the least.

    There is a binary variable for each layer and pair of widths, because latency does not separate into weights and
    activations, and a row for each limited resource. Peak memory takes a row a product, and a variable a tensor that
    is at least the activation bits of every reader. HiGHS solves it.

    Args:
      sensitivity: loss of each entry at each width [L, 2, 8], or of each layer at each pair of widths [L, 8, 8]. What
        is not finite counts as far worse than all the rest, with a warning.
      table, bounds, budget: as for `haqjax.project`, any number of limits; tied layers choose together.
      names: of the layers, for the warning.
      other_than: policies that are not to be found again.
      near: a policy, and in how many layers (groups of tied ones count once) the result may differ from it.
      gap: relative distance to the optimum at which the solver stops.
      seconds: when it stops at the latest.

    Returns:
      The policy, its loss, and a lower bound of all losses.

    Raises:
      ValueError: no policy fits, or the number of layers is not the table's.
      RuntimeError: none was found in time.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.policies.budgets import budget as make_budget
    >>> from haqjax.types import Cost
    >>> bits = np.arange(1.0, 9.0)
    >>> product = np.broadcast_to(bits[:, None] * bits, (2, 8, 8))
    >>> table = CostTable(product, product, product, fixed=Cost(0.0, 0.0, 0.0))
    >>> sensitivity = np.array([1.0, 100.0])[:, None, None] * 4.0 ** -np.array([bits, bits])
    >>> allocate(sensitivity, table, make_bounds(2, pinned={}), make_budget(table, latency=0.5)).policy.tolist()
    [[3, 5], [7, 7]]
    """
    if len(sensitivity) != len(table):
        raise ValueError(f"sensitivities of {len(sensitivity)} layers, but the network has {len(table)}")
    pairs = to_pairs(guard(sensitivity, bounds, names))
    choices = list_choices(pairs, table, bounds, budget)
    memory = table.lifetimes if budget.memory is not None and not np.isposinf(budget.memory) else None
    if memory is None and near is None and not len(other_than):  # their rows may want a pair that is beaten
        choices = without_dominated(choices)
    for margin in (0.0, TOLERANCE, 3 * TOLERANCE):  # the solver may exceed a row by a rounding error
        programme = _write(choices, memory, budget, table, other_than, near, 1 - margin)
        policy, bound = _solve(choices, programme, gap, seconds)
        if fits_exactly(table, policy, budget):
            return Allocation(policy, float(predict(pairs, policy)), bound)
    raise RuntimeError("the policy found exceeds the budget by a rounding error: change the budget a little")


def _write(
    choices: Choices,
    memory: Lifetimes | None,
    budget: Budget,
    table: CostTable,
    other_than: Sequence[Int[np.ndarray, "L 2"]],
    near: tuple[Int[np.ndarray, "L 2"], int] | None,
    fraction: float,
) -> Programme:
    """Writes the programme whose costs stay within a fraction of what is left to the layers."""
    columns, groups = len(choices.group), int(choices.group[-1]) + 1
    one_each = scipy.sparse.coo_array((np.ones(columns), (choices.group, np.arange(columns))), shape=(groups, columns))
    parts = [_rows(one_each, 1, 1), _rows(choices.fractions, -np.inf, choices.room * fraction)]
    if len(other_than):
        parts.append(_rows(agreements(choices, np.asarray(other_than)), -np.inf, groups - 1))
    if near is not None:
        policy, distance = near
        parts.append(_rows(agreements(choices, np.asarray(policy)[None]), groups - distance, np.inf))
    if memory is not None:
        parts = [part._replace(rows=_widen(part.rows, len(memory.elements))) for part in parts]
        parts += _memory_rows(choices, memory, budget, table, fraction)
    return Programme(
        scipy.sparse.vstack([part.rows for part in parts], format="csr"),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
    )


def agreements(choices: Choices, policies: Int[np.ndarray, "N L 2"]) -> Float[np.ndarray, "N C"]:
    """Marks with 1 where a choice is what a policy has for the group."""
    _, leaders = np.unique(choices.group_of, return_index=True)
    return (policies[:, leaders][:, choices.group] == choices.bits[None]).all(axis=-1).astype(float)


def _memory_rows(
    choices: Choices, memory: Lifetimes, budget: Budget, table: CostTable, fraction: float
) -> list[Programme]:
    readers, elements = np.asarray(memory.readers), np.asarray(memory.elements, np.float64)
    tensors, layers = np.nonzero(readers)
    activation = np.where(
        choices.group[None] == choices.group_of[layers][:, None], choices.bits[None, :, ACTIVATION] / WIDTHS, 0.0
    )
    stored = scipy.sparse.coo_array(
        (-np.ones(len(tensors)), (np.arange(len(tensors)), tensors)), (len(tensors), len(elements))
    )
    as_wide = _rows(
        scipy.sparse.hstack([scipy.sparse.csr_array(activation), stored]), -np.inf, 0
    )  # as the widest reader
    extra = 0.0 if table.fixed.memory is None else float(table.fixed.memory)
    limit = float(np.asarray(budget.memory))
    bytes_at_8 = np.asarray(memory.alive) * elements / limit
    unread = ~readers.any(axis=1)
    room = fraction * (1 - extra / limit) - bytes_at_8[:, unread].sum(axis=1) * FULL_PRECISION / WIDTHS
    empty = scipy.sparse.csr_array((len(bytes_at_8), len(choices.group)))
    held = _rows(scipy.sparse.hstack([empty, scipy.sparse.csr_array(np.where(unread, 0.0, bytes_at_8))]), -np.inf, room)
    return [as_wide, held]


def _solve(choices: Choices, programme: Programme, gap: float, seconds: float) -> tuple[Int[np.ndarray, "L 2"], float]:
    columns = programme.rows.shape[1]
    least = np.minimum.reduceat(choices.loss, np.flatnonzero(np.diff(choices.group, prepend=-1)))
    worth = choices.loss - least[choices.group]  # from zero: a relative gap then is one of what there is to choose
    scale = worth[worth > 0].mean() if (worth > 0).any() else 1.0
    more = columns - len(worth)
    binary = np.concatenate([np.ones(len(worth)), np.zeros(more)])
    with hide_highs_output():
        solution = scipy.optimize.milp(
            np.concatenate([worth / scale, np.zeros(more)]),
            integrality=binary,
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=scipy.optimize.LinearConstraint(programme.rows, programme.low, programme.high),
            options={"mip_rel_gap": gap, "time_limit": seconds},
        )
    if solution.status == INFEASIBLE:
        raise ValueError("no policy keeps the budget and differs as asked: raise the budget or allow fewer bits")
    if solution.x is None:
        raise RuntimeError(f"no policy was found in {seconds:g} s: give more time or a larger gap")
    taken = [int(np.argmax(np.where(choices.group == g, solution.x[: len(worth)], -1))) for g in range(len(least))]
    bound = least.sum() + scale * solution.mip_dual_bound
    return to_policy(choices, np.array(taken)), float(bound)


def _rows(rows: "scipy.sparse.csr_array", low: float | np.ndarray, high: float | np.ndarray) -> Programme:
    count = rows.shape[0]
    return Programme(
        scipy.sparse.csr_array(rows), *(np.broadcast_to(np.asarray(end, float), (count,)) for end in (low, high))
    )


def _widen(rows: "scipy.sparse.csr_array", more: int) -> "scipy.sparse.csr_array":
    return scipy.sparse.hstack([rows, scipy.sparse.csr_array((rows.shape[0], more))], format="csr")
