"""Search by integer programming: allocations by sensitivities, which evaluations near the budget refine."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.allocation.additive import Sensitivity, guard, rank_correlation
from haqjax.allocation.bayes import draw, fit, mean
from haqjax.allocation.integer_program import allocate
from haqjax.allocation.local_search import Space, as_policy, lay_out, make_space, solve_by_prices, swaps
from haqjax.policies.actions import to_actions
from haqjax.policies.budgets import fits_exactly
from haqjax.searchers import history
from haqjax.searchers.base import Problem, Searcher
from haqjax.searchers.history import History
from haqjax.searchers.probes import estimate_sensitivity, list_probes
from haqjax.types import WIDTHS, Bounds, Budget, CostTable

TURN = 8  # one episode in so many tries the allocation while entries are probed
TRIES = 16  # allocations that were evaluated before, until one is proposed again
GAP = 1e-4
SECONDS = 2.0

Policy = Int[np.ndarray, "L 2"]


@dataclasses.dataclass(frozen=True)
class ILP:
    """Numbers of the method.

    Raises:
      ValueError: fewer than one policy a round, or nothing to remember.
    """

    parallel: int = 1  # policies a round
    probes: int = 2  # widths that each entry is probed at: the lowest, then the middle one, then between them
    memory: int = 4096  # evaluations remembered
    learned: int = 256  # of the best of them, learned from

    def __post_init__(self) -> None:
        if min(self.parallel, self.memory, self.learned) < 1 or self.probes < 0:
            raise ValueError(f"{self}: parallel, memory and learned must be at least 1 and probes at least 0")


class ILPState(NamedTuple):
    """State of a search by integer programming."""

    history: History
    table: CostTable
    bounds: Bounds
    budget: Budget
    given: Float[np.ndarray, "L 2 8"] | None = None  # sensitivities, in place of probes


def make_ilp(config: ILP = ILP(), sensitivity: Float[np.ndarray, "L 2 8"] | None = None) -> Searcher:
    """Makes the searcher.

    It has three phases. *Allocate*: the first episode is an allocation by the law that each bit less has four times
    the squared error, so that any number of episodes gives a policy within the budget. *Probe*: single entries are
    lowered from the widest policy, while every eighth episode is the exact allocation by what is known. *Refine*: a
    Bayesian regression, which starts from these sensitivities, learns from the policies within the budget, and each
    round proposes the best policy by its mean and by draws from it (Thompson 1933). Losses of layers do not add up far
    from the policy they were measured at, and this moves the measurement to where the budget is.

    Args:
      config: numbers of the method.
      sensitivity: of each entry at each width, in nats, such as `haqjax.evaluation.measure_sensitivities` gives. The
        search starts from it and probes nothing. What is not finite is as bad as the worst, and a warning names it.

    >>> make_ilp(ILP(parallel=4)) is make_ilp(ILP(parallel=4))
    True
    """
    return _make_ilp(config) if sensitivity is None else _make(config, np.asarray(sensitivity, np.float64))


@functools.cache
def _make_ilp(config: ILP) -> Searcher:
    return _make(config, None)


def _make(config: ILP, sensitivity: Float[np.ndarray, "L 2 8"] | None) -> Searcher:
    def init(problem: Problem, key: PRNGKeyArray) -> ILPState:
        given = None if sensitivity is None else _check_given(sensitivity, problem)
        nothing = history.empty(len(problem.layers), config.memory)
        return ILPState(nothing, problem.table, problem.bounds, problem.budget, given)

    def ask(state: ILPState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        return to_actions(jnp.asarray(np.stack(_propose(config, state, random))), state.bounds)

    def tell(state: ILPState, actions: Array, policies: Array, rewards: Array) -> ILPState:
        return state._replace(history=history.note(state.history, policies, rewards))

    return Searcher(init, ask, tell, on_host=True, projected=False, objective="loss")


def _check_given(sensitivity: Float[np.ndarray, "L 2 8"], problem: Problem) -> Float[np.ndarray, "L 2 8"]:
    wanted = (len(problem.table), 2, WIDTHS)
    if sensitivity.shape != wanted:
        raise ValueError(f"sensitivities have shape {sensitivity.shape}, but the problem needs {wanted}")
    return guard(sensitivity, problem.bounds, problem.layers.names, factor=0)


class Round(NamedTuple):
    """Knowledge common to the phases of a round."""

    state: ILPState
    policies: Int[np.ndarray, "N L 2"]  # evaluated
    rewards: Float[np.ndarray, "N"]
    start: Sensitivity  # by probes, or as given
    known: set[bytes]  # policies that were evaluated, or proposed in this round


def _propose(config: ILP, state: ILPState, random: np.random.Generator) -> list[Policy]:
    """Proposes a round's policies, none of them evaluated before as long as there are others."""
    policies, rewards = history.evaluated(state.history)
    start = estimate_sensitivity(policies, rewards, state.bounds) if state.given is None else state.given
    now = Round(state, policies, rewards, start, {policy.tobytes() for policy in policies})
    probes = _probe(config, now)
    phases = {"allocate": _allocate(now), "probe": iter(probes), "refine": _refine(config, now, random)}
    first, left = int(state.history.total), len(probes)
    proposed: list[Policy] = []
    for episode in range(first, first + config.parallel):
        if episode == 0 or (left and episode % TURN == 0) or (first == 0 and state.given is not None):
            phase = "allocate"
        elif left:
            phase, left = "probe", left - 1
        elif first == 0:  # no policy within the budget is known yet that could be refined
            proposed.append(proposed[0])
            continue
        else:
            phase = "refine"
        proposed.append(next(phases[phase]))
        now.known.add(proposed[-1].tobytes())
    return proposed


def _allocate(now: Round, sensitivity: Sensitivity | None = None) -> Iterator[Policy]:
    """Yields the best policies by the sensitivities that were not evaluated yet; the best one where all were."""
    state, wanted = now.state, now.start if sensitivity is None else sensitivity
    while True:
        found: list[Policy] = []
        while len(found) < TRIES:
            try:
                policy = allocate(
                    wanted, state.table, state.bounds, state.budget, other_than=found, gap=GAP, seconds=SECONDS
                ).policy
            except (ValueError, RuntimeError):
                if not found:
                    raise
                break
            found.append(policy)
            if policy.tobytes() not in now.known:
                break
        yield found[-1] if found[-1].tobytes() not in now.known else found[0]


def _probe(config: ILP, now: Round) -> list[Policy]:
    """Lists the probes that were not evaluated yet; none where sensitivities were given."""
    wanted = list_probes(now.state.bounds, config.probes) if now.state.given is None else []
    return [probe for probe in wanted if probe.tobytes() not in now.known]


def _refine(config: ILP, now: Round, random: np.random.Generator) -> Iterator[Policy]:
    """Yields the best policies by what was learned within the budget; `known` may grow meanwhile."""
    state, policies, rewards = now.state, now.policies, now.rewards
    inside = [i for i, policy in enumerate(policies) if fits_exactly(state.table, policy, state.budget)]
    best = np.array(inside)[np.argsort(-rewards[inside], kind="stable")][: config.learned]
    posterior = fit(now.start, policies[best], -rewards[best].astype(float))
    space = make_space(state.table, state.bounds, state.budget)
    expected = mean(posterior)
    if len(space.room) != 1:  # prices are good for one resource; several, and memory, want the exact programme
        yield next(_allocate(now, expected))
    losses = lay_out(space, expected)
    while True:
        yield next(_search_near(now, space, losses), policies[best[0]])
        losses = lay_out(space, draw(posterior, random))


def _search_near(now: Round, space: Space, losses: Float[np.ndarray, "G K"]) -> Iterator[Policy]:
    """Yields the best policy by some sensitivities, then those a few bits from it, that fit and were not evaluated."""
    taken = solve_by_prices(space, losses)
    near = (taken for _, taken in swaps(space, losses, taken))
    for one in itertools.chain([taken], near):
        policy = as_policy(space, one)
        if policy.tobytes() not in now.known and fits_exactly(now.state.table, policy, now.state.budget):
            yield policy


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
