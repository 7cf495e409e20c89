"""The cheapest policy that is accurate enough."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.budgets import TOLERANCE
from haqjax.policies.cost import policy_cost_64
from haqjax.policies.feasibility import check_reachable
from haqjax.policies.projection import project
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult
from haqjax.searchers.driver import judge, rewards
from haqjax.searchers.loop import find_searcher
from haqjax.searchers.stages import Course, Leg, OnRound, head, play
from haqjax.types import Cost

PROBES = 6  # limits that a search tries
ROUNDING = 1e-6  # of an accuracy in float32


@dataclasses.dataclass(frozen=True)
class Drop(SearchResult):
    """The cheapest policy that is accurate enough, and everything that led to it."""

    course: Course = dataclasses.field(kw_only=True)
    least: float = dataclasses.field(kw_only=True)  # accuracy that was asked, 0..1


def search_drop(
    problem: Problem,
    max_drop: float,
    searcher: str | Searcher = "haq",
    *,
    resource: str = "latency",
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
    on_round: OnRound | None = None,
    resume: SearchResult | None = None,
) -> Drop:
    """Searches the cheapest policy that is at most so much less accurate than the network as it is.

    The first episode is the policy with the most bits. The limit of the resource is then bisected between the costs of
    the fewest bits and of that policy, on a scale of ratios: where one within the limit is accurate enough, the next
    limit is below what the cheapest such costs, else above. Each of `PROBES` limits has its share of the episodes.

    Accuracies are those of the search's images, and what is picked among many looks better there than it is.
    Ctrl-C ends it with what was found so far.

    Args:
      problem: its limits hold, too; that of the resource is the most that may be spent.
      max_drop: points of accuracy: 0.5 allows 0.9 to become 0.895.
      searcher, key, parallel, on_round: as for `haqjax.searchers.front.search_front`.
      resource: what is to be cheap.
      episodes: policies to evaluate, all in all.
      resume: records and state of a search to go on from, with the same arguments: the rest is as if it had never
        stopped.

    Returns:
      Everything that was evaluated, and as `best` the cheapest policy that is accurate enough, of several the most
      accurate.

    Raises:
      ValueError: a negative drop, a resource that the table does not know, fewer than two episodes, or a budget that
        no policy can meet.
      RuntimeError: no policy was accurate enough.
    """
    low = _check(problem, max_drop, resource, episodes)
    least = float(problem.reference) - max_drop / 100
    method = find_searcher(searcher, parallel) if isinstance(searcher, str) else searcher
    before = Course(_play_widest(method, problem), None, ()) if resume is None else _go_on(resume)
    course, interrupted = before, False
    high = float(getattr(before.records.cost, resource)[0])
    keys = jax.random.split(key, PROBES)

    def plan(over: int, records: Record | None) -> Leg | None:
        probe = _bisect(records, over, low, high, least, resource, episodes)
        if probe is None:
            return None
        limit, share = probe
        return Leg(problem.budget._replace(**{resource: jnp.float32(limit)}), share, keys[over])

    try:
        for played in play(method, problem, plan, before, opening=1):
            course = played
            if on_round is not None:
                on_round(course)
    except KeyboardInterrupt:
        interrupted = True
    return _conclude(course, least, resource, max_drop, interrupted)


def _go_on(resume: SearchResult) -> Course:
    return Course(resume.records, resume.state, ())


def _bisect(
    records: Record | None, over: int, low: float, high: float, least: float, resource: str, episodes: int
) -> tuple[float, int] | None:
    """The limit of a probe and its episodes; None where none is to come.

    Args:
      records: of the widest policy and of all probes before.
      over: probes before.
      low, high: what the resource costs at the fewest bits, and at the most.
    """
    played = 1
    for probe in range(PROBES):
        share = math.ceil((episodes - played) / (PROBES - probe))
        if not share or low >= high * (1 - TOLERANCE):
            return None
        limit = math.sqrt(low * high)
        if probe == over:
            return limit, share
        played += share
        so_far = head(records, played)
        found = cheapest(so_far, least, resource)
        cost = math.inf if found is None else float(getattr(so_far.cost, resource)[found])
        low, high = (low, cost) if cost <= limit * (1 + TOLERANCE) else (limit, high)
    return None


def cheapest(records: Record, least_accuracy: float, resource: str = "latency") -> int | None:
    """The cheapest feasible policy that is accurate enough; of several the most accurate, then the earliest."""
    cost, accuracy = np.asarray(getattr(records.cost, resource)), np.asarray(records.accuracy)
    usable = np.flatnonzero(np.asarray(records.feasible) & (accuracy >= least_accuracy - ROUNDING))
    if not len(usable):
        return None
    return int(usable[np.lexsort((usable, -accuracy[usable], cost[usable]))[0]])


def _conclude(course: Course, least: float, resource: str, max_drop: float, interrupted: bool) -> Drop:
    records = course.records
    best = cheapest(records, least, resource)
    if best is None:
        raise RuntimeError(
            f"no policy of the search is within {max_drop:g} points of the float network: an accuracy of {least:.4f} "
            f"was asked, {np.nanmax(records.accuracy):.4f} found; allow a larger drop or more bits"
        )
    return Drop(best, records, course.state, interrupted, course=course, least=least)


def _play_widest(searcher: Searcher, problem: Problem) -> Record:
    """The record of the policy with the most bits that there are."""
    lowered = project(problem.bounds.high[None], problem.table, problem.bounds, problem.budget)
    judged = judge(problem, lowered.policy)
    actions, reward = to_actions(lowered.policy, problem.bounds), rewards(searcher, problem, judged)
    record = Record(actions, lowered.policy, judged.accuracy, judged.loss, reward, lowered.cost, lowered.feasible)
    host: Any = jax.tree.map(np.asarray, record)
    return host


def _check(problem: Problem, max_drop: float, resource: str, episodes: int) -> float:
    """What the resource costs at the fewest bits."""
    if not max_drop >= 0:
        raise ValueError(f"max_drop is {max_drop}: give the points of accuracy that may be lost, 0 or more")
    if resource not in Cost._fields:
        raise ValueError(f"unknown resource {resource!r}: there are {', '.join(Cost._fields)}")
    if episodes < 2:
        raise ValueError(f"a search of {episodes} episodes cannot compare costs: it needs at least 2")
    least = policy_cost_64(problem.table, np.asarray(problem.bounds.low))[Cost._fields.index(resource)]
    if not math.isfinite(least):
        raise ValueError(f"the table has no {resource}: choose another resource or machine")
    check_reachable(problem.table, problem.bounds, problem.budget, problem.names)
    return least
