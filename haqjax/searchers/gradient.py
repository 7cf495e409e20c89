"""Search by gradients: continuous bits go down the loss within the budget, and are rounded."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.bounds import to_rank
from haqjax.policies.budget_fill import fill_budget, normalise_costs
from haqjax.searchers import history
from haqjax.searchers.base import MOST_LOSS, Problem, Searcher
from haqjax.searchers.history import History
from haqjax.searchers.relaxation import STEPS, descend
from haqjax.types import Bounds, Budget, CostTable

WOBBLE = 0.3  # of the first roundings: ranks to either side
TRIES = 8  # proposals for each policy of a round: the first one that was not evaluated before is taken


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Numbers of the method.

    Raises:
      ValueError: one that is not positive.
    """

    parallel: int = 1  # policies a round
    steps: int = STEPS  # of the relaxation, before the first round; each goes forward and back over one batch
    roundings: int = 8  # policies from randomised rounding, before swaps around the best begin

    def __post_init__(self) -> None:
        if min(self.parallel, self.steps, self.roundings) < 1:
            raise ValueError(f"every number of a search by gradients must be positive, got {self}")


class GradientState(NamedTuple):
    """State of a search by gradients."""

    rank: Float[Array, "L 2"]  # solution of the relaxation
    best: Int[Array, "L 2"]
    reward: Float[Array, ""]  # of the best
    history: History
    costs: CostTable  # normalised
    bounds: Bounds


@functools.cache
def make_gradient(config: Gradient = Gradient()) -> Searcher:
    """Makes the searcher.

    `init` descends for `steps` steps. The first policy is the solution rounded; then come randomised roundings of it,
    then swaps around the best policy so far: some entries move by a width, and the entries that the solution has
    nearest to another width make up for it.

    What it spends before its first policy: `steps` passes forward and back, each over one batch of `soft_loss`, with
    every tensor quantised twice. These are not episodes; a comparison at equal work has to count them.

    >>> make_gradient(Gradient(parallel=4)) is make_gradient(Gradient(parallel=4))
    True
    """

    @jax.jit
    def init(problem: Problem, key: PRNGKeyArray) -> GradientState:
        return begin(problem, solve_relaxation(problem, [problem.budget], key, config.steps)[0])

    def ask(state: GradientState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        rounding_key, swap_key = jax.random.split(key)
        count = config.parallel * TRIES
        rounded = _roundings(rounding_key, state, count)
        swapped = _swaps(swap_key, state, count)
        wanted = jnp.where(state.history.total < config.roundings, rounded, swapped)
        candidates = fill_budget(wanted, state.costs, state.bounds)
        return to_actions(history.first_new(state.history, candidates, config.parallel), state.bounds)

    def tell(state: GradientState, actions: Array, policies: Array, rewards: Array) -> GradientState:
        at = jnp.argmax(rewards)
        better = rewards[at] > state.reward
        return state._replace(
            best=jnp.where(better, policies[at], state.best),
            reward=jnp.where(better, rewards[at], state.reward),
            history=history.note(state.history, policies, rewards),
        )

    return Searcher(init, ask, tell, objective="loss")


@jax.jit
def begin(problem: Problem, rank: Float[Array, "L 2"]) -> GradientState:
    """Makes the state before the first round, from the solution of the relaxation."""
    costs = normalise_costs(problem.table, problem.bounds, problem.budget)
    nothing = history.empty(len(problem.layers))
    return GradientState(rank, problem.bounds.low, jnp.float32(-2 * MOST_LOSS), nothing, costs, problem.bounds)


def check_soft_loss(problem: Problem) -> None:
    """Checks that the problem has a differentiable loss.

    Raises:
      ValueError: it has none.
    """
    if problem.evaluator.soft_loss is None:
        raise ValueError(
            "a search by gradients needs a differentiable loss: give the evaluator a "
            "soft_loss=haqjax.evaluation.make_soft_loss(apply, params, split, ranges), or choose another search"
        )


def solve_relaxation(
    problem: Problem, budgets: Sequence[Budget], key: PRNGKeyArray, steps: int = STEPS
) -> Float[Array, "B L 2"]:
    """Solves the continuous relaxation for all budgets, in one call of one compiled function; in ranks.

    Raises:
      ValueError: the problem has no differentiable loss.
    """
    check_soft_loss(problem)
    stacked = jax.tree.map(lambda *limits: jnp.stack([jnp.asarray(limit) for limit in limits]), *budgets)
    return descend(problem.evaluator.soft_loss, problem.table, problem.bounds, stacked, key, steps)


def _roundings(key: PRNGKeyArray, state: GradientState, count: int) -> Float[Array, "K L 2"]:
    """Preferences whose `fill_budget` rounds the solution: the very first to the nearest, the others at random."""
    noise = jax.random.uniform(key, (count, *state.rank.shape), minval=-WOBBLE, maxval=WOBBLE)
    plain = (jnp.arange(count) == 0) & (state.history.total == 0)
    return state.rank[None] + 0.5 + jnp.where(plain[:, None, None], 0, noise)


def _swaps(key: PRNGKeyArray, state: GradientState, count: int) -> Float[Array, "K L 2"]:
    """Preferences near the best policy; what makes up for their changes follows the solution."""
    many_key, where_key, step_key, noise_key = jax.random.split(key, 4)
    best = to_rank(state.best, state.bounds).astype(jnp.float32)
    leaning = 0.5 + jnp.clip(state.rank - best, -0.4, 0.4)
    shape = (count, *best.shape)
    moved = jax.random.randint(many_key, (count, 1, 1), 1, 4)
    changed = jax.random.bernoulli(where_key, moved / best.size, shape)
    noise = jax.random.uniform(noise_key, shape, minval=-0.1, maxval=0.1)
    return (best + leaning)[None] + changed * jax.random.rademacher(step_key, shape) + noise
