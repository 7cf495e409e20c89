"""Accuracy-constrained search: the cheapest policy that is accurate enough."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.budgets import TOLERANCE
from haqjax.policies.cost import exact_cost
from haqjax.policies.feasibility import check_reachable
from haqjax.policies.projection import project
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult, Stage, first_episodes
from haqjax.searchers.driver import compute_rewards, evaluate_policies, record_episodes
from haqjax.searchers.loop import OnRound, answer, find_searcher
from haqjax.types import Cost

PROBES = 6  # limits that a search tries
ROUNDING = 1e-6  # of an accuracy in float32


@dataclasses.dataclass(frozen=True)
class Cheapest:
    """Asks for the cheapest policy that loses at most so many points of accuracy.

    The first episode is the policy with the most bits. The limit of the resource is then bisected between the costs of
    the fewest bits and of that policy, on a scale of ratios: where a policy within the limit is accurate enough, the
    next limit is below what the cheapest such policy costs, else above. Each of `PROBES` limits is a stage with its
    part of the episodes.
    """

    max_drop: float  # points of accuracy
    resource: str
    episodes: int  # all in all
    keys: PRNGKeyArray  # [PROBES]
    opening = 1

    def least(self, problem: Problem) -> float:
        """Returns the accuracy that is asked for, 0..1."""
        return float(problem.reference) - self.max_drop / 100

    def open(self, searcher: Searcher, problem: Problem) -> Record:
        """Evaluates the policy with the most bits that there are."""
        widest = project(problem.bounds.high[None], problem.table, problem.bounds, problem.budget)
        evaluation = evaluate_policies(problem, widest.policy)
        reward = compute_rewards(searcher, problem, evaluation)
        return record_episodes(to_actions(widest.policy, problem.bounds), widest, evaluation, reward)

    def next_stage(self, problem: Problem, index: int, records: Record | None) -> Stage | None:
        assert records is not None
        low = exact_cost(problem.table, np.asarray(problem.bounds.low))[self.resource]
        high = float(getattr(records.cost, self.resource)[0])
        for probe in range(index + 1):
            first = int((records.stage < probe).sum())
            if probe:
                low, high = self._narrow(problem, first_episodes(records, first), low, high, math.sqrt(low * high))
            if first >= self.episodes or low >= high * (1 - TOLERANCE):
                return None
        if index == PROBES:
            return None
        budget = problem.budget._replace(**{self.resource: jnp.float32(math.sqrt(low * high))})
        return Stage(budget, math.ceil((self.episodes - first) / (PROBES - index)), self.keys[index])

    def _narrow(self, problem: Problem, records: Record, low: float, high: float, limit: float) -> tuple[float, float]:
        """Cuts the interval of costs at a limit that was searched."""
        found = choose_cheapest(records, self.least(problem), self.resource)
        cost = math.inf if found is None else float(getattr(records.cost, self.resource)[found])
        return (low, cost) if cost <= limit * (1 + TOLERANCE) else (limit, high)

    def choose(self, problem: Problem, records: Record) -> tuple[int | None, ...]:
        return (choose_cheapest(records, self.least(problem), self.resource),)

    def check(self, problem: Problem, result: SearchResult) -> None:
        if result.best is None:
            raise RuntimeError(
                f"no policy of the search is within {self.max_drop:g} points of the float network: an accuracy of "
                f"{self.least(problem):.4f} was asked, {np.nanmax(result.records.accuracy):.4f} found; allow a larger "
                "drop or more bits"
            )


def search_cheapest(
    problem: Problem,
    max_drop: float,
    searcher: str | Searcher = "haq",
    *,
    resource: str = "latency",
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    patience: int = 0,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
) -> SearchResult:
    """Searches the cheapest policy that is at most so much less accurate than the float network; see `Cheapest`.

    Accuracies are those of the search's images, and what is picked among many looks better there than it is.
    Ctrl-C ends it with what was found so far.

    Args:
      problem: its limits hold, too; that of the resource is the most that a policy may cost.
      max_drop: points of accuracy: 0.5 allows 0.9 to become 0.895.
      searcher, key, parallel, patience, on_round: as for `haqjax.searchers.front.search_front`.
      resource: the cost to minimise.
      episodes: policies to evaluate, all in all.
      resume: a result to go on from, with the same arguments: the rest is as if it had never stopped.

    Returns:
      All that was evaluated, and as `best` the cheapest policy that is accurate enough, of several the most accurate.

    Raises:
      ValueError: a negative drop, a resource that the table does not know, fewer than two episodes, or a budget that
        no policy can meet.
      RuntimeError: no policy was accurate enough.
    """
    if not max_drop >= 0:
        raise ValueError(f"max_drop is {max_drop}: give the points of accuracy that may be lost, 0 or more")
    if resource not in Cost._fields:
        raise ValueError(f"unknown resource {resource!r}: there are {', '.join(Cost._fields)}")
    if episodes < 2:
        raise ValueError(f"a search of {episodes} episodes cannot compare costs: it needs at least 2")
    if not math.isfinite(exact_cost(problem.table, np.asarray(problem.bounds.low))[resource]):
        raise ValueError(f"the table has no {resource}: choose another resource or machine")
    check_reachable(problem.table, problem.bounds, problem.budget, problem.layers.names)
    question = Cheapest(max_drop, resource, episodes, jax.random.split(key, PROBES))
    method = find_searcher(searcher, parallel)
    return answer(problem, method, question, patience=patience, on_round=on_round, resume=resume)


def choose_cheapest(records: Record, least_accuracy: float, resource: str = "latency") -> int | None:
    """Chooses the cheapest feasible policy that is accurate enough; of several the most accurate, then the earliest."""
    cost, accuracy = np.asarray(getattr(records.cost, resource)), np.asarray(records.accuracy)
    usable = np.flatnonzero(np.asarray(records.feasible) & (accuracy >= least_accuracy - ROUNDING))
    if not len(usable):
        return None
    return int(usable[np.lexsort((usable, -accuracy[usable], cost[usable]))[0]])
