"""What accuracy costs: the best policies within several budgets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from haqjax.budget import fits
from haqjax.reach import check_reachable
from haqjax.search.base import Problem, Record, Searcher, choose_best
from haqjax.search.gradient import start_front
from haqjax.search.loop import Known, find_searcher, play_round, start
from haqjax.types import Budget

OnRound = Callable[[Record], None]  # given the records of all rounds so far


@dataclasses.dataclass(frozen=True)
class Front:
    """The best policy within each of B budgets, and everything that was evaluated on the way."""

    budgets: tuple[Budget, ...]
    chosen: tuple[int | None, ...]  # the episode with the best policy within each budget, whichever it was found for
    records: Record  # of all budgets, one after another; `feasible` is meant for the budget that was searched then
    interrupted: bool = False

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
      on_round: called after each round with all records so far.

    Raises:
      ValueError: no budget, one that no policy can meet, fewer than one episode, or an unknown searcher.
      RuntimeError: interrupted before the first round ended.
    """
    _check(problem, budgets, episodes)
    method = find_searcher(searcher, parallel) if isinstance(searcher, str) else searcher
    start_key, *keys = jax.random.split(key, 1 + len(budgets))
    known: Known = {}
    rounds: list[Record] = []
    interrupted = False
    try:
        together = searcher == "gradient"
        states: Sequence[Any] = start_front(problem, budgets, start_key) if together else [None] * len(budgets)
        for budget, state, round_key in zip(budgets, states, keys, strict=True):
            one = dataclasses.replace(problem, budget=budget)
            play_episodes(method, one, round_key, episodes, rounds, known, state=state, on_round=on_round)
    except KeyboardInterrupt:
        interrupted = True
    if not rounds:
        raise RuntimeError("interrupted before the first round of the search ended: nothing was found")
    records = join(rounds)
    return Front(tuple(budgets), tuple(choose_within(records, budget) for budget in budgets), records, interrupted)


def play_episodes(
    searcher: Searcher,
    problem: Problem,
    key: PRNGKeyArray,
    episodes: int,
    rounds: list[Record],
    known: Known,
    *,
    state: Any = None,
    on_round: OnRound | None = None,
) -> None:
    """Plays one search and appends its rounds, so that an interrupt leaves those that were played.

    Args:
      known: what was evaluated before, of any search of the same network and images; grows.
      state: to start from; None begins anew.
    """
    start_key, round_key = jax.random.split(key)
    state = start(searcher, problem, start_key) if state is None else state
    played = 0
    while played < episodes:
        state, record = play_round(searcher, problem, state, jax.random.fold_in(round_key, played), known)
        rounds.append(shorten(record, episodes - played))
        played += len(rounds[-1].accuracy)
        if on_round is not None:
            on_round(join(rounds))


def shorten(record: Record, count: int) -> Record:
    """The first episodes."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], record)


def join(rounds: Sequence[Record]) -> Record:
    """All episodes as one record."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)


def choose_within(records: Record, budget: Budget) -> int | None:
    """`haqjax.search.base.choose_best` among all that fit a budget, whichever budget they were found for."""
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


def _check(problem: Problem, budgets: Sequence[Budget], episodes: int) -> None:
    if not len(budgets) or episodes < 1:
        raise ValueError(f"a front of {len(budgets)} budgets with {episodes} episodes each: give at least 1 of both")
    for budget in budgets:
        check_reachable(problem.table, problem.bounds, budget, problem.names)
