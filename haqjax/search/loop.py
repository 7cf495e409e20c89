"""The loop that every search goes through: ask, lower onto the budget, evaluate, tell."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.budget import fits
from haqjax.policy import to_bits
from haqjax.pricing import price
from haqjax.projection import project
from haqjax.reach import check_reachable
from haqjax.search.base import MOST_LOSS, Judgement, Problem, Record, Searcher, SearchResult, choose_best
from haqjax.search.evolution import Evolution, make_evolution
from haqjax.search.gradient import Gradient, make_gradient
from haqjax.search.greedy import make_greedy
from haqjax.search.haq import HAQ, make_haq
from haqjax.search.ilp import ILP, make_ilp
from haqjax.search.random import make_random
from haqjax.search.uniform import make_uniform
from haqjax.types import Budget, Projection

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

Known = dict[bytes, tuple[float, float]]  # policies that were evaluated before -> accuracy, loss


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
        known = {} if resume is None else _remember({}, resume.records)
        while _played(result) < episodes:
            key_now = jax.random.fold_in(round_key, _played(result))
            state, record = play_round(searcher, problem, state, key_now, known)
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


def start(searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> Any:
    """The searcher's state before the first round."""
    return searcher.init(problem, key) if searcher.on_host else _start(searcher, problem, key)


def play_round(
    searcher: Searcher, problem: Problem, state: Any, key: PRNGKeyArray, known: Known | None = None
) -> tuple[Any, Record]:
    """One round of a search; N policies.

    Args:
      searcher: static: the same functions do not compile again.
      problem: all arrays that the round reads.
      state: of the searcher.
      key: consumed.
      known: what was evaluated before; this round's policies are added.

    Returns:
      The searcher's next state, and what happened.

    Raises:
      ValueError: `evaluate` does not give one accuracy for each policy.
    """
    known = {} if known is None else known
    actions, lowered = ask(searcher, problem, state, key)
    judgement = _recall(known, lowered.policy) or judge(problem, lowered.policy)
    gain = gains(searcher, problem, judgement)
    state = tell(searcher, state, actions, lowered.policy, gain)
    accuracy, loss = judgement
    record = Record(actions, lowered.policy, accuracy, loss, gain, lowered.cost, lowered.feasible)
    record = jax.tree.map(np.asarray, record)
    _remember(known, record)
    return state, record


def ask(
    searcher: Searcher, problem: Problem, state: Any, key: PRNGKeyArray
) -> tuple[Float[Array, "N L 2"], Projection]:
    """What the searcher proposes, and the policies that the budget makes of it."""
    if not searcher.on_host:
        return _ask(searcher, problem, state, key)
    actions = jnp.asarray(searcher.ask(_to_host(state), key), jnp.float32)
    return actions, _lower(searcher.projected, problem, actions)


def tell(
    searcher: Searcher,
    state: Any,
    actions: Float[Array, "N L 2"],
    policies: Int[Array, "N L 2"],
    gain: Float[Array, "N"],
) -> Any:
    """The searcher's state once it knows what its proposals gained."""
    if not searcher.on_host:
        return _tell(searcher, state, actions, policies, gain)
    return searcher.tell(_to_host(state), *_to_host((actions, policies, gain)))


@jax.jit
def judge(problem: Problem, policies: Int[Array, "N L 2"]) -> Judgement:
    """Evaluates N policies; losses are NaN where the evaluation does not tell them, and only there."""
    answer = problem.evaluate(policies)
    if not isinstance(answer, Judgement):
        _check_count("accuracies", answer, len(policies))
        return Judgement(answer, jnp.full(len(policies), jnp.nan))
    _check_count("accuracies", answer.accuracy, len(policies))
    _check_count("losses", answer.loss, len(policies))
    return Judgement(answer.accuracy, jnp.where(jnp.isnan(answer.loss), jnp.inf, answer.loss))


def gains(searcher: Searcher, problem: Problem, judgement: Judgement) -> Float[Array, "N"]:
    """What the searcher is told: by how much policies are better than the network as it is; never a NaN.

    An accuracy that is not finite counts as 0. A loss that is not finite counts as `MOST_LOSS`, as does a greater one.
    Where no loss is known at all, or the searcher does not ask for it, gains are of the accuracy.
    """
    by_loss = searcher.objective == "loss"
    return _gains(by_loss, problem.reference, problem.reference_loss, judgement)


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


def _check_count(what: str, values: Array, count: int) -> None:
    if jnp.shape(values) != (count,):
        raise ValueError(f"evaluate gave {what} {jnp.shape(values)} for {count} policies: expected one for each")


@functools.partial(jax.jit, static_argnums=0)
def _start(searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> Any:
    return searcher.init(problem, key)


@functools.partial(jax.jit, static_argnums=0)
def _ask(
    searcher: Searcher, problem: Problem, state: Any, key: PRNGKeyArray
) -> tuple[Float[Array, "N L 2"], Projection]:
    actions = searcher.ask(state, key)
    return actions, _lower(searcher.projected, problem, actions)


@functools.partial(jax.jit, static_argnums=0)
def _lower(projected: bool, problem: Problem, actions: Float[Array, "N L 2"]) -> Projection:
    policies = to_bits(actions, problem.bounds)
    if projected:
        return project(policies, problem.table, problem.bounds, problem.budget)
    cost = price(problem.table, policies)
    return Projection(policies, fits(cost, problem.budget), cost)


@functools.partial(jax.jit, static_argnums=0)
def _tell(searcher: Searcher, state: Any, actions: Array, policies: Array, gain: Array) -> Any:
    return searcher.tell(state, actions, policies, gain)


@functools.partial(jax.jit, static_argnums=0)
def _gains(by_loss: bool, reference: Array, reference_loss: Array, judgement: Judgement) -> Float[Array, "N"]:
    accuracy, loss = judgement
    gain = jnp.where(jnp.isfinite(accuracy), accuracy, 0) - reference
    if not by_loss:
        return gain
    lost = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, MOST_LOSS), MOST_LOSS)
    # Without a reference any constant does: searches compare gains with each other.
    return jnp.where(jnp.isnan(loss), gain, jnp.nan_to_num(reference_loss) - lost)


def _to_host(state: Any) -> Any:
    """The state with NumPy arrays, as a host's searcher reads it; keys stay as they are."""
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)


def _recall(known: Known, policies: Int[Array, "N L 2"]) -> Judgement | None:
    """What is known of the policies, where all were evaluated before."""
    told = [known.get(policy.tobytes()) for policy in np.asarray(policies)]
    if None in told:
        return None
    accuracy, loss = np.asarray(told, np.float32).T
    return Judgement(jnp.asarray(accuracy), jnp.asarray(loss))


def _remember(known: Known, record: Record) -> Known:
    for policy, accuracy, loss in zip(record.policy, record.accuracy, record.loss, strict=True):
        known[np.asarray(policy).tobytes()] = (float(accuracy), float(loss))
    return known


def _played(result: SearchResult | None) -> int:
    return 0 if result is None else len(result.records.accuracy)


def _extend(before: SearchResult | None, budget: Budget, state: Any, record: Record, episodes: int) -> SearchResult:
    """The result with one more round, as far as it lies within the episodes asked for."""
    left = episodes - _played(before)
    records = jax.tree.map(lambda x: np.asarray(x)[:left], record)
    if before is not None:
        records = jax.tree.map(lambda *x: np.concatenate(x), before.records, records)
    return SearchResult(choose_best(records, budget), records, state)
