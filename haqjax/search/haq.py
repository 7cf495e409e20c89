"""HAQ (Wang et al. 2019): a DDPG agent that walks the layers and decides their widths."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.agent.ddpg import DDPG, AgentState, make_agent
from haqjax.agent.replay import ReplayState, add, make_replay
from haqjax.policy import to_bits
from haqjax.search.base import Problem, Searcher
from haqjax.search.features import FIRST, observe
from haqjax.types import WIDTHS, Bounds, Transition

REWARD = 10.0  # reward per unit of accuracy: 0.1 for each point (Wang et al. 2019, equation 8)


@dataclasses.dataclass(frozen=True)
class HAQ:
    """The method's numbers.

    Raises:
      ValueError: fewer than one explorer, or a negative number of updates.
    """

    agent: DDPG = DDPG()
    parallel: int = 1  # explorers a round; they share one agent, which learns after the round
    updates: float = 1.0  # of the agent, per decision

    def __post_init__(self) -> None:
        if self.parallel < 1 or self.updates < 0:
            raise ValueError(f"parallel {self.parallel} must be at least 1 and updates {self.updates} at least 0")


class HAQState(NamedTuple):
    """Everything that a search with HAQ carries on."""

    agent: AgentState
    memory: ReplayState
    episode: Int[Array, ""]
    key: PRNGKeyArray  # for learning; folded with the episode
    features: Float[Array, "2L 9"]
    bounds: Bounds


@functools.cache
def make_haq(config: HAQ = HAQ()) -> Searcher:
    """The method as a searcher.

    An episode walks the layers; at each the agent chooses weights, then activations. Every decision of an episode gets
    the episode's reward. What the agent proposed is remembered, not what the budget left of it.

    >>> make_haq(HAQ(DDPG(warmup=5), parallel=4)) is make_haq(HAQ(DDPG(warmup=5), parallel=4))
    True
    """
    agent = make_agent(config.agent)

    def init(problem: Problem, key: PRNGKeyArray) -> HAQState:
        agent_key, learn_key = jax.random.split(key)
        layers = problem.bounds.low.shape[0]
        memory = make_replay(max(config.agent.memory, 2 * config.parallel) * layers, config.agent.observation_size)
        return HAQState(
            agent.init(agent_key), memory, jnp.int32(0), learn_key, jnp.asarray(problem.features), problem.bounds
        )

    def ask(state: HAQState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        episodes = state.episode + jnp.arange(config.parallel)
        decisions, limits = state.features.shape[0], jax.tree.map(jnp.ravel, state.bounds)

        def decide(before: Float[Array, "N 1"], decision: tuple) -> tuple[Float[Array, "N 1"], Float[Array, "N"]]:
            row, limit, keys = decision
            seen = jnp.concatenate([jnp.broadcast_to(row, (config.parallel, row.size)), before], axis=-1)
            actions = jax.vmap(agent.act, (None, 0, 0, 0))(state.agent, seen, episodes, keys)
            return to_bits(actions, limit)[:, None] / WIDTHS, actions

        keys = jax.random.split(key, (decisions, config.parallel))
        first = jnp.full((config.parallel, 1), FIRST)
        _, actions = jax.lax.scan(decide, first, (state.features, limits, keys))
        return actions.T.reshape(config.parallel, -1, 2)

    def tell(state: HAQState, actions: Array, policies: Array, gains: Array) -> HAQState:
        memory = add(state.memory, _remember(state, actions, REWARD * gains, config.agent.discount))
        episode = state.episode + len(gains)
        updates = round(config.updates * actions.size)
        learned = jax.lax.cond(
            episode > config.agent.warmup,
            lambda: agent.learn(state.agent, memory, jax.random.fold_in(state.key, episode), updates),
            lambda: state.agent,
        )
        return state._replace(agent=learned, memory=memory, episode=episode)

    return Searcher(init, ask, tell)


def _remember(
    state: HAQState, actions: Float[Array, "N L 2"], rewards: Float[Array, "N"], discount: float
) -> Transition:
    """The decisions of N episodes as rows [N 2L]."""
    seen = observe(state.features, to_bits(actions, state.bounds))
    shape = seen.shape[:2]
    following = jnp.roll(seen, -1, axis=1)  # after the last decision nothing follows: its discount is 0
    discounts = jnp.full(shape, discount).at[:, -1].set(0)
    rows = Transition(seen, actions.reshape(shape), jnp.broadcast_to(rewards[:, None], shape), following, discounts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
