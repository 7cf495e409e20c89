"""The loop that every search goes through: ask, lower onto the budget, evaluate, tell."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.budget import check_reachable, project
from haqjax.policy import to_bits
from haqjax.search.base import Problem, Record, Searcher, SearchResult, choose_best
from haqjax.search.haq import HAQ, make_haq
from haqjax.search.random import make_random
from haqjax.types import Budget

SEARCHERS: dict[str, Callable[[int], Searcher]] = {  # name -> maker, given the policies a round
    "haq": lambda parallel: make_haq(HAQ(parallel=parallel)),
    "random": make_random,
}


def search(
    problem: Problem,
    searcher: str | Searcher = "haq",
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    on_round: Callable[[SearchResult], None] | None = None,
    resume: SearchResult | None = None,
) -> SearchResult:
    """Searches for the most accurate policy within the budget.

    A round proposes some policies at once, lowers them onto the budget, evaluates them, and learns from all. It is one
    compiled function, the same for every policy, budget and seed. The last round may hold more episodes than are left;
    those are not reported.

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

    Raises:
      ValueError: an unknown name, fewer than one episode, or a budget that no policy can meet: before anything runs.
      RuntimeError: interrupted before the first round ended, or no policy within the budget had a finite accuracy.
    """
    searcher = find_searcher(searcher, parallel) if isinstance(searcher, str) else searcher
    if episodes < 1:
        raise ValueError(f"a search of {episodes} episodes finds nothing: it needs at least 1")
    check_reachable(problem.table, problem.bounds, problem.budget, problem.names)
    start_key, round_key = jax.random.split(key)
    result = resume
    try:
        state = _start(searcher, problem, start_key) if resume is None else resume.state
        width = jax.eval_shape(searcher.ask, state, round_key).shape[0]
        for number in range(_rounds(_played(resume), width), _rounds(episodes, width)):
            state, record = play_round(searcher, problem, state, jax.random.fold_in(round_key, number))
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


@functools.partial(jax.jit, static_argnums=0)
def play_round(searcher: Searcher, problem: Problem, state: Any, key: PRNGKeyArray) -> tuple[Any, Record]:
    """One round of a search; N policies.

    Args:
      searcher: static: the same functions do not compile again.
      problem: all arrays that the round reads.
      state: of the searcher.
      key: consumed.

    Returns:
      The searcher's next state, and what happened.

    Raises:
      ValueError: `evaluate` does not give one accuracy for each policy.
    """
    actions = searcher.ask(state, key)
    lowered = project(to_bits(actions, problem.bounds), problem.table, problem.bounds, problem.budget)
    accuracy = problem.evaluate(lowered.policy)
    if accuracy.shape != lowered.feasible.shape:
        raise ValueError(
            f"evaluate gave accuracies {accuracy.shape} for {len(actions)} policies: expected one for each"
        )
    gain = jnp.where(jnp.isfinite(accuracy), accuracy, 0) - problem.reference
    state = searcher.tell(state, actions, lowered.policy, gain)
    return state, Record(actions, lowered.policy, accuracy, gain, lowered.cost, lowered.feasible)


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


@functools.partial(jax.jit, static_argnums=0)
def _start(searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> Any:
    return searcher.init(problem, key)


def _played(result: SearchResult | None) -> int:
    return 0 if result is None else len(result.records.accuracy)


def _rounds(episodes: int, width: int) -> int:
    return -(-episodes // width)


def _extend(before: SearchResult | None, budget: Budget, state: Any, record: Record, episodes: int) -> SearchResult:
    """The result with one more round, as far as it lies within the episodes asked for."""
    left = episodes - _played(before)
    records = jax.tree.map(lambda x: np.asarray(x)[:left], record)
    if before is not None:
        records = jax.tree.map(lambda *x: np.concatenate(x), before.records, records)
    return SearchResult(choose_best(records, budget), records, state)
