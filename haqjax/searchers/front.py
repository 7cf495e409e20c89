"""What accuracy costs: the best policies within several budgets."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost_64
from haqjax.policies.feasibility import check_reachable
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult, choose_best
from haqjax.searchers.gradient import begin, start_front
from haqjax.searchers.loop import find_searcher
from haqjax.searchers.stages import Course, Leg, OnRound, play
from haqjax.types import WIDTHS, Bounds, Budget, Cost, CostTable

BUDGETS = 8  # of a front, where none are given


class FrontState(NamedTuple):
    """All that a search for a front goes on from, beside its records."""

    now: Any  # of the searcher, within the budget that it is at
    solutions: Float[Array, "B L 2"] | None  # of a search by gradients, one for each budget: its descent is one call


@dataclasses.dataclass(frozen=True)
class Front:
    """The best policies within each of B budgets, and everything that was evaluated on the way."""

    budgets: tuple[Budget, ...]
    chosen: tuple[int | None, ...]  # the episode with the best policy within each budget, whichever it was found for
    course: Course  # everything that was evaluated; its state is a `FrontState`
    interrupted: bool = False

    @property
    def records(self) -> Record:
        """Of all budgets, one after another; `feasible` is meant for the budget that was searched then."""
        return self.course.records

    def policy(self, index: int) -> Int[np.ndarray, "L 2"]:
        """The best policy within a budget.

        Raises:
          ValueError: none was found.
        """
        episode = self.chosen[index]
        if episode is None:
            raise ValueError(f"no policy was found within budget {index}: give it more episodes")
        return np.asarray(self.records.policy[episode])


def search_front(
    problem: Problem,
    searcher: str | Searcher,
    budgets: Sequence[Budget],
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
) -> Front:
    """Searches the most accurate policy within each of some budgets.

    What was evaluated for one budget is known to all, and counts for every budget that it fits: a policy within half
    the latency is also one within 0.6 of it. With "gradient" one call descends for all budgets. (For a front without
    budgets, see `make_nsga2`.)

    Ctrl-C ends it with what was found so far.

    Args:
      problem: its own budget is not looked at.
      searcher: as for `search`.
      budgets: as `haqjax.budget` makes them.
      episodes: policies to evaluate for each budget.
      key: a random key; the same one gives the same result.
      parallel: policies a round, for a searcher given by name.
      on_round: called after each round with all that was played so far.
      resume: records and `FrontState` of a search to go on from, with the same problem, searcher, budgets, episodes
        and key: the rest is as if it had never stopped.

    Raises:
      ValueError: no budget, one that no policy can meet, fewer than one episode, or an unknown searcher.
      RuntimeError: interrupted before the first round ended.
    """
    _check(problem, budgets, episodes)
    method = find_searcher(searcher, parallel) if isinstance(searcher, str) else searcher
    start_key, *keys = jax.random.split(key, 1 + len(budgets))
    course: Course | None = None
    interrupted = False
    try:
        together = searcher == "gradient"
        solutions = _solve(problem, budgets, start_key, resume) if together else None

        def plan(over: int, records: Record | None) -> Leg | None:
            if over == len(budgets):
                return None
            one = dataclasses.replace(problem, budget=budgets[over])
            state = None if solutions is None else begin(one, jnp.asarray(solutions[over]))
            return Leg(budgets[over], episodes, keys[over], state)

        before = None if resume is None else Course(resume.records, resume.state.now, ())
        for played in play(method, problem, plan, before):
            course = dataclasses.replace(played, state=FrontState(played.state, solutions))
            if on_round is not None:
                on_round(course)
    except KeyboardInterrupt:
        interrupted = True
    if course is None:
        raise RuntimeError("interrupted before the first round of the search ended: nothing was found")
    chosen = tuple(choose_within(course.records, budget) for budget in budgets)
    return Front(tuple(budgets), chosen, course, interrupted)


def spread_fractions(table: CostTable, bounds: Bounds, resource: str, count: int = BUDGETS) -> tuple[float, ...]:
    """Fractions of the 8-bit cost for the budgets of a front, from just above the floor to 1, at equal ratios.

    Raises:
      ValueError: the table does not know the resource, or no bits make it cheaper than 8.

    >>> from haqjax.policies.bounds import make_bounds
    >>> square = np.broadcast_to(np.arange(1.0, 9.0)[:, None] * np.arange(1.0, 9.0), (2, 8, 8))
    >>> table = CostTable(square, square, square, fixed=Cost(0.0, 0.0, 0.0))
    >>> spread_fractions(table, make_bounds(2, pinned={}), "latency", 4)
    (0.125, 0.25, 0.5, 1.0)
    """
    if resource not in Cost._fields:
        raise ValueError(f"unknown resource {resource!r}: there are {', '.join(Cost._fields)}")
    at = Cost._fields.index(resource)
    least, full = (
        policy_cost_64(table, np.asarray(bounds.low))[at],
        policy_cost_64(table, np.full((len(table), 2), WIDTHS))[at],
    )
    if not math.isfinite(full):
        raise ValueError(f"the table has no {resource}: choose another resource or machine")
    if not 0 < least < full:
        raise ValueError(f"a front of {resource} has no room: all layers at their lowest bits cost what 8 bits cost")
    floor = least / full
    return tuple(min(1.0, math.ceil(1000 * floor ** (1 - n / count) - 1e-9) / 1000) for n in range(1, count + 1))


def choose_within(records: Record, budget: Budget) -> int | None:
    """`haqjax.searchers.base.choose_best` among all that fit a budget, whichever budget they were found for."""
    feasible: Any = np.asarray(fits(records.cost, budget))
    return choose_best(records._replace(feasible=feasible), budget)


def front(records: Record, resource: str = "latency") -> Int[np.ndarray, "F"]:
    """The episodes that no other one beats: more accurate at the cost of a resource, or as accurate and cheaper.

    Infeasible policies are left out, and of equals all but the earliest. The cheapest comes first.

    >>> from haqjax.types import Cost
    >>> cost, accuracy = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.8, 0.7, 0.9])
    >>> nothing = np.zeros((4, 1, 2))
    >>> records = Record(nothing, nothing, accuracy, accuracy, accuracy, Cost(cost, cost, cost), np.ones(4, bool))
    >>> front(records).tolist()
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
    """The area that policies dominate: accuracy above the least one, integrated over costs up to the most.

    Compares fronts (Zitzler and Thiele 1999); its unit is that of the cost.

    >>> hypervolume(np.array([0.5, 1.0]), np.array([1.0, 3.0]), 0.25, 5.0)
    2.0
    """
    order = np.argsort(cost, kind="stable")
    reached = np.maximum.accumulate(np.maximum(np.asarray(accuracy)[order] - least_accuracy, 0))
    ends = np.minimum(np.append(np.asarray(cost)[order], most_cost), most_cost)
    return float((reached * np.diff(ends)).sum())


def _solve(
    problem: Problem, budgets: Sequence[Budget], key: PRNGKeyArray, resume: SearchResult | None
) -> Float[Array, "B L 2"]:
    """Where a search by gradients starts, for all budgets: from one descent, unless that is behind it."""
    if resume is not None:
        return resume.state.solutions
    return jnp.stack([state.rank for state in start_front(problem, budgets, key)])


def _check(problem: Problem, budgets: Sequence[Budget], episodes: int) -> None:
    if not len(budgets) or episodes < 1:
        raise ValueError(f"a front of {len(budgets)} budgets with {episodes} episodes each: give at least 1 of both")
    for budget in budgets:
        check_reachable(problem.table, problem.bounds, budget, problem.names)
