"""Greedy search: bits fall where they save most for what they lose, until the budget is kept."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.allocation.additive import ERROR_PER_BIT
from haqjax.allocation.choices import allowed, limited
from haqjax.policies.actions import to_actions
from haqjax.policies.budgets import fits_exactly
from haqjax.searchers.base import Problem, Searcher
from haqjax.types import ACTIVATION, WEIGHT, Bounds, Budget, CostTable

LEAST = 1e-6  # added to a loss, so that what a step saves tells apart those that lose nothing
TINY = 1e-12  # in place of no saving


class GreedyState(NamedTuple):
    """State of a greedy search: the policy of the moment, and the loss expected of each entry's next step."""

    policy: Int[np.ndarray, "L 2"]
    reward: Float[np.ndarray, ""]  # of the policy; NaN until it was evaluated
    loss: Float[np.ndarray, "L 2"]
    fresh: Bool[np.ndarray, "L 2"]  # whether that was measured
    evaluated: Int[np.ndarray, ""]  # episodes
    there: Bool[np.ndarray, "L 2 8"]  # the widths that each entry may have
    tied: Int[np.ndarray, "L"]
    table: CostTable
    bounds: Bounds
    budget: Budget


@functools.cache
def make_greedy(parallel: int = 1) -> Searcher:
    """Lowers one entry after another: the one with the least measured loss for the fraction of the budgets it frees.

    What an entry's next bit loses is measured once, from the policy of the moment, before it can be taken. The first
    episode walks all the way by the law that a bit less has four times the squared error, so that there is a policy
    within the budget from the start; once the walk ends, its policy is proposed again and again.

    >>> make_greedy(4) is make_greedy(4)
    True
    """

    def init(problem: Problem, key: PRNGKeyArray) -> GreedyState:
        high, limits = np.asarray(problem.bounds.high, np.int32), problem.bounds
        nothing = np.zeros(high.shape)  # so that entries are measured before they are taken
        tied = np.arange(len(high)) if limits.tied is None else np.asarray(limits.tied)
        start = high, np.asarray(np.nan), nothing, nothing > 0, np.zeros((), np.int32), allowed(limits), tied
        return GreedyState(*start, problem.table, limits, problem.budget)

    def ask(state: GreedyState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        proposed = [] if state.evaluated else [_descend(state)]
        proposed += [state.policy] if np.isnan(state.reward) else []
        proposed += [_lower(state, *entry) for entry in _order(state) if not state.fresh[entry]]
        proposed = (proposed + [state.policy] * parallel)[:parallel]
        return to_actions(jnp.asarray(np.stack(proposed)), state.bounds)

    def tell(state: GreedyState, actions: Array, policies: Array, rewards: Array) -> GreedyState:
        rewards_by_policy = {
            np.asarray(policy).tobytes(): float(reward) for policy, reward in zip(policies, rewards, strict=True)
        }
        state = state._replace(evaluated=np.asarray(state.evaluated + len(rewards), np.int32))
        if np.isnan(state.reward):
            state = state._replace(reward=np.asarray(rewards_by_policy.get(state.policy.tobytes(), np.nan)))
        if np.isnan(state.reward):
            return state
        loss, fresh = state.loss.copy(), state.fresh.copy()
        for entry in _order(state):
            reward = rewards_by_policy.get(_lower(state, *entry).tobytes())
            if reward is not None:
                loss[entry], fresh[entry] = float(state.reward) - reward, True
        return _walk(state._replace(loss=loss, fresh=fresh), rewards_by_policy)

    return Searcher(init, ask, tell, on_host=True, projected=False, objective="loss")


def _walk(state: GreedyState, rewards_by_policy: dict[bytes, float]) -> GreedyState:
    """Takes steps for as long as the best one was measured; the policy's reward may then have to be."""
    while (order := _order(state)) and state.fresh[order[0]]:
        entry, loss, fresh = order[0], state.loss.copy(), state.fresh.copy()
        loss[entry] = max(loss[entry], 0) * ERROR_PER_BIT
        fresh[entry] = False
        policy = _lower(state, *entry)
        reward = np.asarray(rewards_by_policy.get(policy.tobytes(), np.nan))
        state = state._replace(policy=policy, reward=reward, loss=loss, fresh=fresh)
    return state


def _descend(state: GreedyState) -> Int[np.ndarray, "L 2"]:
    """Walks by predicted losses alone, to the first policy within the budget."""
    state = state._replace(loss=ERROR_PER_BIT ** -state.policy.astype(float))
    while order := _order(state):
        loss = state.loss.copy()
        loss[order[0]] *= ERROR_PER_BIT
        state = state._replace(policy=_lower(state, *order[0]), loss=loss)
    return state.policy


def _order(state: GreedyState) -> list[tuple[int, int]]:
    """Entries that can fall, by loss for what is freed; none once the budget is kept."""
    if fits_exactly(state.table, state.policy, state.budget):
        return []
    fractions, room = limited(state.table, state.budget)
    over = [
        max(float(_costs(values, state.policy).sum()) - left, 0.0) for values, left in zip(fractions, room, strict=True)
    ]
    scores: dict[tuple[int, int], float] = {}
    for layer, column in np.argwhere(np.asarray(state.policy) > np.asarray(state.bounds.low)).tolist():
        if state.tied[layer] != layer:
            continue
        lowered = _lower(state, layer, column)
        freed = sum(
            excess * float((_costs(values, state.policy) - _costs(values, lowered)).sum())
            for excess, values in zip(over, fractions, strict=True)
        )
        loss = float(state.loss[layer, column])
        scores[layer, column] = loss if loss < 0 else (loss + LEAST) / max(freed, TINY)
    return sorted(scores, key=scores.__getitem__)


def _lower(state: GreedyState, layer: int, column: int) -> Int[np.ndarray, "L 2"]:
    """Moves one entry, and those tied to it, to the next width below."""
    policy = np.array(state.policy, np.int32)
    below = np.flatnonzero(state.there[layer, column, : policy[layer, column] - 1])[-1] + 1
    policy[state.tied == state.tied[layer], column] = below
    return policy


def _costs(values: Float[np.ndarray, "L 8 8"], policy: Int[np.ndarray, "L 2"]) -> Float[np.ndarray, "L"]:
    return values[np.arange(len(policy)), policy[:, WEIGHT] - 1, policy[:, ACTIVATION] - 1]
