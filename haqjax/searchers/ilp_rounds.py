"""Rounds of a search by integer programming: what is known, what is proposed, and what it may still gain."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from haqjax.allocation.additive import Sensitivity
from haqjax.allocation.bayes import Posterior, draw, draw_before, find_scale, fit, mean, predict_losses
from haqjax.allocation.integer_program import allocate
from haqjax.allocation.local_search import Space, as_policy, lay_out, make_space, solve_by_prices, swaps
from haqjax.policies.budgets import fits_exactly
from haqjax.searchers import history
from haqjax.searchers.history import History
from haqjax.searchers.probes import estimate_sensitivity, list_probes
from haqjax.searchers.stopping import expected_improvement
from haqjax.types import Bounds, Budget, CostTable

TURN = 8  # one episode in so many tries the allocation while entries are probed
TRIES = 16  # allocations that were evaluated before, until one is proposed again
GAP = 1e-4
SECONDS = 2.0
CANDIDATES = 8  # draws whose best policies are looked at for an expected gain

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
    even: Int[np.ndarray, "L 2"]  # the best uniform policy, which may not fit
    given: Float[np.ndarray, "L 2 8"] | None = None  # sensitivities but for a common factor, in place of probes


class Round(NamedTuple):
    """Knowledge common to the phases of a round."""

    state: ILPState
    policies: Int[np.ndarray, "N L 2"]  # evaluated
    rewards: Float[np.ndarray, "N"]
    best: Int[np.ndarray, "n"]  # rows within the budget, of the greatest reward first; none where none fits yet
    learned: Int[np.ndarray, "n"]  # rows that are learned from: those, or all where none fits
    start: Sensitivity  # by probes, or as given
    known: set[bytes]  # policies that were evaluated, or proposed in this round


def know(config: ILP, state: ILPState) -> Round:
    """Puts together what is known before a round."""
    policies, rewards = history.evaluated(state.history)
    inside = [i for i, policy in enumerate(policies) if fits_exactly(state.table, policy, state.budget)]
    every = np.argsort(-rewards, kind="stable")
    best = every[np.isin(every, inside)]
    learned = (best if len(best) else every)[: config.learned]
    if state.given is None:
        start = estimate_sensitivity(policies, rewards, state.bounds)
    else:
        start = state.given * find_scale(state.given, policies[learned], -rewards[learned].astype(float))
    return Round(state, policies, rewards, best, learned, start, {policy.tobytes() for policy in policies})


def propose(config: ILP, state: ILPState, random: np.random.Generator) -> list[Policy]:
    """Proposes a round's policies, none of them evaluated before as long as there are others."""
    now = know(config, state)
    probes = _probe(config, now)
    phases = {"allocate": _allocate(now), "probe": iter(probes), "refine": _refine(now, random)}
    first, left = int(state.history.total), len(probes)
    proposed: list[Policy] = []
    for episode in range(first, first + config.parallel):
        phase = "refine" if not left else "allocate" if episode % TURN == 0 else "probe"
        left -= phase == "probe"
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


def _refine(now: Round, random: np.random.Generator) -> Iterator[Policy]:
    """Yields the best policies by what was learned, and the uniform one; `known` may grow meanwhile."""
    state = now.state
    posterior = _learn(now)
    expected = now.start if posterior is None else mean(posterior)
    space = make_space(state.table, state.bounds, state.budget)
    best = now.policies[now.best[0]] if len(now.best) else None
    if len(space.room) != 1 or best is None:  # prices are good for one resource; the exact programme for all
        allocated = next(_allocate(now, expected))
        yield allocated
        best = allocated if best is None else best
    if fits_exactly(state.table, state.even, state.budget) and state.even.tobytes() not in now.known:
        yield state.even
    losses = lay_out(space, expected)
    while True:
        yield next(_search_near(now, space, losses), best)
        losses = lay_out(space, draw_before(now.start, random) if posterior is None else draw(posterior, random))


def _learn(now: Round) -> Posterior | None:
    """Learns from what was evaluated; None where nothing was."""
    if not len(now.learned):
        return None
    return fit(now.start, now.policies[now.learned], -now.rewards[now.learned].astype(float))


def expected_gain(config: ILP, state: ILPState) -> float:
    """Computes the most that a policy is expected to gain over the best within the budget; infinite where none fits.

    0 where every policy near the best by any of the draws was evaluated.
    """
    now = know(config, state)
    posterior = _learn(now)
    if posterior is None or not len(now.best) or _probe(config, now):
        return np.inf
    random = np.random.default_rng(int(state.history.total))
    space = make_space(state.table, state.bounds, state.budget)
    drawn = [mean(posterior), *(draw(posterior, random) for _ in range(CANDIDATES))]
    nearest = (next(_search_near(now, space, lay_out(space, one)), None) for one in drawn)
    candidates = [policy for policy in nearest if policy is not None]
    if not candidates:
        return 0.0
    best = -float(now.rewards[now.best[0]])
    return float(expected_improvement(best, *predict_losses(posterior, np.stack(candidates))).max())


def _search_near(now: Round, space: Space, losses: Float[np.ndarray, "G K"]) -> Iterator[Policy]:
    """Yields the best policy by some sensitivities, then those a few bits from it, that fit and were not evaluated."""
    taken = solve_by_prices(space, losses)
    near = (taken for _, taken in swaps(space, losses, taken))
    for one in itertools.chain([taken], near):
        policy = as_policy(space, one)
        if policy.tobytes() not in now.known and fits_exactly(now.state.table, policy, now.state.budget):
            yield policy
