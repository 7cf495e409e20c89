"""Races of policies: against counting all images, and by how often Serfling's bound fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.evaluator import only_finite
from haqjax.evaluation.racing import Tally, bound_accuracy, make_racing_evaluator
from haqjax.quantizers import calibrate
from haqjax.searchers import search
from haqjax.searchers.driver import evaluate_policies
from haqjax.types import Evaluator
from search_world import make_world


def apply(params, x):
    return x.reshape(len(x), -1) @ params["w"]


@pytest.fixture(scope="module")
def world():
    """A linear network that loses accuracy with every bit, and 300 images."""
    random = np.random.default_rng(0)
    params = {"w": jnp.asarray(random.normal(size=(16, 10)), jnp.float32)}
    images = random.normal(size=(300, 4, 4, 1)).astype(np.float32)
    labels = np.asarray(apply(params, images).argmax(-1), np.int32)
    return params, Split(images, labels), calibrate(apply, params, [images], rounding="nearest")


def policies():
    return jnp.array([[[8, 8]], [[4, 4]], [[3, 3]], [[2, 2]], [[32, 32]]])


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_without_a_mark_every_image_counts(world, error):
    params, split, ranges = world
    whole = make_evaluator(apply, params, split, ranges)(policies())
    raced = make_racing_evaluator(apply, params, split, ranges, error=error, batch_size=7)(policies(), 0.0)
    np.testing.assert_array_equal(raced.accuracy, whole.accuracy)
    np.testing.assert_allclose(raced.loss, whole.loss, rtol=1e-5)


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_what_reaches_the_mark_is_evaluated_in_full_and_the_rest_stays_below(world, error):
    params, split, ranges = world
    whole = make_evaluator(apply, params, split, ranges)(policies()).accuracy
    racing = make_racing_evaluator(apply, params, split, ranges, error=error, batch_size=10)
    for mark in sorted(set(np.asarray(whole).tolist())):
        raced = racing(policies(), mark).accuracy
        kept = np.asarray(whole) >= mark
        np.testing.assert_array_equal(raced[kept], whole[kept])
        assert (np.asarray(raced)[~kept] < mark).all()


def test_the_certain_bound_ends_as_soon_as_the_rest_cannot_suffice(world):
    # Labels that the network never gives: after n images of 300 it can still reach 1 - n / 300.
    params, split, ranges = world
    wrong = Split(split.images, (split.labels + 1) % 10)
    racing = make_racing_evaluator(apply, params, wrong, ranges, batch_size=1)
    order = np.random.default_rng(0).permutation(300)
    answers = np.asarray(apply(params, wrong.images)).argmax(-1) == wrong.labels
    misses = np.cumsum(~answers[order])
    seen = int(np.argmax(1 - misses / 300 < 0.9)) + 1
    found = float(racing(jnp.array([[[32, 32]]]), 0.9).accuracy[0])
    assert found == pytest.approx(answers[order][:seen].mean(), abs=1e-7)


def test_serflings_bound_fails_no_more_often_than_stated():
    random, error, batches = np.random.default_rng(1), 0.2, 20
    images = np.arange(400) < 240  # six in ten are right
    failures = 0
    for _ in range(500):
        right = np.cumsum(random.permutation(images))
        seen = np.arange(20, 401, 20)
        tally = Tally(jnp.arange(batches), jnp.asarray(seen), jnp.asarray(right[seen - 1]), jnp.zeros(batches))
        failures += bool((np.asarray(bound_accuracy(tally, 400, batches, error)) < 0.6 - 1e-6).any())
    assert failures / 500 <= error


def test_an_output_that_is_not_finite_shows_and_can_never_win(world):
    params, split, ranges = world
    images = split.images.copy()
    images[5] = np.inf
    racing = only_finite(make_racing_evaluator(apply, params, Split(images, split.labels), ranges, batch_size=10))
    found = racing(policies(), 0.0)  # a clip makes infinity finite; a float network passes it on
    assert np.isfinite(found.accuracy[:-1]).all() and np.isfinite(found.loss[:-1]).all()
    assert np.isnan(found.accuracy[-1]) and np.isposinf(found.loss[-1])


@pytest.mark.parametrize("error", [-0.1, 1.0])
def test_an_error_that_is_no_share_is_named(world, error):
    params, split, ranges = world
    with pytest.raises(ValueError, match=str(error)):
        make_racing_evaluator(apply, params, split, ranges, error=error)


def race(evaluator, policies, least):
    """Gives up whatever is below the mark, and says no more of it than that it is."""
    found = evaluator.extra(policies)
    return jax.tree.map(lambda values: jnp.where(found.accuracy < least, least / 2, values), found)


def make_raced(problem):
    evaluator = Evaluator(race, None, None, None, None, extra=problem.evaluator, races=True)
    return dataclasses.replace(problem, evaluator=evaluator)


def test_a_search_with_a_race_reports_what_one_without_does():
    problem = make_world()
    raced = make_raced(problem)
    whole, part = (search(p, "random", episodes=40, key=jax.random.key(3), parallel=4) for p in (problem, raced))
    assert part.best == whole.best and part.accuracy == whole.accuracy and part.loss == whole.loss
    np.testing.assert_array_equal(part.records.policy, whole.records.policy)
    assert (part.records.accuracy < whole.records.accuracy).sum() > 20


def test_policies_of_a_round_are_held_against_the_best_before():
    problem = make_world()
    raced = make_raced(problem)
    widest = jnp.full((1, 4, 2), 8)
    best = float(evaluate_policies(raced, widest).accuracy[0])
    assert float(evaluate_policies(raced, widest, best).accuracy[0]) == best
    assert float(evaluate_policies(raced, widest - 6, best).accuracy[0]) == pytest.approx(best / 2)
