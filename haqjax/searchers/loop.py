"""The loop of stages that every search goes through."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.policies.feasibility import check_reachable
from haqjax.searchers.base import (
    Problem,
    Question,
    Record,
    Searcher,
    SearchResult,
    Stage,
    choose_best,
    choose_within,
    count_episodes,
    first_episodes,
    join_records,
)
from haqjax.searchers.driver import Evaluated, remember, run_round, to_host
from haqjax.searchers.evolution import Evolution, make_evolution
from haqjax.searchers.gradient import Gradient, make_gradient
from haqjax.searchers.greedy import make_greedy
from haqjax.searchers.haq import HAQ, make_haq
from haqjax.searchers.ilp import ILP, make_ilp
from haqjax.searchers.random import make_random
from haqjax.searchers.resuming import check_resumable, check_stage, name_searcher
from haqjax.searchers.stopping import rounds_without_gain, standard_error
from haqjax.searchers.svg import SVG, make_svg
from haqjax.searchers.uniform import make_uniform
from haqjax.types import Budget

SEARCHERS: dict[str, Callable[[int], Searcher]] = {  # name -> maker, given the policies a round
    "evolution": lambda parallel: make_evolution(Evolution(parallel=parallel)),
    "gradient": lambda parallel: make_gradient(Gradient(parallel=parallel)),
    "greedy": make_greedy,
    "haq": lambda parallel: make_haq(HAQ(parallel=parallel)),
    "ilp": lambda parallel: make_ilp(ILP(parallel=parallel)),
    "random": make_random,
    "svg": lambda parallel: make_svg(SVG(parallel=parallel)),
    "uniform": make_uniform,
}
BY_GRADIENT = frozenset({"gradient", "svg"})  # searches that need a differentiable loss
OBJECTIVES = ("accuracy", "loss")

OnRound = Callable[[SearchResult], None]  # called after each round with the result so far


@dataclasses.dataclass(frozen=True)
class Within:
    """Asks for the most accurate policy within the problem's budget: one stage."""

    episodes: int
    key: PRNGKeyArray
    start: SearchResult | None = None  # whose searcher's state is begun with, such as a warm start's
    opening = 0

    def open(self, searcher: Searcher, problem: Problem) -> None:
        return None

    def next_stage(self, problem: Problem, index: int, records: Record | None) -> Stage | None:
        state = None if self.start is None else self.start.state
        return None if index else Stage(problem.budget, self.episodes, self.key, state)

    def choose(self, problem: Problem, records: Record) -> tuple[int | None, ...]:
        return (choose_best(records, problem.budget),)

    def check(self, problem: Problem, result: SearchResult) -> None:
        if result.best is None:
            raise RuntimeError("no policy of the search fits the budget and has a finite accuracy")


def search(
    problem: Problem,
    searcher: str | Searcher = "haq",
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    patience: int = 0,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
    known: Evaluated | None = None,
) -> SearchResult:
    """Searches for the most accurate policy within the budget.

    A round proposes some policies at once, projects them onto the budget, evaluates them, and learns from all. What is
    compiled for it serves every policy, budget and seed. A round whose policies were all evaluated before is not
    evaluated again. The last round may hold more episodes than are left; those are not reported.

    Ctrl-C ends the search with what was found so far.

    Args:
      problem: of `make_problem`.
      searcher: a name in `SEARCHERS`, or a searcher that was made with other numbers than the usual ones.
      episodes: policies to evaluate, all in all; at most, where there is patience.
      key: a random key; the same one gives the same result.
      parallel: policies a round, for a searcher given by name.
      patience: the search ends once so many rounds have brought no better policy, or earlier, where the searcher's
        own posterior expects no more gain (`Searcher.converged`; "ilp"). 0 goes on to the last episode.
      on_round: called after each round with the result so far; its `best` is None until a policy qualifies.
      resume: a result to go on from, found with the same problem, searcher and key: the rest is as if it had never
        stopped, unless the episodes asked for cut its last round short.
      known: evaluations of other searches with the same evaluator, such as within other budgets; those of this one
        are added. They make a search shorter, and change nothing else.

    Raises:
      ValueError: an unknown name, fewer than one episode, a budget that no policy can meet, or a result to go on from
        that is of another problem, searcher or key: before anything runs.
      RuntimeError: interrupted before the first round ended, or no policy within the budget had a finite accuracy.
    """
    if episodes < 1:
        raise ValueError(f"a search of {episodes} episodes finds nothing: it needs at least 1")
    check_reachable(problem.table, problem.bounds, problem.budget, problem.layers.names)
    searcher = find_searcher(searcher, parallel)
    question = Within(episodes, key, resume)
    return answer(problem, searcher, question, patience=patience, on_round=on_round, resume=resume, known=known)


def find_searcher(searcher: str | Searcher, parallel: int = 1) -> Searcher:
    """Makes the searcher of this name, with its usual numbers and `parallel` policies a round; leaves others alone.

    Raises:
      ValueError: an unknown name; the message lists those that exist. Fewer than one policy a round. A searcher with
        an unknown objective.

    >>> find_searcher("random") is find_searcher("random")
    True
    """
    if isinstance(searcher, str):
        if searcher not in SEARCHERS:
            raise ValueError(f"unknown search {searcher!r}: there are {', '.join(sorted(SEARCHERS))}")
        if parallel < 1:
            raise ValueError(f"parallel is {parallel}: a round needs at least 1 policy")
        return SEARCHERS[searcher](parallel)
    if searcher.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {searcher.objective!r}: there are {', '.join(OBJECTIVES)}")
    return searcher


def answer(
    problem: Problem,
    searcher: Searcher,
    question: Question,
    *,
    patience: int = 0,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
    known: Evaluated | None = None,
) -> SearchResult:
    """Runs the stages of a question; Ctrl-C ends it with what was found so far.

    Args:
      problem: its own budget is read by the question alone.
      patience, on_round, known: as for `search`.
      resume: records and the searcher's state of the same question and searcher, to go on from.

    Raises:
      ValueError: the result to go on from is of another problem, searcher, key or budget.
      RuntimeError: interrupted before the first round ended, or the question has no answer.
    """
    if patience < 0:
        raise ValueError(f"patience is {patience}: give rounds without a gain, or 0 for no end before the last episode")
    check_resumable(problem, searcher, resume)
    result, episodes = None, 0 if resume is None else count_episodes(resume.records)
    try:
        for result in _run_stages(problem, searcher, question, patience, resume, {} if known is None else known):
            if on_round is not None and count_episodes(result.records) > episodes:
                on_round(result)
            episodes = count_episodes(result.records)
    except KeyboardInterrupt:
        if result is None:
            found = f"the {episodes} policies so far are kept" if episodes else "nothing was found"
            which = "another" if episodes else "the first"
            raise RuntimeError(f"interrupted before {which} round of the search ended: {found}") from None
        result = dataclasses.replace(result, interrupted=True)
    assert result is not None
    question.check(problem, result)
    return result


def _run_stages(
    problem: Problem,
    searcher: Searcher,
    question: Question,
    patience: int,
    resume: SearchResult | None,
    known: Evaluated,
) -> Iterator[SearchResult]:
    """Yields the result after each round, and once more at the end, when all stages are known."""
    records = _number(question.open(searcher, problem), -1, -1) if resume is None else resume.records
    state = None if resume is None else resume.state
    if records is not None:
        remember(known, records)
    reached = _last(records, "stage")  # stages before it have ended, whatever is asked of them now
    stages: list[Stage] = []
    converged: list[int] = []
    name = name_searcher(searcher)

    def report() -> SearchResult:
        assert records is not None
        chosen = question.choose(problem, records)
        return SearchResult(records, tuple(stages), chosen, state, searcher=name, converged=tuple(converged))

    for index in itertools.count():
        stage = question.next_stage(problem, index, _before(records, index))
        if stage is None:
            break
        check_stage(index, stage, resume)
        stages.append(stage._replace(first=count_episodes(_before(records, index))))
        stage_problem = dataclasses.replace(problem, budget=stage.budget)
        start_key, round_key = jax.random.split(stage.key)
        if index > reached:
            state = _begin(searcher, stage, stage_problem, state if index else None, start_key)
        while (done := _count_of(records, index)) < stage.episodes and index >= reached:
            if patience and _expects_no_gain(searcher, stage_problem, state, records, index, patience):
                break
            least = _best_accuracy(records, stage.budget) if problem.evaluator.races else 0.0
            state, record = run_round(searcher, stage_problem, state, jax.random.fold_in(round_key, done), known, least)
            record = _number(first_episodes(record, stage.episodes - done), index, _last(records, "round") + 1)
            records = join_records(records, record)
            yield report()
        converged += [index] * (done < stage.episodes)
    if records is not None:
        yield report()


def _begin(searcher: Searcher, stage: Stage, problem: Problem, before: Any, key: PRNGKeyArray) -> Any:
    """Makes the state that a stage begins with: its own, that of the stage before it taken along, or a new one."""
    if stage.state is not None:
        return stage.state
    if before is not None and searcher.carry is not None:
        return searcher.carry(before, problem)
    return searcher.init(problem, key)


def _expects_no_gain(
    searcher: Searcher, problem: Problem, state: Any, records: Record | None, index: int, patience: int
) -> bool:
    """Tells whether a stage has come to its end, by the state and the records alone; it has not while nothing fits."""
    best = None if records is None else choose_within(records, problem.budget)
    if records is None or best is None:
        return False
    error = standard_error(float(records.accuracy[best]), float(records.loss[best]), float(problem.images))
    if searcher.converged is not None and searcher.converged(to_host(state), error):
        return True
    return rounds_without_gain(records, index, best) >= patience


def _number(record: Record | None, stage: int, round: int) -> Any:
    """Notes the stage and the round of some episodes."""
    if record is None:
        return None
    nothing = np.zeros(len(record.accuracy), np.int32)
    return record._replace(stage=nothing + np.int32(stage), round=nothing + np.int32(round))


def _last(records: Record | None, which: str) -> int:
    """Returns the number of the last stage or round so far; -1 before the first."""
    return int(getattr(records, which)[-1]) if count_episodes(records) else -1


def _count_of(records: Record | None, index: int) -> int:
    """Counts the episodes of a stage."""
    return 0 if records is None else int((records.stage == index).sum())


def _before(records: Record | None, index: int) -> Any:
    """Returns the episodes before a stage; None where there are no records at all."""
    return None if records is None else first_episodes(records, int((records.stage < index).sum()))


def _best_accuracy(records: Record | None, budget: Budget) -> float:
    """Returns the accuracy that a policy has to surpass to become the best; 0 while none qualifies."""
    best = None if records is None else choose_best(records, budget)
    return 0.0 if records is None or best is None else float(records.accuracy[best])
