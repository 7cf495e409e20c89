"""The loop that every search goes through: ask, lower onto the budget, evaluate, tell."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.policies.feasibility import check_reachable
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult, choose_best
from haqjax.searchers.driver import Known, judge, play_round, remember, start
from haqjax.searchers.evolution import Evolution, make_evolution
from haqjax.searchers.gradient import Gradient, make_gradient
from haqjax.searchers.greedy import make_greedy
from haqjax.searchers.haq import HAQ, make_haq
from haqjax.searchers.ilp import ILP, make_ilp
from haqjax.searchers.random import make_random
from haqjax.searchers.uniform import make_uniform
from haqjax.types import Budget

__all__ = ["OBJECTIVES", "SEARCHERS", "find_searcher", "judge", "play_round", "search", "start"]

SEARCHERS: dict[str, Callable[[int], Searcher]] = {  # name -> maker, given the policies a round
    "evolution": lambda parallel: make_evolution(Evolution(parallel=parallel)),
    "gradient": lambda parallel: make_gradient(Gradient(parallel=parallel)),
    "greedy": make_greedy,
    "haq": lambda parallel: make_haq(HAQ(parallel=parallel)),
    "ilp": lambda parallel: make_ilp(ILP(parallel=parallel)),
    "random": make_random,
    "uniform": make_uniform,
}
OBJECTIVES = ("accuracy", "loss")


def search(
    problem: Problem,
    searcher: str | Searcher = "haq",
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    on_round: Callable[[SearchResult], None] | None = None,
    resume: SearchResult | None = None,
    known: Known | None = None,
) -> SearchResult:
    """Searches for the most accurate policy within the budget.

    A round proposes some policies at once, lowers them onto the budget, evaluates them, and learns from all. What is
    compiled for it serves every policy, budget and seed. A round whose policies were all evaluated before is not
    evaluated again. The last round may hold more episodes than are left; those are not reported.

    Ctrl-C ends the search with what was found so far.

    Args:
      problem: of `make_problem`.
      searcher: a name in `SEARCHERS`, or a searcher that was made with other numbers than the usual ones.
      episodes: policies to evaluate, all in all.
      key: a random key; the same one gives the same result.
      parallel: policies a round, for a searcher given by name.
      on_round: called after each round with the result so far; its `best` is None until a policy qualifies.
      resume: a result to go on from, found with the same problem, searcher and key: the rest is as if it had never
        stopped, unless the episodes asked for cut its last round short.
      known: what other searches with the same judge have evaluated, such as within other budgets; what this one
        evaluates is added. It makes a search shorter, and changes nothing else.

    Raises:
      ValueError: an unknown name, fewer than one episode, or a budget that no policy can meet: before anything runs.
      RuntimeError: interrupted before the first round ended, or no policy within the budget had a finite accuracy.
    """
    searcher = find_searcher(searcher, parallel) if isinstance(searcher, str) else searcher
    _check(searcher, episodes)
    check_reachable(problem.table, problem.bounds, problem.budget, problem.names)
    start_key, round_key = jax.random.split(key)
    result = resume
    try:
        state = start(searcher, problem, start_key) if resume is None else resume.state
        known = {} if known is None else known
        if resume is not None:
            remember(known, resume.records)
        while _played(result) < episodes:
            key_now = jax.random.fold_in(round_key, _played(result))
            state, record = play_round(searcher, problem, state, key_now, known, _accuracy(result))
            result = _extend(result, problem.budget, state, record, episodes)
            if on_round is not None:
                on_round(result)
    except KeyboardInterrupt:
        if result is None:
            raise RuntimeError("interrupted before the first round of the search ended: nothing was found") from None
        result = dataclasses.replace(result, interrupted=True)
    if result is None or result.best is None:
        raise RuntimeError("no policy of the search fits the budget and has a finite accuracy")
    return result


def find_searcher(name: str, parallel: int = 1) -> Searcher:
    """Makes the searcher of this name, with its usual numbers and `parallel` policies a round.

    Raises:
      ValueError: an unknown name; the message lists those that exist. Fewer than one policy a round.

    >>> find_searcher("random") is find_searcher("random")
    True
    """
    if name not in SEARCHERS:
        raise ValueError(f"unknown search {name!r}: there are {', '.join(sorted(SEARCHERS))}")
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}: a round needs at least 1 policy")
    return SEARCHERS[name](parallel)


def _check(searcher: Searcher, episodes: int) -> None:
    if episodes < 1:
        raise ValueError(f"a search of {episodes} episodes finds nothing: it needs at least 1")
    if searcher.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {searcher.objective!r}: there are {', '.join(OBJECTIVES)}")


def _played(result: SearchResult | None) -> int:
    return 0 if result is None else len(result.records.accuracy)


def _accuracy(result: SearchResult | None) -> float:
    return 0.0 if result is None or result.best is None else result.accuracy


def _extend(before: SearchResult | None, budget: Budget, state: Any, record: Record, episodes: int) -> SearchResult:
    """The result with one more round, as far as it lies within the episodes asked for."""
    left = episodes - _played(before)
    records = jax.tree.map(lambda x: np.asarray(x)[:left], record)
    if before is not None:
        records = jax.tree.map(lambda *x: np.concatenate(x), before.records, records)
    return SearchResult(choose_best(records, budget), records, state)
