"""HAQ (Wang et al. 2019): a DDPG agent that walks the layers and decides their widths."""

import dataclasses
import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.agent.ddpg import DDPG, AgentState, make_agent
from haqjax.agent.replay import ReplayState, add, make_replay
from haqjax.allocation import allocate
from haqjax.allocation.additive import sensitivity_by_law
from haqjax.policies.actions import to_actions, to_bits
from haqjax.searchers.base import Problem, Searcher
from haqjax.searchers.haq_extensions import (
    LOWEST,
    Best,
    Kept,
    empty_kept,
    keep,
    near,
    swap,
    update_best,
    with_kept,
)
from haqjax.searchers.haq_features import COSTS, FIRST, describe, describe_costs, observe
from haqjax.types import WIDTHS, Bounds, Budget, CostTable, Transition

REWARD_SCALE = 10.0  # reward per unit of accuracy: 0.1 for each point (Wang et al. 2019, equation 8)
EXTENSIONS = ("costs", "loss", "retain", "start", "swap", "twin")
RETAINED = 8  # episodes


@dataclasses.dataclass(frozen=True)
class HAQ:
    """Numbers of the method; the last five are not HAQ's and off, see `extend`.

    Raises:
      ValueError: fewer than one explorer, a negative number, or more episodes retained than there are in the warm-up.
    """

    agent: DDPG = DDPG()
    parallel: int = 1  # explorers a round; they have one agent, which learns after the round
    updates: float = 1.0  # of the agent, per decision
    start: tuple[tuple[int, int], ...] | None = None  # a policy that the warm-up stays near, such as an allocation
    retain: int = 0  # best episodes that the memory never forgets
    swap: int | None = None  # the episode from which bits of the best policy are swapped at random
    costs: bool = False  # the agent also sees what each decision costs
    loss: bool = False  # rewards are of the loss, where it is measured

    def __post_init__(self) -> None:
        if self.parallel < 1 or self.updates < 0:
            raise ValueError(f"parallel {self.parallel} must be at least 1 and updates {self.updates} at least 0")
        if not 0 <= self.retain <= self.agent.warmup:
            raise ValueError(f"retain is {self.retain}: expected 0 to the {self.agent.warmup} episodes of the warm-up")

    @property
    def adds_proposals(self) -> bool:
        return self.start is not None or self.swap is not None


class HAQState(NamedTuple):
    """State of a search with HAQ."""

    agent: AgentState
    memory: ReplayState
    episode: Int[Array, ""]
    key: PRNGKeyArray  # for learning; folded with the episode
    features: Float[Array, "2L f"]
    bounds: Bounds
    kept: Kept
    best: Best


@functools.cache
def make_haq(config: HAQ = HAQ()) -> Searcher:
    """Makes the searcher.

    An episode walks the layers; at each the agent chooses weights, then activations. Every decision of an episode gets
    the episode's reward. What the agent proposed is remembered, not what the budget left of it.

    >>> make_haq(HAQ(DDPG(warmup=5), parallel=4)) is make_haq(HAQ(DDPG(warmup=5), parallel=4))
    True
    """
    observation_size = config.agent.observation_size + COSTS * config.costs
    agent = make_agent(dataclasses.replace(config.agent, observation_size=observation_size))

    def init(problem: Problem, key: PRNGKeyArray) -> HAQState:
        return begin(describe(problem.layers), problem.table, problem.bounds, problem.budget, key)

    @jax.jit
    def begin(
        features: Float[Array, "2L 9"], table: CostTable, bounds: Bounds, budget: Budget, key: PRNGKeyArray
    ) -> HAQState:
        agent_key, learn_key = jax.random.split(key)
        layers = bounds.low.shape[0]
        memory = make_replay(max(config.agent.memory, 2 * config.parallel) * layers, observation_size)
        kept = empty_kept(memory.storage, config.retain, 2 * layers)
        start = bounds.high if config.start is None else config.start
        best = Best(jnp.asarray(start, jnp.int32), jnp.float32(LOWEST))
        if config.costs:
            features = jnp.concatenate([features, describe_costs(table, budget)], axis=1)
        return HAQState(agent.init(agent_key), memory, jnp.int32(0), learn_key, features, bounds, kept, best)

    def ask(state: HAQState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        episodes = state.episode + jnp.arange(config.parallel)
        decisions, limits = state.features.shape[0], _decisions(state.bounds)

        def decide(before: Float[Array, "N 1"], decision: tuple) -> tuple[Float[Array, "N 1"], Float[Array, "N"]]:
            row, limit, keys = decision
            observed = jnp.concatenate([jnp.broadcast_to(row, (config.parallel, row.size)), before], axis=-1)
            actions = jax.vmap(agent.act, (None, 0, 0, 0))(state.agent, observed, episodes, keys)
            return to_bits(actions, limit)[:, None] / WIDTHS, actions

        walk_key, other_key = jax.random.split(key) if config.adds_proposals else (key, key)
        keys = jax.random.split(walk_key, (decisions, config.parallel))
        first = jnp.full((config.parallel, 1), FIRST)
        _, actions = jax.lax.scan(decide, first, (state.features, limits, keys))
        actions = actions.T.reshape(config.parallel, -1, 2)
        return propose(state, episodes, actions, other_key) if config.adds_proposals else actions

    def propose(state: HAQState, episodes: Int[Array, "N"], actions: Array, key: PRNGKeyArray) -> Array:
        start_key, swap_key = jax.random.split(key)
        if config.start is not None:
            start = jnp.asarray(config.start, jnp.int32)
            close = near(start, state.bounds, start_key, config.parallel)
            close = jnp.where(episodes[:, None, None] == 0, to_actions(start, state.bounds)[None], close)
            actions = jnp.where((episodes < config.agent.warmup)[:, None, None], close, actions)
        if config.swap is not None:
            swapped = swap(state.best, state.bounds, swap_key, config.parallel)
            actions = jnp.where((episodes >= config.swap)[:, None, None], swapped, actions)
        return actions

    def tell(state: HAQState, actions: Array, policies: Array, rewards: Array) -> HAQState:
        scaled = REWARD_SCALE * (jnp.expm1(rewards) if config.loss else rewards)
        rows = _remember(state, actions, scaled, config.agent.discount)
        memory, kept = add(state.memory, rows), keep(state.kept, rows, rewards)
        episode = state.episode + len(rewards)
        updates = round(config.updates * actions.size)
        learned = jax.lax.cond(
            episode > config.agent.warmup,
            lambda: agent.learn(state.agent, with_kept(memory, kept), jax.random.fold_in(state.key, episode), updates),
            lambda: state.agent,
        )
        best = update_best(state.best, policies, rewards)
        return state._replace(agent=learned, memory=memory, episode=episode, kept=kept, best=best)

    return Searcher(init, ask, tell, objective="loss" if config.loss else "accuracy")


def _decisions(bounds: Bounds) -> Bounds:
    """Returns the bounds of each decision of a walk; tied layers are decided like others and follow afterwards."""
    allowed = None if bounds.allowed is None else bounds.allowed.reshape(-1, WIDTHS)
    return Bounds(bounds.low.ravel(), bounds.high.ravel(), allowed)


def _remember(
    state: HAQState, actions: Float[Array, "N L 2"], rewards: Float[Array, "N"], discount: float
) -> Transition:
    """Lays the decisions of N episodes out as rows [N 2L]."""
    observed = observe(state.features, to_bits(actions, state.bounds._replace(tied=None)))
    shape = observed.shape[:2]
    following = jnp.roll(observed, -1, axis=1)  # after the last decision nothing follows: its discount is 0
    discounts = jnp.full(shape, discount).at[:, -1].set(0)
    rows = Transition(observed, actions.reshape(shape), jnp.broadcast_to(rewards[:, None], shape), following, discounts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def extend(config: HAQ, extensions: Collection[str], problem: Problem | None, episodes: int) -> HAQ:
    """Adds extensions to the method, none of which is in the paper; each can be had alone.

    "costs": the agent also sees what each decision costs of the budget. "start": the warm-up stays near the allocation
    that is best if each bit less has four times the squared error. "loss": rewards go by the loss, which differs where
    accuracies are equal: the geometric mean of the right classes' probabilities over the float network's, less 1, in
    place of the difference of accuracy; it is as bounded as that is. "swap": in the second half of the episodes bits of
    the best policy are swapped at random. "retain": the memory never forgets the best 8 episodes. "twin": two critics,
    of which targets take the lower value.

    Args:
      config: the method to extend.
      extensions: of `EXTENSIONS`.
      problem: its table, bounds and budget say where "start" is; the others do without.
      episodes: of the search.

    Raises:
      ValueError: an unknown extension, or "start" without a problem.

    >>> extend(HAQ(), ["twin", "swap"], None, 100).swap
    50
    """
    unknown = sorted(set(extensions) - set(EXTENSIONS))
    if unknown:
        raise ValueError(f"unknown extension {unknown[0]!r}: there are {', '.join(EXTENSIONS)}")
    if "start" in extensions:
        if problem is None:
            raise ValueError("the extension 'start' needs a problem: its budget says where the search starts")
        law = sensitivity_by_law(len(problem.layers))
        policy = allocate(law, problem.table, problem.bounds, problem.budget).policy
        config = dataclasses.replace(config, start=tuple((int(weight), int(act)) for weight, act in policy))
    if "swap" in extensions:
        config = dataclasses.replace(config, swap=episodes // 2)
    if "retain" in extensions:
        config = dataclasses.replace(config, retain=min(RETAINED, config.agent.warmup))
    agent = dataclasses.replace(config.agent, twin="twin" in extensions)
    return dataclasses.replace(config, agent=agent, costs="costs" in extensions, loss="loss" in extensions)
