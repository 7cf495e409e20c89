"""Ends of searches: by the posterior, by patience, the same after a stop; the policy within one standard error."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.allocation.bayes import MISFIT, TRUST, find_scale, fit, predict_losses
from haqjax.policies.budgets import budget
from haqjax.policies.projection import best_uniform
from haqjax.searchers import search
from haqjax.searchers.accuracy_constrained import search_cheapest
from haqjax.searchers.base import SearchResult
from haqjax.searchers.front import search_front
from haqjax.searchers.stopping import cheapest_within_error, expected_improvement, standard_error
from haqjax.types import Evaluation
from search_world import every_policy, make_world

ENDS = {0: 8, -1: 3}  # so that there are few enough policies to try all


def make_certain(images=1000):
    """A problem whose losses add up, with sensitivities that are true but for a factor."""
    problem = make_world(pinned=ENDS, low=2)
    random = np.random.default_rng(100)
    entries = np.exp(random.normal(size=(4, 2)))
    sensitivity = (entries / entries.sum())[..., None] * 4.0 ** (2 - np.arange(1.0, 9.0))
    known = {"images": jnp.float32(images), "sensitivity": 7 * sensitivity}
    return dataclasses.replace(problem, **known)


def worth(result, episode):
    """A tenth of the standard error of the loss, and rounding."""
    records = result.records
    return 0.1 * standard_error(float(records.accuracy[episode]), float(records.loss[episode]), 1000) + 1e-6


def keep(results):
    """Notes the result after each round, as a checkpoint would."""
    return lambda now: results.append(SearchResult(now.records, (), now.chosen, jax.tree.map(np.array, now.state)))


def test_a_certain_posterior_ends_the_search_at_the_best_policy():
    problem = make_certain()
    found = search(problem, "ilp", episodes=200, key=jax.random.key(0), parallel=4, patience=100)
    assert len(found.records.accuracy) <= 40 and found.converged == (0,)
    least = float(np.min(every_policy(problem)[1].loss))
    assert found.loss <= least + worth(found, found.best)


@pytest.mark.parametrize("name", ["ilp", "greedy", "uniform"])
def test_without_patience_every_episode_is_searched(name):
    found = search(make_certain(), name, episodes=61, key=jax.random.key(0), parallel=4)
    assert len(found.records.accuracy) == 61 and found.converged == ()


def test_a_posterior_needs_to_know_how_many_images_there_are():
    problem = make_certain(images=math.nan)
    found = search(problem, "ilp", episodes=60, key=jax.random.key(0), parallel=4, patience=100)
    assert len(found.records.accuracy) == 60 and found.converged == ()


@pytest.mark.parametrize("patience", [1, 3])
def test_a_search_ends_after_rounds_without_a_gain(patience):
    """The first policy, of most bits, is the best of all."""

    def even(sensitivity, policies):
        bits = policies[:, 0]
        return Evaluation(jnp.where(bits[:, 0] == bits[:, 1], bits[:, 0] / 10, 0.05), jnp.full(len(policies), jnp.nan))

    found = search(
        make_world(evaluate=even), "uniform", episodes=40, key=jax.random.key(0), parallel=2, patience=patience
    )
    assert found.best == 0 and len(found.records.accuracy) == 2 * (1 + patience)
    assert found.records.round.tolist() == [n // 2 for n in range(len(found.records.accuracy))]


def test_a_late_gain_begins_the_count_anew():
    def rising(sensitivity, policies):
        """The fewer bits, the better, until there are fewer than 3."""
        bits = policies.sum(axis=(-2, -1))
        return Evaluation(jnp.where(bits < 24, 0.1, 1 - bits / 64), jnp.full(len(policies), jnp.nan))

    problem = make_world(evaluate=rising, limits={"latency": 1.0})
    found = search(problem, "uniform", episodes=60, key=jax.random.key(0), parallel=1, patience=4)
    assert found.policy.tolist() == [[3, 3]] * 4
    assert len(found.records.accuracy) == found.best + 1 + 4


def test_a_search_that_found_nothing_yet_goes_on():
    def broken(sensitivity, policies):
        bad = policies.sum(axis=(-2, -1)) > 20
        return Evaluation(jnp.where(bad, jnp.nan, 0.5), jnp.where(bad, jnp.inf, 0.5))

    problem = make_world(evaluate=broken, limits={"latency": 1.0})
    found = search(problem, "uniform", episodes=60, key=jax.random.key(0), parallel=1, patience=2)
    assert found.best is not None and found.best > 2


BUDGETS = (0.5, 0.3, 0.4)


@pytest.mark.parametrize("name", ["evolution", "greedy", "ilp", "random", "uniform"])
def test_a_front_that_ends_early_goes_on_from_any_round_to_the_same_end(name):
    problem = make_certain()
    budgets = [budget(problem.table, latency=share) for share in BUDGETS]
    results, options = [], {"episodes": 15, "parallel": 2, "patience": 2}
    whole = search_front(problem, name, budgets, key=jax.random.key(0), **options, on_round=keep(results))
    assert len(whole.records.accuracy) < 45 and whole.converged
    for stopped in results[:-1]:
        again = search_front(problem, name, budgets, key=jax.random.key(0), **options, resume=stopped)
        jax.tree.map(np.testing.assert_array_equal, again.records, whole.records)
        assert (again.chosen, again.converged) == (whole.chosen, whole.converged)
        np.testing.assert_array_equal(again.limits("latency"), whole.limits("latency"))


def test_a_search_by_drop_that_ends_early_goes_on_to_the_same_end():
    results, options = [], {"episodes": 60, "parallel": 2, "patience": 2}
    whole = search_cheapest(make_world(), 30.0, "random", key=jax.random.key(1), **options, on_round=keep(results))
    assert len(whole.records.accuracy) < 60 and len(whole.stages) > 1
    for stopped in results[:-1:2]:
        again = search_cheapest(make_world(), 30.0, "random", key=jax.random.key(1), **options, resume=stopped)
        jax.tree.map(np.testing.assert_array_equal, again.records, whole.records)
        assert again.best == whole.best


def test_what_one_budget_does_not_take_is_left_to_the_next():
    problem = make_world()
    budgets = [budget(problem.table, latency=share) for share in BUDGETS]
    found = search_front(problem, "uniform", budgets, episodes=10, key=jax.random.key(0), patience=2)
    counts = [int((found.records.stage == stage).sum()) for stage in range(3)]
    limits = [stage.episodes for stage in found.stages]
    assert counts[0] < limits[0] == 10
    assert limits[1] == (30 - counts[0]) // 2 > 10 and limits[2] == 30 - counts[0] - counts[1]


def test_budgets_share_what_ilp_learns():
    problem = make_certain()
    budgets = [budget(problem.table, latency=share) for share in sorted(BUDGETS)]
    found = search_front(problem, "ilp", budgets, episodes=20, key=jax.random.key(0), parallel=2, patience=50)
    policies = found.records.policy
    assert (
        len({policy.tobytes() for policy in policies}) >= len(policies) - 2
    )  # where none near is left, one comes again
    for one, chosen in zip(budgets, found.chosen, strict=True):
        within = dataclasses.replace(problem, budget=one)
        least = float(np.min(every_policy(within)[1].loss))
        assert found.records.loss[chosen] <= least + worth(found, chosen)


def test_ilp_tries_the_best_uniform_policy():
    problem = make_certain()
    found = search(problem, "ilp", episodes=4, key=jax.random.key(0), parallel=4)
    even = np.asarray(best_uniform(problem.table, problem.bounds, problem.budget).policy)
    assert even.tolist() in found.records.policy.tolist()


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match="patience is -1"):
        search(make_world(), "random", episodes=4, key=jax.random.key(0), patience=-1)


# What ends are decided by


def test_the_expected_improvement_is_that_of_many_draws():
    draws = np.random.default_rng(0).normal(0.7, 0.4, 200_000)
    expected = np.maximum(0.5 - draws, 0).mean()
    found = expected_improvement(0.5, np.array([0.7, 0.7]), np.array([0.4, 0.0]))
    np.testing.assert_allclose(found, [expected, 0.0], rtol=0.01, atol=1e-9)


def test_a_standard_error_is_that_of_losses_where_wrong_answers_lose_alike():
    right = np.arange(1000) < 900
    losses = np.where(right, 0.0, 3.0)
    assert standard_error(0.9, losses.mean(), 1000) == pytest.approx(losses.std() / 1000**0.5, rel=0.01)
    assert standard_error(0.9, math.nan, 1000) == pytest.approx(right.std() / 1000**0.5, rel=0.01)
    assert 0 < standard_error(1.0, 0.01, 100) < math.inf and math.isnan(standard_error(0.9, 0.3, math.nan))


def test_predictions_are_those_of_the_dense_formula():
    random = np.random.default_rng(0)
    start = random.exponential(size=(3, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0)
    policies, losses = random.integers(2, 9, (12, 3, 2)), random.exponential(size=12)
    posterior = fit(start, policies, losses)
    expected, deviation = predict_losses(posterior, policies[:5])
    missing = (policies[:5, ..., None] <= np.arange(1, 8)).reshape(5, -1)
    steps = posterior.start.ravel()
    features = np.column_stack([np.full(5, posterior.level), missing @ steps, missing * TRUST * steps])
    covariance = np.linalg.inv(np.eye(features.shape[1]) + posterior.rows.T @ posterior.rows)
    alone = np.sqrt(np.diag(features @ covariance @ features.T))
    np.testing.assert_allclose(deviation, posterior.misfit * alone, rtol=1e-6)
    np.testing.assert_allclose(expected, losses.mean() + missing @ steps + features @ posterior.mean, rtol=1e-6)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_misfit_is_how_far_losses_are_from_what_the_others_predict(wrong):
    random = np.random.default_rng(0)
    truth = random.exponential(size=(3, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0)
    policies = random.integers(2, 9, (12, 3, 2))
    losses = np.take_along_axis(truth[None], policies[..., None] - 1, axis=-1).sum((1, 2, 3))
    start = truth[::-1, ::-1] * 4.0 ** np.arange(8) if wrong else truth
    posterior = fit(start, policies, losses)
    covariance = posterior.rows @ posterior.rows.T + np.eye(12)
    predicted = (policies[..., None] <= np.arange(1, 8)).reshape(12, -1) @ posterior.start.ravel()
    error = (losses - losses.mean() - predicted) * posterior.rows[:, 0] / posterior.level
    apart = []
    for at in range(12):
        rest = np.arange(12) != at
        seen = np.linalg.solve(covariance[np.ix_(rest, rest)], np.column_stack([error[rest], covariance[rest, at]]))
        expected, explained = covariance[at, rest] @ seen
        apart.append((error[at] - expected) / np.sqrt(covariance[at, at] - explained))
    assert posterior.misfit == pytest.approx(np.clip(np.sqrt(np.mean(np.square(apart))), 1.0, MISFIT))
    assert (posterior.misfit > 1) == wrong


@pytest.mark.parametrize("factor", [1 / 64, 1.0, 256.0])
def test_a_common_factor_of_sensitivities_is_found(factor):
    random = np.random.default_rng(1)
    true = random.exponential(size=(6, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0)
    policies = random.integers(2, 7, (8, 6, 2))
    losses = np.take_along_axis(np.broadcast_to(true, (8, 6, 2, 8)), policies[..., None] - 1, -1).sum((1, 2, 3))
    assert find_scale(true / factor, policies, losses + 3.0) == pytest.approx(factor, rel=0.5)
    assert find_scale(true / factor, policies[:2], losses[:2]) == 1.0


@pytest.mark.parametrize(
    "accuracy, cost, expected",
    [
        ([0.9, 0.88, 0.86, 0.5], [4, 3, 2, 1], 1),  # an error is 3 points: 0.86 is too little
        ([0.9, 0.9, 0.9], [2, 1, 1], 1),  # of equals the first
        ([0.89, 0.9, 0.9], [1, 1, 2], 1),  # of equal cost the most accurate
        ([math.nan, 0.5, math.nan], [1, 2, 3], 1),
        ([0.9, 0.89], [math.nan, 5], 1),
        ([math.nan, math.nan], [1, 2], None),
        ([], [], None),
        ([1.0, 0.999], [2, 1], 0),  # no error: only as good ones
        ([1.0000001, 1.0], [2, 1], 1),  # a mean of float32 may end just above 1
        ([0.0, 0.0], [2, 1], 1),
    ],
)
def test_the_cheapest_policy_within_one_standard_error(accuracy, cost, expected):
    assert cheapest_within_error(np.array(accuracy), np.array(cost, float), 100) == expected
