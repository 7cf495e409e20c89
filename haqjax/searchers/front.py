"""Fronts: the best policies within several budgets."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.cost import exact_cost
from haqjax.policies.feasibility import check_reachable
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult, Stage, choose_within, count_episodes
from haqjax.searchers.gradient import begin, solve_relaxation
from haqjax.searchers.loop import OnRound, answer, find_searcher
from haqjax.types import WIDTHS, Bounds, Budget, Cost, CostTable

BUDGETS = 8  # of a front, where none are given


@dataclasses.dataclass(frozen=True)
class Front:
    """Asks for the most accurate policy within each of B budgets: a stage for each.

    A policy counts for every budget that it fits, whichever it was evaluated for.
    """

    budgets: tuple[Budget, ...]
    episodes: int  # at most, all in all; a budget may take its part of those that are left
    keys: tuple[PRNGKeyArray, ...]  # one for each budget
    solutions: Float[Array, "B L 2"] | None = None  # where a search by gradients begins, in ranks
    opening = 0

    def open(self, searcher: Searcher, problem: Problem) -> None:
        return None

    def next_stage(self, problem: Problem, index: int, records: Record | None) -> Stage | None:
        if index == len(self.budgets):
            return None
        problem_within = dataclasses.replace(problem, budget=self.budgets[index])
        state = None if self.solutions is None else begin(problem_within, jnp.asarray(self.solutions[index]))
        most = (self.episodes - count_episodes(records)) // (len(self.budgets) - index)
        return Stage(self.budgets[index], most, self.keys[index], state)

    def choose(self, problem: Problem, records: Record) -> tuple[int | None, ...]:
        return tuple(choose_within(records, budget) for budget in self.budgets)

    def check(self, problem: Problem, result: SearchResult) -> None:
        if not any(episode is not None for episode in result.chosen):
            raise RuntimeError("no policy of the search fits one of the budgets and has a finite accuracy")


def search_front(
    problem: Problem,
    searcher: str | Searcher,
    budgets: Sequence[Budget],
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    patience: int = 0,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
) -> SearchResult:
    """Searches the most accurate policy within each of some budgets.

    A policy that was evaluated for one budget is known to all, and counts for every budget that it fits: a policy
    within half the latency is also one within 0.6 of it. "ilp" learns from all of them at once, and with "gradient" one
    call optimises for all budgets; other searches begin anew for each. (For a front without budgets, see `make_nsga2`.)

    Ctrl-C ends it with what was found so far.

    Args:
      problem: its own budget is not looked at.
      searcher: as for `search`.
      budgets: as `haqjax.budget` makes them.
      episodes: policies to evaluate for each budget, on average and at most.
      key: a random key; the same one gives the same result.
      parallel: policies a round, for a searcher given by name.
      patience: as for `haqjax.search`, within each budget; what one budget does not take is left to the next ones.
      on_round: called after each round with the result so far.
      resume: a result to go on from, with the same problem, searcher, budgets, episodes and key: the rest is as if it
        had never stopped.

    Returns:
      The result; `chosen` has an episode for each budget, None where nothing was found.

    Raises:
      ValueError: no budget, one that no policy can meet, fewer than one episode, or an unknown searcher.
      RuntimeError: interrupted before the first round ended, or no policy fits any of the budgets.
    """
    if not len(budgets) or episodes < 1:
        raise ValueError(f"a front of {len(budgets)} budgets with {episodes} episodes each: give at least 1 of both")
    for budget in budgets:
        check_reachable(problem.table, problem.bounds, budget, problem.layers.names)
    question = make_front(problem, searcher, budgets, episodes * len(budgets), key)
    method = find_searcher(searcher, parallel)
    return answer(problem, method, question, patience=patience, on_round=on_round, resume=resume)


def make_front(
    problem: Problem, searcher: str | Searcher, budgets: Sequence[Budget], episodes: int, key: PRNGKeyArray
) -> Front:
    """Makes the question of a front; "gradient", by name, begins at the relaxation of all budgets.

    Args:
      episodes: at most, all in all.
    """
    start_key, *keys = jax.random.split(key, 1 + len(budgets))
    solutions = solve_relaxation(problem, budgets, start_key) if searcher == "gradient" else None
    return Front(tuple(budgets), episodes, tuple(keys), solutions)


def budget_fractions(table: CostTable, bounds: Bounds, resource: str, count: int = BUDGETS) -> tuple[float, ...]:
    """Chooses fractions of the 8-bit cost for the budgets of a front, from just above the floor to 1, at equal ratios.

    Raises:
      ValueError: the table does not know the resource, or no bits make it cheaper than 8.

    >>> from haqjax.policies.bounds import make_bounds
    >>> square = np.broadcast_to(np.arange(1.0, 9.0)[:, None] * np.arange(1.0, 9.0), (2, 8, 8))
    >>> table = CostTable(square, square, square, fixed=Cost(0.0, 0.0, 0.0))
    >>> budget_fractions(table, make_bounds(2, pinned={}), "latency", 4)
    (0.125, 0.25, 0.5, 1.0)
    """
    if resource not in Cost._fields:
        raise ValueError(f"unknown resource {resource!r}: there are {', '.join(Cost._fields)}")
    least = exact_cost(table, np.asarray(bounds.low))[resource]
    full = exact_cost(table, np.full((len(table), 2), WIDTHS))[resource]
    if not math.isfinite(full):
        raise ValueError(f"the table has no {resource}: choose another resource or machine")
    if not 0 < least < full:
        raise ValueError(f"a front of {resource} has no room: all layers at their lowest bits cost what 8 bits cost")
    floor = least / full
    return tuple(min(1.0, math.ceil(1000 * floor ** (1 - n / count) - 1e-9) / 1000) for n in range(1, count + 1))


def non_dominated(records: Record, resource: str = "latency") -> Int[np.ndarray, "F"]:
    """Finds the episodes that no other one dominates: more accurate at the cost of a resource, or as accurate, cheaper.

    Infeasible policies are left out, and of equals all but the earliest. The cheapest comes first.

    >>> from haqjax.types import Cost
    >>> cost, accuracy = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.8, 0.7, 0.9])
    >>> nothing = np.zeros((4, 1, 2))
    >>> records = Record(nothing, nothing, accuracy, accuracy, accuracy, Cost(cost, cost, cost), np.ones(4, bool))
    >>> non_dominated(records).tolist()
    [0, 1, 3]
    """
    cost, accuracy = np.asarray(getattr(records.cost, resource)), np.asarray(records.accuracy)
    usable = np.flatnonzero(np.asarray(records.feasible) & np.isfinite(accuracy) & np.isfinite(cost))
    order = usable[np.lexsort((usable, -accuracy[usable], cost[usable]))]
    before = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy[order]]))[:-1]
    return order[accuracy[order] > before]


def hypervolume(
    accuracy: Float[np.ndarray, "F"], cost: Float[np.ndarray, "F"], least_accuracy: float, most_cost: float
) -> float:
    """Integrates the area that policies dominate: accuracy above the least one, over costs up to the most.

    Compares fronts (Zitzler and Thiele 1999); its unit is that of the cost.

    >>> hypervolume(np.array([0.5, 1.0]), np.array([1.0, 3.0]), 0.25, 5.0)
    2.0
    """
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(np.maximum(np.asarray(accuracy)[order] - least_accuracy, 0))
    ends = np.minimum(np.append(np.asarray(cost)[order], most_cost), most_cost)
    return float((best * np.diff(ends)).sum())
