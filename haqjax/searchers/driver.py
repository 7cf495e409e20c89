"""Drivers of a searcher, compiled or on the host: one round is ask, project, evaluate, tell."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_bits
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import project
from haqjax.searchers.base import MOST_LOSS, Problem, Record, Searcher
from haqjax.types import Evaluation, Evaluator, Projection

Evaluated = dict[bytes, tuple[float, float]]  # policies that were evaluated before -> accuracy, loss


class Driver(NamedTuple):
    """The two functions of a round that belong to the searcher."""

    ask: Callable[[Problem, Any, PRNGKeyArray], tuple[Float[Array, "N L 2"], Projection]]  # -> actions, policies
    tell: Callable[[Any, Float[Array, "N L 2"], Int[Array, "N L 2"], Float[Array, "N"]], Any]  # -> state


@functools.cache
def drive(searcher: Searcher) -> Driver:
    """Makes the driver of a searcher; one that is made of the same functions is not compiled again."""
    return _on_host(searcher) if searcher.on_host else _compiled(searcher)


def _compiled(searcher: Searcher) -> Driver:
    def ask(problem: Problem, state: Any, key: PRNGKeyArray) -> tuple[Float[Array, "N L 2"], Projection]:
        actions = searcher.ask(state, key)
        return actions, to_feasible(searcher.projected, problem, actions)

    return Driver(jax.jit(ask), jax.jit(searcher.tell))


def _on_host(searcher: Searcher) -> Driver:
    """Makes the driver of plain Python functions, which read NumPy arrays, and random keys as they are."""

    def ask(problem: Problem, state: Any, key: PRNGKeyArray) -> tuple[Float[Array, "N L 2"], Projection]:
        actions = jnp.asarray(searcher.ask(to_host(state), key), jnp.float32)
        return actions, to_feasible(searcher.projected, problem, actions)

    def tell(state: Any, actions: Array, policies: Array, rewards: Array) -> Any:
        return searcher.tell(to_host(state), *to_host((actions, policies, rewards)))

    return Driver(ask, tell)


def to_host(state: Any) -> Any:
    """Copies the arrays of a state to the host; random keys stay as they are."""

    def copy(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else np.asarray(leaf)

    return jax.tree.map(copy, state)


def run_round(
    searcher: Searcher,
    problem: Problem,
    state: Any,
    key: PRNGKeyArray,
    evaluated: Evaluated | None = None,
    least: float = 0.0,
) -> tuple[Any, Record]:
    """Runs one round of a search; N policies.

    Args:
      searcher: static: the same functions do not compile again.
      problem: all arrays that the round reads.
      state: of the searcher.
      key: consumed.
      evaluated: all that was evaluated before; this round's policies are added. Where it holds all of them, they are
        not evaluated again.
      least: accuracy below which a racing evaluator may give a policy up.

    Returns:
      The searcher's next state, and the episodes.

    Raises:
      ValueError: the evaluator does not give one accuracy for each policy, or one that is no fraction.
    """
    # A race measures less than there is to measure: it is neither remembered nor recalled.
    evaluated = {} if evaluated is None or problem.evaluator.races else evaluated
    driver = drive(searcher)
    actions, proposed = driver.ask(problem, state, key)
    # By way of the host: else an evaluator on many devices spreads the searcher's state, and all compiles anew.
    evaluation = _recall(evaluated, proposed.policy) or jax.tree.map(
        np.asarray, evaluate_policies(problem, proposed.policy, least)
    )
    reward = compute_rewards(searcher, problem, evaluation)
    state = driver.tell(state, actions, proposed.policy, reward)
    state = state if searcher.learn is None else searcher.learn(problem, state)
    record = record_episodes(actions, proposed, evaluation, reward)
    remember(evaluated, record)
    return state, record


def record_episodes(actions: Array, policies: Projection, evaluation: Evaluation, rewards: Array) -> Record:
    """Puts the records of a round together, on the host."""
    record = Record(
        actions, policies.policy, evaluation.accuracy, evaluation.loss, rewards, policies.cost, policies.feasible
    )
    host: Any = jax.tree.map(np.asarray, record)
    return host


@functools.partial(jax.jit, static_argnums=0)
def to_feasible(projected: bool, problem: Problem, actions: Float[Array, "N L 2"]) -> Projection:
    """Turns actions into policies: projected onto the budget, or taken as they are."""
    policies = to_bits(actions, problem.bounds)
    if projected:
        return project(policies, problem.table, problem.bounds, problem.budget)
    cost = policy_cost(problem.table, policies)
    return Projection(policies, fits(cost, problem.budget), cost)


def evaluate_policies(
    problem: Problem, policies: Int[Array, "N L 2"], least: Float[Array, ""] | float = 0.0
) -> Evaluation:
    """Evaluates N policies; losses are NaN where the evaluator does not measure them, and only there.

    A racing evaluator gives up those that cannot be of the least accuracy, and measures them by fewer images.
    """
    return evaluate(problem.evaluator, policies, least)


@jax.jit
def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Float[Array, ""] | float = 0.0) -> Evaluation:
    """Evaluates N policies in one compiled program, the same for searches as for what they are compared with."""
    found = evaluator(policies, least)
    for name, values in found._asdict().items():
        if jnp.shape(values) != (len(policies),):
            raise ValueError(
                f"the evaluator gave {name} {jnp.shape(values)} for {len(policies)} policies: expected one for each"
            )
    if not isinstance(found.accuracy, jax.core.Tracer):
        accuracy = np.asarray(found.accuracy)
        outside = accuracy[(accuracy < 0) | (accuracy > 1 + 1e-6)]  # a mean of float32 may end just above 1
        if outside.size:
            raise ValueError(f"the evaluator gave an accuracy of {outside[0]:g}: expected a fraction, 0 to 1")
    return found


def compute_rewards(searcher: Searcher, problem: Problem, evaluation: Evaluation) -> Float[Array, "N"]:
    """Computes by how much policies are better than the float network; never a NaN.

    An accuracy that is not finite counts as 0. A loss that is not finite counts as `MOST_LOSS`, as does a greater one.
    Where no loss is measured, or the searcher's objective is not the loss, rewards are differences of accuracy.
    """
    return _rewards(searcher.objective == "loss", problem.reference, problem.reference_loss, evaluation)


@functools.partial(jax.jit, static_argnums=0)
def _rewards(by_loss: bool, reference: Array, reference_loss: Array, evaluation: Evaluation) -> Float[Array, "N"]:
    accuracy, loss = evaluation
    reward = jnp.where(jnp.isfinite(accuracy), accuracy, 0) - reference
    if not by_loss:
        return reward
    limited = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, MOST_LOSS), MOST_LOSS)
    # Without a reference any constant does: searches compare rewards with each other.
    return jnp.where(jnp.isnan(loss), reward, jnp.nan_to_num(reference_loss) - limited)


def _recall(evaluated: Evaluated, policies: Int[Array, "N L 2"]) -> Evaluation | None:
    """Returns the evaluation of policies that were all evaluated before."""
    found = [evaluated.get(policy.tobytes()) for policy in np.asarray(policies)]
    return None if None in found else Evaluation(*np.asarray(found, np.float32).T)


def remember(evaluated: Evaluated, record: Record) -> None:
    """Adds episodes to what was evaluated."""
    for policy, accuracy, loss in zip(record.policy, record.accuracy, record.loss, strict=True):
        evaluated[np.asarray(policy).tobytes()] = (float(accuracy), float(loss))
