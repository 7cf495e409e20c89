"""One round of a search: ask, lower onto the budget, evaluate, tell."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_bits
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import project
from haqjax.searchers.base import MOST_LOSS, Evaluation, Problem, Record, Searcher
from haqjax.types import Projection

Known = dict[bytes, tuple[float, float]]  # policies that were evaluated before -> accuracy, loss


def start(searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> Any:
    """The searcher's state before the first round."""
    return searcher.init(problem, key) if searcher.on_host else _start(searcher, problem, key)


def play_round(
    searcher: Searcher, problem: Problem, state: Any, key: PRNGKeyArray, known: Known | None = None, least: float = 0.0
) -> tuple[Any, Record]:
    """One round of a search; N policies.

    Args:
      searcher: static: the same functions do not compile again.
      problem: all arrays that the round reads.
      state: of the searcher.
      key: consumed.
      known: what was evaluated before; this round's policies are added.
      least: accuracy below which a policy may be given up, where the problem is a race.

    Returns:
      The searcher's next state, and what happened.

    Raises:
      ValueError: `evaluate` does not give one accuracy for each policy.
    """
    known = {} if known is None or problem.race is not None else known  # a race tells less than there is to know
    actions, lowered = ask(searcher, problem, state, key)
    # By way of the host: else a judge on many devices spreads the searcher's state over them, and all compiles anew.
    judgement = _recall(known, lowered.policy) or jax.tree.map(np.asarray, judge(problem, lowered.policy, least))
    reward = rewards(searcher, problem, judgement)
    state = tell(searcher, state, actions, lowered.policy, reward)
    accuracy, loss = judgement
    record = Record(actions, lowered.policy, accuracy, loss, reward, lowered.cost, lowered.feasible)
    record = jax.tree.map(np.asarray, record)
    remember(known, record)
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
    reward: Float[Array, "N"],
) -> Any:
    """The searcher's state once it knows what its proposals gained."""
    if not searcher.on_host:
        return _tell(searcher, state, actions, policies, reward)
    return searcher.tell(_to_host(state), *_to_host((actions, policies, reward)))


@jax.jit
def judge(problem: Problem, policies: Int[Array, "N L 2"], least: Float[Array, ""] | float = 0.0) -> Evaluation:
    """Evaluates N policies; losses are NaN where the evaluation does not tell them, and only there.

    In a race, those that cannot reach the least accuracy are given up, and told by the images they were shown.
    """
    answer = problem.evaluate(policies) if problem.race is None else problem.race(policies, least)
    if not isinstance(answer, Evaluation):
        _check_count("accuracies", answer, len(policies))
        return Evaluation(answer, jnp.full(len(policies), jnp.nan))
    _check_count("accuracies", answer.accuracy, len(policies))
    _check_count("losses", answer.loss, len(policies))
    return Evaluation(answer.accuracy, jnp.where(jnp.isnan(answer.loss), jnp.inf, answer.loss))


def rewards(searcher: Searcher, problem: Problem, judgement: Evaluation) -> Float[Array, "N"]:
    """What the searcher is told: by how much policies are better than the network as it is; never a NaN.

    An accuracy that is not finite counts as 0. A loss that is not finite counts as `MOST_LOSS`, as does a greater one.
    Where no loss is known at all, or the searcher does not ask for it, gains are of the accuracy.
    """
    by_loss = searcher.objective == "loss"
    return _rewards(by_loss, problem.reference, problem.reference_loss, judgement)


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
    cost = policy_cost(problem.table, policies)
    return Projection(policies, fits(cost, problem.budget), cost)


@functools.partial(jax.jit, static_argnums=0)
def _tell(searcher: Searcher, state: Any, actions: Array, policies: Array, reward: Array) -> Any:
    return searcher.tell(state, actions, policies, reward)


@functools.partial(jax.jit, static_argnums=0)
def _rewards(by_loss: bool, reference: Array, reference_loss: Array, judgement: Evaluation) -> Float[Array, "N"]:
    accuracy, loss = judgement
    reward = jnp.where(jnp.isfinite(accuracy), accuracy, 0) - reference
    if not by_loss:
        return reward
    lost = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, MOST_LOSS), MOST_LOSS)
    # Without a reference any constant does: searches compare gains with each other.
    return jnp.where(jnp.isnan(loss), reward, jnp.nan_to_num(reference_loss) - lost)


def _to_host(state: Any) -> Any:
    """The state with NumPy arrays, as a host's searcher reads it; keys stay as they are."""
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), state)


def _recall(known: Known, policies: Int[Array, "N L 2"]) -> Evaluation | None:
    """What is known of the policies, where all were evaluated before."""
    told = [known.get(policy.tobytes()) for policy in np.asarray(policies)]
    if None in told:
        return None
    return Evaluation(*np.asarray(told, np.float32).T)


def remember(known: Known, record: Record) -> Known:
    """Adds what was evaluated; returns the same dictionary."""
    for policy, accuracy, loss in zip(record.policy, record.accuracy, record.loss, strict=True):
        known[np.asarray(policy).tobytes()] = (float(accuracy), float(loss))
    return known
