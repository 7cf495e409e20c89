"""Stochastic value gradients: walks against a loop, the critic where the model is wrong, budgets, what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.agent.networks import choose, make_actor, make_critic, value
from haqjax.policies.bounds import ladder, make_bounds
from haqjax.policies.budget_fill import normalise_costs
from haqjax.run import SearchConfig
from haqjax.searchers import search
from haqjax.searchers.relaxation import soft_bits
from haqjax.searchers.svg import BACKWARD, MODEL_BATCHES, SVG, make_svg
from haqjax.searchers.svg_model import Missing, Walk, lagrangian, retrace, walk
from search_world import every_policy, make_world

ACTOR = make_svg(SVG(parallel=4))


@pytest.fixture(scope="module")
def walker():
    """An actor whose actions differ, features of 3 layers, and bounds with gaps, a pin and a tie."""
    there = np.isin(np.arange(1, 9), (2, 3, 4, 8)) * np.ones((3, 2, 1), bool)
    actor = make_actor(jax.random.key(0), 5, (16, 12))
    actor = actor._replace(last=jax.tree.map(lambda x: 300 * x, actor.last))
    features = jax.random.uniform(jax.random.key(1), (6, 4))
    return actor, features, make_bounds(3, pinned={1: 4}, allowed=there, tied=[(0, 2)])


# The walk


def test_a_walk_is_a_loop_over_the_decisions(walker):
    actor, features, bounds = walker
    walked = walk(actor, features, bounds, jnp.zeros((3, 2)))
    own = [[4] if layer == 1 else [2, 3, 4, 8] for layer in range(3) for _ in range(2)]
    before, seen = 1.0, []
    for row, widths in zip(features, own, strict=True):
        action = float(choose(actor, jnp.append(row, before))) if len(widths) > 1 else 0.0
        rank = action * (len(widths) - 1)
        before = np.interp(rank, np.arange(len(widths)), widths) / 8
        seen.append((action, rank))
    assert np.ptp([action for action, _ in seen]) > 0.2
    np.testing.assert_allclose(walked.action, [action for action, _ in seen], rtol=1e-5)
    np.testing.assert_allclose(walked.rank.ravel(), [rank for _, rank in seen], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_walk_goes_through_the_widths_decided_before(walker):
    """Only the column of the width before is moved: what it changes later is known by differences alone."""
    actor, features, bounds = walker

    def total(column):
        weight = actor.first.weight.at[-1].set(column)
        return walk(
            actor._replace(first=actor.first._replace(weight=weight)), features, bounds, jnp.zeros((3, 2))
        ).rank.sum()

    column, step = actor.first.weight[-1], 1e-3 * jax.random.normal(jax.random.key(2), (16,))
    slope = jax.jit(jax.grad(total))(column) @ step
    difference = (total(column + step) - total(column - step)) / 2
    assert abs(float(difference)) > 1e-5
    np.testing.assert_allclose(slope, difference, rtol=0.01)


def test_a_policy_is_retraced_to_the_walk_that_ends_in_it(walker):
    actor, features, _ = walker
    bounds = make_bounds(3, pinned={1: 4})
    policy = jnp.array([[2, 5], [4, 4], [8, 3]])
    calm = actor._replace(last=jax.tree.map(jnp.zeros_like, actor.last))  # chooses 1/2 everywhere
    noise = (policy - bounds.low) - 0.5 * (ladder(bounds)[1] - 1)
    walked = walk(calm, features, bounds, noise.astype(jnp.float32))
    observation, action = retrace(features, policy[None], bounds)
    np.testing.assert_allclose(walked.rank, policy - bounds.low, atol=1e-5)
    np.testing.assert_allclose(action[0], walked.action, atol=1e-6)
    np.testing.assert_allclose(observation[0], walked.observation, atol=1e-6)


def test_the_actor_goes_down_the_logarithm_of_what_model_and_critic_expect_together():
    problem = make_world(limits={"latency": 0.9})
    costs = normalise_costs(problem.table, problem.bounds, problem.budget)
    critic = make_critic(jax.random.key(0), 5, (16, 12))
    observation, action = jax.random.uniform(jax.random.key(1), (8, 5)), jax.random.uniform(jax.random.key(2), (8,))

    def loss(action):
        return problem.evaluator.soft_loss(soft_bits(6 * action.reshape(4, 2), problem.bounds), 0)

    def objective(action, mean, trust):
        walked, missing = Walk(observation, action, 6 * action.reshape(4, 2)), Missing(critic, mean, 20.0, trust)
        return lagrangian(problem.evaluator.soft_loss, walked, missing, costs, problem.bounds, jnp.zeros(3), 0)[0]

    def expected(action, mean, trust):
        missed = mean + 20.0 * jax.vmap(value, (None, 0, 0))(critic, observation, action).sum()
        return jnp.log(loss(action) + trust * missed)

    both = jax.jit(lambda *given: (jax.grad(objective)(*given), jax.grad(expected)(*given)))
    for mean, trust in ((0.3, 1.0), (0.3, 0.5), (0.3, 0.0), (0.1, 1.0)):
        found, right = both(action, mean, trust)
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-5)


# The search


@pytest.mark.parametrize("limits", [{"latency": 0.4}, {"latency": 0.6, "size": 0.5}])
def test_it_finds_one_of_the_best_of_all_policies_with_ties_where_other_widths_have_no_cost(limits):
    there = np.isin(np.arange(1, 9), (2, 3, 4, 6, 8)) * np.ones((4, 2, 1), bool)
    problem = make_world(allowed=there, tied=[(0, 2)], limits=limits)
    latency = np.where(there[:, 0, :, None] & there[:, 1, None], problem.table.latency, np.nan)
    problem = dataclasses.replace(problem, table=dataclasses.replace(problem.table, latency=latency))
    found = search(problem, ACTOR, episodes=24, key=jax.random.key(0))
    _, judged = every_policy(problem)
    assert np.isin(found.records.policy, (2, 3, 4, 6, 8)).all() and found.records.feasible.all()
    np.testing.assert_array_equal(found.records.policy[:, 0], found.records.policy[:, 2])
    assert len(judged.loss) > 500
    assert found.loss <= np.sort(judged.loss)[4]
    assert len(np.unique(found.records.policy, axis=0)) == 24


def test_the_first_policy_is_better_than_all_of_random_search_because_the_model_is_right():
    problem = make_world(limits={"latency": 0.3})
    for seed in range(3):
        first, by_chance = (
            search(problem, s, parallel=4, episodes=n, key=jax.random.key(seed)).records.loss
            for s, n in ((ACTOR, 4), ("random", 16))
        )
        assert first[0] < by_chance.min()


def test_where_the_model_is_wrong_the_critic_learns_what_it_misses():
    """The model has the sensitivities of the layers the wrong way round."""
    for seed in range(2):
        problem = make_world(seed=seed, limits={"latency": 0.3})
        right = problem.evaluator.soft_loss
        wrong = jax.tree_util.Partial(right.func, right.args[0][::-1])
        problem = dataclasses.replace(problem, evaluator=dataclasses.replace(problem.evaluator, soft_loss=wrong))
        found = search(problem, ACTOR, episodes=96, key=jax.random.key(seed))
        foretold, plain = found.state.errors
        assert foretold < 0.3 * plain


def test_what_it_spends_beside_evaluations_is_counted():
    def counted(sensitivity, bits, index):
        jax.debug.callback(lambda: calls.append(1))
        return problem.evaluator.soft_loss.func(sensitivity, bits, index)

    calls, problem = [], make_world()
    soft_loss = jax.tree_util.Partial(counted, *problem.evaluator.soft_loss.args)
    asked = dataclasses.replace(problem, evaluator=dataclasses.replace(problem.evaluator, soft_loss=soft_loss))
    found = search(asked, ACTOR, episodes=8, key=jax.random.key(0))
    jax.effects_barrier()
    steps, models = SVG().opening + 8 * SVG().steps, 8 * MODEL_BATCHES
    assert len(calls) == steps + models
    assert found.state.passes == BACKWARD * steps + models


def test_a_run_by_size_alone_is_refused():
    with pytest.raises(ValueError, match="the search 'svg' needs linear weights"):
        SearchConfig.of(search="svg", metric="size")


@pytest.mark.parametrize(
    "numbers",
    [
        {"parallel": 0},
        {"opening": 0},
        {"hidden": (8,)},
        {"actor_rate": float("nan")},
        {"steps": -1},
        {"sigma": 0.1, "least_sigma": 0.2},
        {"decay": 1.5},
    ],
)
def test_numbers_that_no_search_can_run_with_are_refused(numbers):
    with pytest.raises(ValueError, match="must"):
        SVG(**numbers)
