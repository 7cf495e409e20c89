"""Deep deterministic policy gradients (Lillicrap et al. 2016) with the values of HAQ (Wang et al. 2019)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.agent.networks import Actor, Critic, choose, make_actor, make_critic, value
from haqjax.agent.noise import truncated_normal
from haqjax.agent.replay import ReplayState, sample
from haqjax.types import Transition

Params = TypeVar("Params", Actor, Critic)


@dataclasses.dataclass(frozen=True)
class DDPG:
    """Hyperparameters of the agent; the defaults are those of HAQ's paper and code.

    Raises:
      ValueError: a value that no agent can learn with.
    """

    observation_size: int = 10
    hidden: tuple[int, int] = (400, 300)
    actor_rate: float = 1e-4  # Adam's step size
    critic_rate: float = 1e-3
    mixing: float = 0.01  # how far the target networks follow at each update
    discount: float = 1.0
    batch: int = 64
    memory: int = 128  # decisions remembered, per layer of the network
    warmup: int = 20  # episodes of uniform actions, without learning
    sigma: float = 0.5  # exploration in the first episode after them
    decay: float = 0.99  # of sigma, per episode
    baseline_mixing: float = 0.5  # how far the moving baseline follows the mean reward of a batch
    twin: bool = False  # two critics, of which targets take the smaller value (Fujimoto et al. 2018); not HAQ's

    def __post_init__(self) -> None:
        for name in ("observation_size", "batch", "memory", "actor_rate", "critic_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("mixing", "discount", "decay", "baseline_mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if len(self.hidden) != 2 or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected the sizes of two layers")
        if self.warmup < 0 or self.sigma < 0:
            raise ValueError(f"warmup {self.warmup} and sigma {self.sigma} must not be negative")


class AgentState(NamedTuple):
    """State of an agent, apart from its memory."""

    actor: Actor
    critic: Critic  # with twins: two, along a leading axis
    target_actor: Actor
    target_critic: Critic
    actor_moments: optax.OptState
    critic_moments: optax.OptState
    baseline: Float[Array, ""]  # moving mean of rewards
    updates: Int[Array, ""]  # done so far


class Agent(NamedTuple):
    """One agent's pure functions."""

    init: Callable[[PRNGKeyArray], AgentState]
    act: Callable[..., Float[Array, ""]]  # (state, observation, episode, key) -> action in [0, 1]
    update: Callable[[AgentState, Transition], AgentState]  # one step on a batch of decisions
    learn: Callable[..., AgentState]  # (state, memory, key, updates) -> state: so many steps on batches from a memory


def make_agent(config: DDPG) -> Agent:
    """Makes the functions of an agent with these hyperparameters.

    >>> agent = make_agent(DDPG(hidden=(8, 8)))
    >>> state = agent.init(jax.random.key(0))
    >>> action = agent.act(state, jnp.ones(10), 500, jax.random.key(1))
    >>> bool(0 <= action <= 1)
    True
    """
    actor_adam, critic_adam = optax.adam(config.actor_rate), optax.adam(config.critic_rate)

    def init(key: PRNGKeyArray) -> AgentState:
        actor_key, critic_key = jax.random.split(key)
        actor = make_actor(actor_key, config.observation_size, config.hidden)
        critic = _make_critics(critic_key, config)
        moments = actor_adam.init(actor), critic_adam.init(critic)
        return AgentState(actor, critic, actor, critic, *moments, jnp.float32(0), jnp.int32(0))

    def act(
        state: AgentState, observation: Float[Array, "s"], episode: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        uniform_key, noise_key = jax.random.split(key)
        sigma = config.sigma * config.decay ** jnp.maximum(episode - config.warmup, 0)
        strayed = truncated_normal(noise_key, choose(state.actor, observation), sigma)
        return jnp.where(episode < config.warmup, jax.random.uniform(uniform_key), strayed)

    def update(state: AgentState, batch: Transition) -> AgentState:
        baseline = _follow_mean(state, batch, config.baseline_mixing)
        target = batch.reward - baseline + batch.discount * _next_value(state, batch, config.twin)
        error = jax.grad(_critic_loss)(state.critic, batch, target, config.twin)
        critic, critic_moments = _step(critic_adam, error, state.critic_moments, state.critic)
        first = jax.tree.map(lambda x: x[0], critic) if config.twin else critic
        slope = jax.grad(_actor_loss)(state.actor, first, batch)
        actor, actor_moments = _step(actor_adam, slope, state.actor_moments, state.actor)
        target_actor, target_critic = optax.incremental_update(
            (actor, critic), (state.target_actor, state.target_critic), config.mixing
        )
        return AgentState(
            actor, critic, target_actor, target_critic, actor_moments, critic_moments, baseline, state.updates + 1
        )

    def learn(state: AgentState, memory: ReplayState, key: PRNGKeyArray, updates: int) -> AgentState:
        batches = sample(memory, key, (updates, config.batch))
        return jax.lax.scan(lambda state, batch: (update(state, batch), None), state, batches)[0]

    return Agent(init, act, update, learn)


def _make_critics(key: PRNGKeyArray, config: DDPG) -> Critic:
    """Draws the critic, or both of them along a leading axis."""

    def draw(key: PRNGKeyArray) -> Critic:
        return make_critic(key, config.observation_size, config.hidden)

    return jax.vmap(draw)(jax.random.split(key)) if config.twin else draw(key)


_choose, _value = jax.vmap(choose, (None, 0)), jax.vmap(value, (None, 0, 0))
_values = jax.vmap(_value, (0, None, None))


def _follow_mean(state: AgentState, batch: Transition, mixing: float) -> Float[Array, ""]:
    """Moves the baseline after a batch; it starts at the first batch's mean."""
    mean = batch.reward.mean()
    return jnp.where(state.updates == 0, mean, state.baseline + mixing * (mean - state.baseline))


def _next_value(state: AgentState, batch: Transition, twin: bool) -> Float[Array, "b"]:
    action = _choose(state.target_actor, batch.next_observation)
    if twin:
        return _values(state.target_critic, batch.next_observation, action).min(axis=0)
    return _value(state.target_critic, batch.next_observation, action)


def _critic_loss(critic: Critic, batch: Transition, target: Float[Array, "b"], twin: bool) -> Float[Array, ""]:
    if twin:
        values = _values(critic, batch.observation, batch.action)
        return jnp.sum(jnp.mean((values - target[None]) ** 2, axis=-1))
    value = _value(critic, batch.observation, batch.action)
    chex.assert_equal_shape([value, target])  # [b] against [b, 1] would broadcast, and the agent would learn nonsense
    return jnp.mean((value - target) ** 2)


def _actor_loss(actor: Actor, critic: Critic, batch: Transition) -> Float[Array, ""]:
    return -jnp.mean(_value(critic, batch.observation, _choose(actor, batch.observation)))


def _step(
    adam: optax.GradientTransformation, gradient: Params, moments: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    change, moments = adam.update(gradient, moments, params)
    return optax.apply_updates(params, change), moments
