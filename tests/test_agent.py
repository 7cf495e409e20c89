import dataclasses
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import references_search as references
from haqjax.agent import DDPG, make_agent
from haqjax.agent.networks import choose, value
from haqjax.agent.noise import truncated_normal
from haqjax.agent.replay import add, make_replay, sample
from haqjax.types import Transition

SMALL = DDPG(observation_size=2, hidden=(32, 24), actor_rate=3e-4, critic_rate=3e-3, mixing=0.05)


def random_batch(seed: int, count: int, size: int = 10) -> Transition:
    random = np.random.default_rng(seed)
    shapes = ((count, size), (count,), (count,), (count, size), (count,))
    return Transition(*(jnp.asarray(random.random(shape), jnp.float32) for shape in shapes))


# The learning rule, in the smallest worlds whose answer is known


def test_the_actor_finds_the_best_arm_of_a_bandit_with_one_state():
    agent, observation = make_agent(SMALL), jnp.ones(2)

    @jax.jit
    @jax.vmap
    def learn(best, key):
        init_key, arm_key, learn_key = jax.random.split(key, 3)
        arms = jax.random.uniform(arm_key, (512,))
        same = jnp.broadcast_to(observation, (512, 2))
        memory = add(make_replay(512, 2), Transition(same, arms, 1 - jnp.abs(arms - best), same, jnp.zeros(512)))
        return choose(agent.learn(agent.init(init_key), memory, learn_key, 1500).actor, observation)

    best = np.repeat([0.0, 0.3, 0.8, 1.0], 3)
    found = learn(best, jax.random.split(jax.random.key(0), 12))
    np.testing.assert_allclose(found, best, atol=0.1)


def test_credit_flows_back_from_the_second_step_to_the_first():
    """The first action is rewarded only at the second step, which shows it; there the action does not matter."""
    agent = make_agent(dataclasses.replace(SMALL, actor_rate=1e-4, critic_rate=1e-2, mixing=0.1))
    start = jnp.asarray([1.0, 0.0])

    @jax.jit
    @jax.vmap
    def learn(discount, key):
        init_key, action_key, learn_key = jax.random.split(key, 3)
        first, second = jax.random.uniform(action_key, (2, 512))
        starts = jnp.broadcast_to(start, (512, 2))
        middles = jnp.stack([jnp.zeros(512), first], axis=-1)
        opening = Transition(starts, first, jnp.zeros(512), middles, jnp.broadcast_to(discount, (512,)))
        closing = Transition(middles, second, -4 * jnp.abs(first - 0.3), middles, jnp.zeros(512))
        memory = add(make_replay(1024, 2), jax.tree.map(lambda *rows: jnp.concatenate(rows), opening, closing))
        return choose(agent.learn(agent.init(init_key), memory, learn_key, 2000).actor, start)

    found = learn(jnp.repeat(jnp.asarray([1.0, 0.0]), 3), jax.random.split(jax.random.key(0), 6))
    np.testing.assert_allclose(found[:3], 0.3, atol=0.1)
    assert (abs(found[3:] - 0.3) > 0.1).any(), "without discounting from the next step there is nothing to learn from"


# One update, by hand


def as_layers(network, *names):
    return [tuple(np.asarray(x, np.float64) for x in getattr(network, name)) for name in names]


def critic_in_numpy(critic, observation, action):
    """The critic as a chain: its first two layers are one on observation and action side by side."""
    (w_s, b_s), (w_a, b_a), *rest = as_layers(critic, "first", "action", "second", "last")
    layers = [(np.concatenate([w_s, w_a]), b_s + b_a), *rest]
    inputs, out = references.forward(layers, np.concatenate([observation, action[:, None]], axis=1))
    return layers, inputs, out[:, 0]


def test_one_update_equals_gradients_by_hand():
    config = DDPG(observation_size=3, hidden=(7, 5), batch=16)
    agent, count = make_agent(config), 16
    batch = random_batch(1, count, 3)
    before, other = agent.init(jax.random.key(0)), agent.init(jax.random.key(1))

    # The output layers start tiny: enlarge them, or every gradient below them is lost in rounding.
    def enlarge(net):
        return net._replace(last=jax.tree.map(lambda x: 100 * x, net.last))

    before = before._replace(
        actor=enlarge(before.actor),
        target_actor=enlarge(other.actor),
        critic=enlarge(before.critic),
        target_critic=enlarge(other.critic),
    )
    after = jax.jit(agent.update)(before, batch)
    state, action, reward, following, discount = (np.asarray(x, np.float64) for x in batch)

    def act(actor, observation):
        layers = as_layers(actor, "first", "second", "last")
        inputs, out = references.forward(layers, observation)
        return layers, inputs, 1 / (1 + np.exp(-out[:, 0]))

    next_value = critic_in_numpy(before.target_critic, following, act(before.target_actor, following)[2])[2]
    target = reward - reward.mean() + discount * next_value
    layers, inputs, out = critic_in_numpy(before.critic, state, action)
    gradients, _ = references.backward(layers, inputs, (2 * (out - target) / count)[:, None])
    moments = optax.tree.get(after.critic_moments, "mu")
    np.testing.assert_allclose(moments.first.weight, 0.1 * gradients[0][0][:3], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(moments.action.weight, 0.1 * gradients[0][0][3:], rtol=1e-3, atol=1e-7)
    for name, (weight, bias) in zip(("first", "second", "last"), gradients, strict=True):
        np.testing.assert_allclose(getattr(moments, name).bias, 0.1 * bias, rtol=1e-3, atol=1e-7)
        if name != "first":
            np.testing.assert_allclose(getattr(moments, name).weight, 0.1 * weight, rtol=1e-3, atol=1e-7)
    moved = after.critic.second.weight - before.critic.second.weight
    np.testing.assert_allclose(moved, references.adam_first_step(gradients[1][0], 1e-3), rtol=1e-2, atol=1e-6)

    # The actor follows the critic that has just learned.
    layers, inputs, chosen = act(before.actor, state)
    critic_layers, critic_inputs, _ = critic_in_numpy(after.critic, state, chosen)
    _, slope = references.backward(critic_layers, critic_inputs, np.full((count, 1), -1 / count))
    gradients, _ = references.backward(layers, inputs, (slope[:, 3] * chosen * (1 - chosen))[:, None])
    moments = optax.tree.get(after.actor_moments, "mu")
    for name, (weight, bias) in zip(("first", "second", "last"), gradients, strict=True):
        np.testing.assert_allclose(getattr(moments, name).weight, 0.1 * weight, rtol=2e-3, atol=1e-7)
        np.testing.assert_allclose(getattr(moments, name).bias, 0.1 * bias, rtol=2e-3, atol=1e-7)
    moved = after.actor.second.weight - before.actor.second.weight
    np.testing.assert_allclose(moved, references.adam_first_step(gradients[1][0], 1e-4), rtol=1e-2, atol=1e-7)


def test_target_networks_follow_by_the_mixing_share():
    agent = make_agent(DDPG(hidden=(8, 8), mixing=0.01))
    update = jax.jit(agent.update)
    state = update(agent.init(jax.random.key(0)), random_batch(0, 64))
    after = update(state, random_batch(1, 64))
    for network in ("actor", "critic"):
        old = jax.tree.leaves(getattr(state, f"target_{network}"))
        new = jax.tree.leaves(getattr(after, network))
        mixed = jax.tree.leaves(getattr(after, f"target_{network}"))
        for o, n, m in zip(old, new, mixed, strict=True):
            np.testing.assert_allclose(m, 0.99 * np.asarray(o) + 0.01 * np.asarray(n), rtol=1e-5, atol=1e-8)
            assert not np.array_equal(o, n)


def test_the_baseline_is_a_moving_mean_that_starts_at_the_first_batch():
    agent = make_agent(DDPG(hidden=(4, 4)))
    update, state, expected = jax.jit(agent.update), agent.init(jax.random.key(0)), None
    for seed in range(4):
        batch = random_batch(seed, 32)
        state = update(state, batch)
        mean = np.asarray(batch.reward).mean()
        expected = mean if expected is None else expected + 0.5 * (mean - expected)
        assert float(state.baseline) == pytest.approx(expected, rel=1e-5)
    assert state.updates == 4


def test_the_networks_have_the_published_sizes_and_a_fresh_actor_is_undecided():
    agent = make_agent(DDPG())
    state = agent.init(jax.random.key(0))
    sizes = [sum(x.size for x in jax.tree.leaves(network)) for network in (state.actor, state.critic)]
    actor = (10 + 1) * 400 + (400 + 1) * 300 + 300 + 1
    assert sizes == [actor, actor + 2 * 400]
    observations = random_batch(0, 50).observation
    np.testing.assert_allclose(jax.vmap(choose, (None, 0))(state.actor, observations), 0.5, atol=0.02)
    assert abs(value(state.critic, observations[0], jnp.float32(1.0))) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"actor_rate": float("nan")}, "actor_rate is nan"),
        ({"mixing": 1.5}, "mixing is 1.5"),
        ({"discount": -0.1}, "discount is -0.1"),
        ({"hidden": (400,)}, r"hidden is \(400,\)"),
        ({"warmup": -1}, "warmup -1"),
    ],
)
def test_numbers_that_no_agent_can_learn_with_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDPG(**arguments)


# Exploration


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("mean", [0.0, 0.2, 0.5, 1.0])
def test_the_noise_is_a_truncated_normal(mean, sigma):
    draws = truncated_normal(jax.random.key(int(100 * mean + sigma)), jnp.full(5000, mean), jnp.float32(sigma))
    expected = scipy.stats.truncnorm(-mean / sigma, (1 - mean) / sigma, mean, sigma)
    assert draws.min() >= 0 and draws.max() <= 1
    assert scipy.stats.kstest(np.asarray(draws), expected.cdf).pvalue > 1e-3
    assert float(draws.mean()) == pytest.approx(expected.mean(), abs=5 * expected.std() / 5000**0.5)


@pytest.mark.parametrize("episode", [0, 19, 20, 21, 120])
def test_exploration_is_uniform_at_first_and_then_narrows(episode):
    agent = make_agent(DDPG(hidden=(8, 8)))
    state, observation = agent.init(jax.random.key(0)), jnp.ones(10)
    loud = state.actor.last._replace(bias=jnp.full(1, -1.0))
    state = state._replace(actor=state.actor._replace(last=loud))  # unlike the target's
    keys = jax.random.split(jax.random.key(episode + 1), 4000)
    actions = jax.jit(jax.vmap(agent.act, (None, None, None, 0)))(state, observation, episode, keys)
    mean, sigma = float(choose(state.actor, observation)), 0.5 * 0.99 ** (episode - 20)
    if episode < 20:
        expected = scipy.stats.uniform()
    else:
        expected = scipy.stats.truncnorm(-mean / sigma, (1 - mean) / sigma, mean, sigma)
    assert scipy.stats.kstest(np.asarray(actions), expected.cdf).pvalue > 1e-3


# Memory


@pytest.mark.parametrize("counts", [(3,), (5, 5), (4, 4, 4), (10,), (7, 7, 7, 1)])
def test_the_memory_keeps_the_latest_rows(counts):
    memory, expected = make_replay(10, 2), deque(maxlen=10)
    for seed, count in enumerate(counts):
        rows = random_batch(seed, count, 2)
        memory = jax.jit(add)(memory, rows)
        expected.extend(np.asarray(rows.reward))
    assert memory.size == len(expected)
    kept = np.asarray(memory.storage.reward)[: len(expected)]
    np.testing.assert_array_equal(np.sort(kept), np.sort(expected))
    oldest = int(memory.cursor) if len(expected) == 10 else 0
    np.testing.assert_array_equal(np.roll(kept, -oldest), expected)


def test_rows_stay_together_and_only_filled_ones_are_drawn():
    rows = random_batch(3, 6, 2)
    memory = add(make_replay(50, 2), rows)
    drawn = sample(memory, jax.random.key(0), (40, 8))
    assert drawn.observation.shape == (40, 8, 2)
    at = np.searchsorted(np.sort(rows.reward), drawn.reward)
    order = np.argsort(rows.reward)[at]
    for field, original in zip(drawn, rows, strict=True):
        np.testing.assert_array_equal(field, np.asarray(original)[order])
    counts = np.bincount(order.ravel(), minlength=6)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_memory_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="memory of 0 decisions"):
        make_replay(0, 10)
    with pytest.raises(ValueError, match="cannot add 6 decisions to a memory of 5"):
        add(make_replay(5, 2), random_batch(0, 6, 2))
