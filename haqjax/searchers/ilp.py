"""Search by integer programming: allocations by sensitivities, which evaluations near the budget refine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.allocation.additive import guard, rank_correlation
from haqjax.allocation.choices import allowed
from haqjax.policies.actions import to_actions
from haqjax.policies.projection import best_uniform
from haqjax.searchers import history
from haqjax.searchers.base import Problem, Searcher
from haqjax.searchers.ilp_rounds import ILP, ILPState, expected_gain, propose
from haqjax.searchers.probes import estimate_sensitivity, list_probes
from haqjax.searchers.stopping import WORTH
from haqjax.types import WIDTHS, Bounds

USUAL = ILP()


def make_ilp(config: ILP = USUAL, sensitivity: Float[np.ndarray, "L 2 8"] | None = None) -> Searcher:
    """Makes the searcher.

    It begins with the problem's sensitivities, or measures some. *Probe*, where there are none: single entries are
    lowered from the widest policy, while every eighth episode is the exact allocation by what is known, the first one
    by the law that each bit less has four times the squared error. *Refine*: a Bayesian regression, which starts from
    the sensitivities, learns from the policies within the budget, and each round proposes the best policy by its mean
    and by draws from it (Thompson 1933). Losses of layers do not add up far from the policy they were measured at, and
    this moves the measurement to where the budget is. The best uniform policy that fits is evaluated, too.

    What was evaluated within one budget is learned from within the next. The search has *converged* once no policy that
    was not evaluated is expected to lose less than the best one within the budget by more than `WORTH` standard errors
    of the best one's mean loss (`haqjax.searchers.stopping.standard_error`). Expected is the improvement over the least
    loss that was evaluated, by the regression's normal distribution of what adds up over layers (Mockus 1975), its
    deviations multiplied by the misfit of what was evaluated; looked at are the best policies by its mean and by
    `CANDIDATES` draws from it.

    Args:
      config: numbers of the method.
      sensitivity: of each entry at each width, but for a common factor, in place of the problem's own, such as
        `haqjax.evaluation.measure_sensitivities` gives. What is not finite is as bad as the worst, and a warning names
        it.

    >>> make_ilp(ILP(parallel=4)) is make_ilp(ILP(parallel=4))
    True
    """
    return _make_ilp(config) if sensitivity is None else _make(config, np.asarray(sensitivity, np.float64))


@functools.cache
def _make_ilp(config: ILP) -> Searcher:
    return _make(config, None)


def _make(config: ILP, sensitivity: Float[np.ndarray, "L 2 8"] | None) -> Searcher:
    def init(problem: Problem, key: PRNGKeyArray) -> ILPState:
        start = problem.sensitivity if sensitivity is None else sensitivity
        given = None if start is None else _check_given(np.asarray(start, np.float64), problem)
        nothing = history.empty(len(problem.layers), config.memory)
        return ILPState(nothing, problem.table, problem.bounds, problem.budget, _find_even(problem), given)

    def ask(state: ILPState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        return to_actions(jnp.asarray(np.stack(propose(config, state, random))), state.bounds)

    def tell(state: ILPState, actions: Array, policies: Array, rewards: Array) -> ILPState:
        return state._replace(history=history.note(state.history, policies, rewards))

    def carry(state: ILPState, problem: Problem) -> ILPState:
        return state._replace(budget=problem.budget, even=_find_even(problem))

    def converged(state: ILPState, error: float) -> bool:
        return expected_gain(config, state) <= WORTH * error

    return Searcher(init, ask, tell, on_host=True, projected=False, objective="loss", carry=carry, converged=converged)


def _find_even(problem: Problem) -> Int[np.ndarray, "L 2"]:
    return np.asarray(best_uniform(problem.table, problem.bounds, problem.budget).policy, np.int32)


def _check_given(sensitivity: Float[np.ndarray, "L 2 8"], problem: Problem) -> Float[np.ndarray, "L 2 8"]:
    wanted = (len(problem.table), 2, WIDTHS)
    if sensitivity.shape != wanted:
        raise ValueError(f"sensitivities have shape {sensitivity.shape}, but the problem needs {wanted}")
    finite = guard(np.where(allowed(problem.bounds), sensitivity, 0), problem.bounds, problem.layers.names, factor=0)
    return finite / max(float(finite.max()), np.finfo(float).tiny)  # a common factor is found while searching


def check_additivity(
    policies: Int[np.ndarray, "N L 2"],
    losses: Float[np.ndarray, "N"],
    bounds: Bounds,
    sensitivity: Float[np.ndarray, "L 2 8"] | None = None,
) -> tuple[float, int]:
    """Measures how well sums over layers put a search's own policies in order.

    Args:
      policies, losses: evaluations of the search.
      sensitivity: that it was given; without, that of its probes.

    Returns:
      Spearman's rank correlation of sums and losses over the policies that are no probes, and their number. NaN where
      they are too few, or all alike, to say.

    >>> from haqjax.policies.bounds import make_bounds
    >>> policies = np.array([[[8, 8]], [[2, 8]], [[8, 2]], [[4, 4]], [[3, 3]], [[2, 3]]])
    >>> losses = 4.0 ** -policies.min(axis=(1, 2)) * policies[:, 0, 0] ** -0.5
    >>> check_additivity(policies, losses, make_bounds(1, pinned={}))
    (1.0, 3)
    """
    rewards = -np.asarray(losses, float)
    start = estimate_sensitivity(policies, rewards, bounds) if sensitivity is None else sensitivity
    probes = {probe.tobytes() for probe in list_probes(bounds, WIDTHS)}
    rows = [i for i, policy in enumerate(np.asarray(policies, np.int32)) if policy.tobytes() not in probes]
    return rank_correlation(start, policies[rows], np.asarray(losses)[rows]), len(rows)
