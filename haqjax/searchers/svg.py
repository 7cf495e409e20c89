"""Stochastic value gradients (Heess et al. 2015): an actor that learns through a differentiable model of its walk."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.agent.networks import Actor, Critic, make_actor, make_critic
from haqjax.policies.actions import to_actions
from haqjax.policies.budget_fill import fill_budget, normalise_costs, normalised_cost
from haqjax.searchers import history
from haqjax.searchers.base import Problem, Searcher
from haqjax.searchers.gradient import TRIES, check_soft_loss
from haqjax.searchers.haq_features import describe, describe_costs
from haqjax.searchers.history import CAPACITY, History
from haqjax.searchers.relaxation import DUAL_RATE, find_boundary
from haqjax.searchers.svg_model import Missing, expect, lagrangian, retrace, score, walk
from haqjax.types import Bounds, CostTable

MODEL_BATCHES = 2  # of the soft loss, that a policy's evaluation is held against
BACKWARD = 3  # passes that one forward and back counts as
EDGE = 0.02  # the actor's first actions keep this distance from 0 and 1, where the sigmoid is flat
MEMORY = 0.8  # of the moving means of the critic's errors, a round
LEAST_DEVIATION = 1e-6  # nats


@dataclasses.dataclass(frozen=True)
class SVG:
    """Numbers of the method.

    Raises:
      ValueError: one that no search can run with.
    """

    parallel: int = 1  # policies a round
    hidden: tuple[int, int] = (64, 48)
    opening: int = 60  # steps of the actor before the first round; each goes forward and back over one batch
    steps: int = 1  # of the actor, for each policy evaluated
    identity: bool = True  # actor and critic also see which decision it is, one column each
    critic: bool = True  # a critic learns what the model misses
    critic_steps: int = 40  # of the critic, a round
    batch: int = 64  # policies that a step of the critic learns from
    actor_rate: float = 3e-3  # Adam's step size
    critic_rate: float = 3e-3
    sigma: float = 0.5  # of the walks' noise at first, in ranks
    decay: float = 0.98  # of sigma, per policy evaluated
    least_sigma: float = 0.15

    def __post_init__(self) -> None:
        numbers = (self.parallel, self.opening, self.batch, self.actor_rate, self.critic_rate, *self.hidden)
        if not all(number > 0 for number in numbers) or len(self.hidden) != 2:
            raise ValueError(f"sizes, rates and opening steps of an actor by gradients must be positive, got {self}")
        if min(self.steps, self.critic_steps) < 0 or not (0 <= self.least_sigma <= self.sigma and 0 <= self.decay <= 1):
            raise ValueError(f"steps must not be negative, 0 <= least_sigma <= sigma and 0 <= decay <= 1, got {self}")


class SVGState(NamedTuple):
    """State of a search by stochastic value gradients."""

    actor: Actor
    actor_moments: optax.OptState
    critic: Critic
    critic_moments: optax.OptState
    multiplier: Float[Array, "R"]
    history: History  # rewards are differences of loss
    missed: Float[Array, "C"]  # by the model, of each policy of the history: nats
    errors: Float[Array, "2"]  # moving mean squares: of what the critic foretold, of the mean
    passes: Int[Array, ""]  # over one batch of the soft loss so far; a gradient counts as three
    key: PRNGKeyArray  # folded with the number of policies
    features: Float[Array, "2L g"]
    costs: CostTable  # normalised
    bounds: Bounds
    reference: Float[Array, ""]  # loss that rewards are over


@functools.cache
def make_svg(config: SVG = SVG()) -> Searcher:
    """Makes the searcher.

    An actor walks the layers as HAQ's does, with continuous widths, and learns by the gradient of the whole walk's loss
    and cost: the differentiable loss under fractional bits, the interpolated cost table with a Lagrangian for each
    limit. `init` takes `opening` such steps, `learn` some after each round. The policies of a round are walks with
    noise, rounded within the budget (`haqjax.policies.budget_fill.fill_budget`); those that were evaluated before give
    way to walks with more noise. A critic learns what the model misses, evaluated loss minus soft loss, as a sum of
    values over the decisions, and is heeded by the share of the variance that it foretells of new policies.

    What it spends beside evaluations stands in `state.passes`, in passes over one batch of the soft loss: three for a
    step of the actor, `MODEL_BATCHES` for a policy that the critic learns from. Divided by the evaluator's images over
    the batch's these are evaluations; a pass quantises every tensor at two widths and takes longer than that.

    >>> make_svg(SVG(parallel=4)) is make_svg(SVG(parallel=4))
    True
    """
    adam, critic_adam = optax.adam(config.actor_rate, b2=0.99), optax.adam(config.critic_rate)

    def init(problem: Problem, key: PRNGKeyArray) -> SVGState:
        check_soft_loss(problem)
        begin_key, step_key = jax.random.split(key)
        state = begin(problem, describe(problem.layers), begin_key)
        return train(problem.evaluator.soft_loss, state, step_key, config.opening)

    @jax.jit
    def begin(problem: Problem, features: Float[Array, "2L 9"], key: PRNGKeyArray) -> SVGState:
        actor_key, critic_key, own_key = jax.random.split(key, 3)
        costs = normalise_costs(problem.table, problem.bounds, problem.budget)
        fraction, _ = find_boundary(costs, problem.bounds)
        own = jnp.eye(len(features)) if config.identity else jnp.zeros((len(features), 0))
        features = jnp.concatenate([features, describe_costs(problem.table, problem.budget), own], axis=1)
        size = features.shape[1] + 1
        actor = _begin_at(make_actor(actor_key, size, config.hidden), fraction)
        critic = make_critic(critic_key, size, config.hidden)
        return SVGState(
            actor,
            adam.init(actor),
            critic,
            critic_adam.init(critic),
            jnp.zeros(normalised_cost(costs, problem.bounds.low).shape),
            history.empty(len(problem.layers)),
            jnp.zeros(CAPACITY),
            jnp.zeros(2),
            jnp.int32(0),
            own_key,
            features,
            costs,
            problem.bounds,
            jnp.nan_to_num(problem.reference_loss),
        )

    def ask(state: SVGState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        noise = jax.random.normal(key, (config.parallel * TRIES, *state.bounds.low.shape))
        tries = jnp.arange(len(noise)) // config.parallel + 1  # each strays further, where those before are known
        plain = (jnp.arange(len(noise)) == 0) & (state.history.total == 0)  # the first of all follows the actor
        noise = jnp.where(plain, 0, sigma(state) * tries)[:, None, None] * noise
        walked = jax.vmap(walk, (None, None, None, 0))(state.actor, state.features, state.bounds, noise)
        candidates = fill_budget(walked.rank + 0.5, state.costs, state.bounds)
        return to_actions(history.first_new(state.history, candidates, config.parallel), state.bounds)

    def tell(state: SVGState, actions: Array, policies: Array, rewards: Array) -> SVGState:
        return state._replace(history=history.note(state.history, policies, rewards))

    def learn(problem: Problem, state: SVGState) -> SVGState:
        critic_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.history.total))
        soft_loss = problem.evaluator.soft_loss
        state = teach(soft_loss, state, critic_key) if config.critic else state
        return train(soft_loss, state, step_key, config.steps * config.parallel)

    def sigma(state: SVGState) -> Float[Array, ""]:
        return jnp.maximum(config.sigma * config.decay**state.history.total, config.least_sigma)

    @jax.jit
    def train(
        soft_loss: jax.tree_util.Partial, state: SVGState, key: PRNGKeyArray, steps: int | Int[Array, ""]
    ) -> SVGState:
        """Takes steps of the actor down the gradient of loss and cost, and of the multipliers up."""
        missing = describe_missing(state)

        def step(_: int, carry: tuple[SVGState, PRNGKeyArray]) -> tuple[SVGState, PRNGKeyArray]:
            state, key = carry
            key, noise_key, batch_key = jax.random.split(key, 3)
            noise = sigma(state) * jax.random.normal(noise_key, state.bounds.low.shape)
            index = jax.random.randint(batch_key, (), 0, 1 << 20)

            def objective(actor: Actor) -> tuple[Float[Array, ""], Float[Array, "R"]]:
                walked = walk(actor, state.features, state.bounds, noise)
                return lagrangian(soft_loss, walked, missing, state.costs, state.bounds, state.multiplier, index)

            slope, over = jax.grad(objective, has_aux=True)(state.actor)
            change, moments = adam.update(jax.tree.map(jnp.nan_to_num, slope), state.actor_moments)
            state = state._replace(
                actor=optax.apply_updates(state.actor, change),
                actor_moments=moments,
                multiplier=jnp.maximum(state.multiplier + DUAL_RATE * over, 0),
                passes=state.passes + BACKWARD,
            )
            return state, key

        return jax.lax.fori_loop(0, steps, step, (state, key))[0]

    @jax.jit
    def teach(soft_loss: jax.tree_util.Partial, state: SVGState, key: PRNGKeyArray) -> SVGState:
        return fit_critic(hold_against_model(soft_loss, state), key)

    def hold_against_model(soft_loss: jax.tree_util.Partial, state: SVGState) -> SVGState:
        """Notes what the model missed of the latest round, and how well the critic foretold that."""
        total, capacity = state.history.total, len(state.missed)
        at = (total - config.parallel + jnp.arange(config.parallel)) % capacity
        policies = state.history.policies[at].astype(jnp.int32)

        def model(policy: Int[Array, "L 2"]) -> Float[Array, ""]:
            losses = jax.lax.map(lambda index: soft_loss(policy.astype(jnp.float32), index), jnp.arange(MODEL_BATCHES))
            return losses.mean()

        missed = jnp.nan_to_num(state.reference - state.history.rewards[at] - jax.lax.map(model, policies))
        missing = describe_missing(state)
        foretold = expect(missing, *retrace(state.features, policies, state.bounds))
        errors = jnp.stack([jnp.mean((missed - guess) ** 2) for guess in (foretold, missing.mean)])
        known = (total > config.parallel).astype(jnp.float32)  # before anything is known, nothing is foretold
        return state._replace(
            missed=state.missed.at[at].set(missed),
            errors=MEMORY * state.errors + known * (1 - MEMORY) * errors,
            passes=state.passes + MODEL_BATCHES * config.parallel,
        )

    def describe_missing(state: SVGState) -> Missing:
        there = jnp.arange(len(state.missed)) < state.history.total
        count = jnp.maximum(there.sum(), 1)
        mean = jnp.where(there, state.missed, 0).sum() / count
        deviation = jnp.sqrt(jnp.where(there, (state.missed - mean) ** 2, 0).sum() / count)
        foretold, plain = state.errors
        trust = jnp.where(plain > 0, jnp.clip(1 - foretold / jnp.where(plain > 0, plain, 1), 0, 1), 0)
        return Missing(state.critic, mean, deviation, trust)

    def fit_critic(state: SVGState, key: PRNGKeyArray) -> SVGState:
        """Fits the critic to what was missed of policies drawn from the history, in units of its deviation."""
        missing = describe_missing(state)
        filled = jnp.minimum(state.history.total, len(state.missed))
        drawn = jax.random.randint(key, (config.critic_steps, config.batch), 0, filled)

        def step(carry: tuple, at: Int[Array, "b"]) -> tuple[tuple, None]:
            critic, moments = carry
            walks = retrace(state.features, state.history.policies[at].astype(jnp.int32), state.bounds)
            target = (state.missed[at] - missing.mean) / jnp.maximum(missing.deviation, LEAST_DEVIATION)
            slope = jax.grad(lambda critic: jnp.mean((score(critic, *walks) - target) ** 2))(critic)
            change, moments = critic_adam.update(slope, moments)
            return (optax.apply_updates(critic, change), moments), None

        (critic, moments), _ = jax.lax.scan(step, (state.critic, state.critic_moments), drawn)
        return state._replace(critic=critic, critic_moments=moments)

    return Searcher(init, ask, tell, objective="loss", learn=learn)


def _begin_at(actor: Actor, action: Float[Array, ""]) -> Actor:
    """Makes a fresh actor choose about this action everywhere."""
    action = jnp.clip(action, EDGE, 1 - EDGE)
    return actor._replace(last=actor.last._replace(bias=actor.last.bias + jnp.log(action) - jnp.log1p(-action)))
