"""Search by allocation: sensitivities from single entries, an exact optimum, then what evaluations near it teach."""

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
from haqjax.allocation.choices import allowed
from haqjax.allocation.integer_program import allocate, is_within
from haqjax.allocation.local_search import Space, as_policy, lay_out, make_space, solve_by_prices, swaps
from haqjax.policies.actions import to_actions
from haqjax.searchers.archive import Archive, make_archive, record
from haqjax.searchers.base import Problem, Searcher
from haqjax.types import WIDTHS, Bounds, Budget, CostTable

TURN = 8  # one episode in so many tries the allocation while entries are probed
FACTOR = 4.0  # a bit less has four times the squared error
TIE = 1e-3  # of the greatest sensitivity: what tells widths apart that lost nothing measurable
TRIES = 16  # allocations that were evaluated before, until exchanges take over
GAP = 1e-4
SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class ILP:
    """The method's numbers.

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
    """Everything that a search by allocation carries on."""

    archive: Archive
    table: CostTable
    bounds: Bounds
    budget: Budget
    given: Float[np.ndarray, "L 2 8"] | None = None  # sensitivities, in place of probes


def make_ilp(config: ILP = ILP(), sensitivity: Float[np.ndarray, "L 2 8"] | None = None) -> Searcher:
    """The method as a searcher.

    The first episode is an allocation by the law that each bit less has four times the squared error, so that any
    number of episodes gives a policy within the budget. Then single entries are lowered from the widest policy, most
    important widths first, while every eighth episode is the exact allocation by what is known. After that the
    sensitivities are only where it starts: a Bayesian regression learns from the policies within the budget, and each
    round proposes the best policy by its mean and by draws from it (Thompson 1933). Losses of layers do not add up far
    from the policy they were measured at, and this moves the measurement to where the budget is.

    Args:
      config: the method's numbers.
      sensitivity: of each entry at each width, in nats, such as `haqjax.evaluation.sensitivity` gives. The search
        starts from it and probes nothing. What is not finite is as bad as the worst, and a warning names it.

    >>> make_ilp(ILP(parallel=4)) is make_ilp(ILP(parallel=4))
    True
    """
    return _make_ilp(config) if sensitivity is None else _make(config, np.asarray(sensitivity, np.float64))


@functools.cache
def _make_ilp(config: ILP) -> Searcher:
    return _make(config, None)


def _make(config: ILP, sensitivity: Float[np.ndarray, "L 2 8"] | None) -> Searcher:
    def init(problem: Problem, key: PRNGKeyArray) -> ILPState:
        archive = make_archive(len(problem.table), config.memory)
        given = None if sensitivity is None else _check_given(sensitivity, problem)
        return ILPState(archive, problem.table, problem.bounds, problem.budget, given)

    def ask(state: ILPState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        policies = _propose(config, state, random)
        return to_actions(jnp.asarray(np.stack(policies)), state.bounds)

    def tell(state: ILPState, actions: Array, policies: Array, rewards: Array) -> ILPState:
        return state._replace(archive=record(state.archive, np.asarray(policies), np.asarray(rewards)))

    return Searcher(init, ask, tell, on_host=True, projected=False, objective="loss")


def _propose(config: ILP, state: ILPState, random: np.random.Generator) -> list[Int[np.ndarray, "L 2"]]:
    """A round's policies, none of them evaluated before as long as there are others."""
    policies, rewards = state.archive.seen
    known = {policy.tobytes() for policy in policies}
    start = estimate(policies, rewards, state.bounds) if state.given is None else state.given
    wanted = list_probes(state.bounds, config.probes) if state.given is None else []
    probes = [probe for probe in wanted if probe.tobytes() not in known]
    first = int(state.archive.told)
    proposed: list[Int[np.ndarray, "L 2"]] = []
    near: Iterator[Int[np.ndarray, "L 2"]] | None = None
    for number in range(first, first + config.parallel):
        if number == 0 or (probes and number % TURN == 0) or (first == 0 and state.given is not None):
            policy = _allocate(state, start, known)
        elif probes or number == len(proposed):  # nothing within the budget is known in the first round
            policy = probes.pop(0) if probes else proposed[0]
        else:
            near = near or _refine(config, state, start, known, random)
            policy = next(near)
        proposed.append(policy)
        known.add(policy.tobytes())
    return proposed


def check_additivity(
    policies: Int[np.ndarray, "N L 2"],
    losses: Float[np.ndarray, "N"],
    bounds: Bounds,
    sensitivity: Float[np.ndarray, "L 2 8"] | None = None,
) -> tuple[float, int]:
    """How well sums over layers put a search's own policies in order.

    Args:
      policies, losses: what it evaluated.
      sensitivity: what it was given; without, what its probes tell.

    Returns:
      Spearman's rank correlation of sums and losses over the policies that are no probes, and their number. NaN where
      they are too few, or all alike, to tell.

    >>> from haqjax.policies.bounds import make_bounds
    >>> policies = np.array([[[8, 8]], [[2, 8]], [[8, 2]], [[4, 4]], [[3, 3]], [[2, 3]]])
    >>> losses = 4.0 ** -policies.min(axis=(1, 2)) * policies[:, 0, 0] ** -0.5
    >>> check_additivity(policies, losses, make_bounds(1, pinned={}))
    (1.0, 3)
    """
    start = estimate(policies, -np.asarray(losses, float), bounds) if sensitivity is None else sensitivity
    probes = {probe.tobytes() for probe in list_probes(bounds, WIDTHS)}
    rows = [i for i, policy in enumerate(np.asarray(policies, np.int32)) if policy.tobytes() not in probes]
    return rank_correlation(start, policies[rows], np.asarray(losses)[rows]), len(rows)


def _check_given(sensitivity: Float[np.ndarray, "L 2 8"], problem: Problem) -> Float[np.ndarray, "L 2 8"]:
    wanted = (len(problem.table), 2, WIDTHS)
    if sensitivity.shape != wanted:
        raise ValueError(f"sensitivities have shape {sensitivity.shape}, but the problem needs {wanted}")
    return guard(sensitivity, problem.bounds, problem.names, factor=0)


def list_probes(bounds: Bounds, widths: int) -> list[Int[np.ndarray, "L 2"]]:
    """The widest policy, then those in which one entry is narrower; tied layers go together.

    >>> from haqjax.policies.bounds import make_bounds
    >>> [probe[0].tolist() for probe in list_probes(make_bounds(1, pinned={}), 2)]
    [[8, 8], [2, 8], [8, 2], [5, 8], [8, 5]]
    """
    widest, there = np.asarray(bounds.high), allowed(bounds)
    layers = range(len(widest))
    tied = np.arange(len(widest)) if bounds.tied is None else np.asarray(bounds.tied)
    probes = [np.array(widest, np.int32)]
    for turn in range(widths):
        for layer, column in ((layer, column) for layer in layers for column in (0, 1)):
            narrower = np.flatnonzero(there[layer, column])[:-1] + 1
            if tied[layer] != layer or turn >= len(narrower):
                continue
            probe = np.array(widest, np.int32)
            probe[tied == layer, column] = _spread(narrower)[turn]
            probes.append(probe)
    return probes


def estimate(
    policies: Int[np.ndarray, "N L 2"], rewards: Float[np.ndarray, "N"], bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """Sensitivities from the probes among some evaluations: what an entry loses by itself, of the widest policy.

    Between widths that were probed the logarithm is linear; beyond them, and where nothing was, a bit less has four
    times the squared error. More bits never lose more.
    """
    widest = np.asarray(bounds.high)
    law = FACTOR ** -np.arange(1.0, WIDTHS + 1) * (widest > np.asarray(bounds.low))[..., None]
    base = [reward for policy, reward in zip(policies, rewards, strict=True) if np.array_equal(policy, widest)]
    if not base:
        return law
    lost: dict[tuple[int, int], dict[int, float]] = {}
    for policy, reward in zip(policies, rewards, strict=True):
        changed = np.argwhere(policy != widest)
        tied = len(changed) and len({*changed[:, 1]}) == 1 and (bounds.tied is not None or len(changed) == 1)
        if tied and (bounds.tied is None or len({*np.asarray(bounds.tied)[changed[:, 0]]}) == 1):
            layer, column = (int(i) for i in changed[0])
            lost.setdefault((layer, column), {})[int(policy[layer, column])] = max(float(base[0] - reward), 0.0)
    largest = max((loss for told in lost.values() for loss in told.values()), default=0.0) or 1.0
    median = float(np.median([max(told.values()) for told in lost.values()])) if lost else largest
    sensitivity = law / law.max() * max(median, TIE * largest)
    for (layer, column), told in lost.items():
        sensitivity[layer, column] = _interpolate(told, int(widest[layer, column]), TIE * largest)
    return sensitivity


def _interpolate(told: dict[int, float], widest: int, least: float) -> Float[np.ndarray, "8"]:
    """Losses at all widths from those at some."""
    known = sorted(told)
    losses = np.maximum.accumulate([told[bits] for bits in reversed(known)])[::-1]
    logs = np.log(losses + least * FACTOR ** (min(known) - np.array(known, float)))
    bits = np.arange(1, WIDTHS + 1)
    steep = np.log(FACTOR)
    inside = np.interp(bits, known, logs)
    beyond = steep * (np.maximum(known[0] - bits, 0) - np.maximum(bits - known[-1], 0))
    return np.where(bits < widest, np.exp(inside + beyond), 0.0)


def _allocate(state: ILPState, start: Sensitivity, known: set[bytes]) -> Int[np.ndarray, "L 2"]:
    """The best policy that was not evaluated yet; the best one where the next ones all were."""
    found: list[Int[np.ndarray, "L 2"]] = []
    for _ in range(TRIES):
        try:
            policy = allocate(
                start, state.table, state.bounds, state.budget, other_than=found, gap=GAP, seconds=SECONDS
            ).policy
        except (ValueError, RuntimeError):
            if not found:
                raise
            break
        if policy.tobytes() not in known:
            return policy
        found.append(policy)
    return found[0]


def _refine(
    config: ILP, state: ILPState, start: Sensitivity, known: set[bytes], random: np.random.Generator
) -> Iterator[Int[np.ndarray, "L 2"]]:
    """Policies by what was learned within the budget; `known` may grow meanwhile."""
    policies, rewards = state.archive.seen
    inside = [i for i, policy in enumerate(policies) if is_within(state.table, state.budget, policy)]
    best = np.array(inside)[np.argsort(-rewards[inside], kind="stable")][: config.learned]
    posterior = fit(start, policies[best], -rewards[best].astype(float))
    space = make_space(state.table, state.bounds, state.budget)
    expected = mean(posterior)
    if len(space.room) != 1:  # prices are good for one resource; several, and memory, want the exact programme
        yield _allocate(state, expected, known)
    losses = lay_out(space, expected)
    while True:
        yield next(_unseen(space, losses, state, known), policies[best[0]])
        losses = lay_out(space, draw(posterior, random))


def _unseen(
    space: Space, losses: Float[np.ndarray, "G K"], state: ILPState, known: set[bytes]
) -> Iterator[Int[np.ndarray, "L 2"]]:
    """The best policy by some sensitivities, else those a few bits from it, that fit and were not evaluated."""
    taken = solve_by_prices(space, losses)
    near = (taken for _, taken in swaps(space, losses, taken))
    for one in itertools.chain([taken], near):
        policy = as_policy(space, one)
        if policy.tobytes() not in known and is_within(state.table, state.budget, policy):
            yield policy


def _spread(widths: Int[np.ndarray, "n"]) -> list[int]:
    """The lowest width, then the middle one of the rest, then the middles between."""
    order, spans = [int(widths[0])], [list(map(int, widths[1:]))]
    while spans:
        span = spans.pop(0)
        if span:
            middle = (len(span) - 1) // 2
            order.append(span[middle])
            spans += [span[:middle], span[middle + 1 :]]
    return order
