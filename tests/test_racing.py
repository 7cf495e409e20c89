"""Tests of judging with policies given up: against counting all images, and by how often a bound fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.data import Split
from haqjax.evaluation import make_evaluate
from haqjax.evaluation.evaluator import only_finite
from haqjax.evaluation.racing import Tally, make_race, reachable
from haqjax.quantizers import calibrate
from haqjax.searchers import search
from haqjax.searchers.driver import judge
from search_world import judge as judge_plainly
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
    whole = make_evaluate(apply, params, split, ranges, with_loss=True)(policies())
    raced = make_race(apply, params, split, ranges, error=error, batch_size=7)(policies(), 0.0)
    np.testing.assert_array_equal(raced.accuracy, whole.accuracy)
    np.testing.assert_allclose(raced.loss, whole.loss, rtol=1e-5)


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_what_reaches_the_mark_is_judged_in_full_and_the_rest_stays_below(world, error):
    params, split, ranges = world
    whole = make_evaluate(apply, params, split, ranges)(policies())
    race = make_race(apply, params, split, ranges, error=error, batch_size=10)
    for mark in sorted(set(np.asarray(whole).tolist())):
        raced = race(policies(), mark).accuracy
        kept = np.asarray(whole) >= mark
        np.testing.assert_array_equal(raced[kept], whole[kept])
        assert (np.asarray(raced)[~kept] < mark).all()


def test_the_certain_bound_ends_as_soon_as_the_rest_cannot_suffice(world):
    # Labels that the network never gives: after n images of 300 it can still reach 1 - n / 300.
    params, split, ranges = world
    wrong = Split(split.images, (split.labels + 1) % 10)
    race = make_race(apply, params, wrong, ranges, batch_size=1)
    order = np.random.default_rng(0).permutation(300)
    answers = np.asarray(apply(params, wrong.images)).argmax(-1) == wrong.labels
    misses = np.cumsum(~answers[order])
    seen = int(np.argmax(1 - misses / 300 < 0.9)) + 1
    told = float(race(jnp.array([[[32, 32]]]), 0.9).accuracy[0])
    assert told == pytest.approx(answers[order][:seen].mean(), abs=1e-7)


def test_serflings_bound_fails_no_more_often_than_stated():
    random, error, batches = np.random.default_rng(1), 0.2, 20
    images = np.arange(400) < 240  # six in ten are right
    failures = 0
    for _ in range(500):
        right = np.cumsum(random.permutation(images))
        seen = np.arange(20, 401, 20)
        tally = Tally(jnp.arange(batches), jnp.asarray(seen), jnp.asarray(right[seen - 1]), jnp.zeros(batches))
        failures += bool((np.asarray(reachable(tally, 400, batches, error)) < 0.6 - 1e-6).any())
    assert failures / 500 <= error


def test_an_output_that_is_not_finite_is_told_and_can_never_win(world):
    params, split, ranges = world
    images = split.images.copy()
    images[5] = np.inf
    race = only_finite(make_race(apply, params, Split(images, split.labels), ranges, batch_size=10))
    told = race(policies(), 0.0)  # a clip makes infinity finite; a float network passes it on
    assert np.isfinite(told.accuracy[:-1]).all() and np.isfinite(told.loss[:-1]).all()
    assert np.isnan(told.accuracy[-1]) and np.isposinf(told.loss[-1])


@pytest.mark.parametrize("error", [-0.1, 1.0])
def test_an_error_that_is_no_share_is_named(world, error):
    params, split, ranges = world
    with pytest.raises(ValueError, match=str(error)):
        make_race(apply, params, split, ranges, error=error)


def certain(sensitivity, policies, least):
    """A race that gives up whatever is below the mark, and tells of it no more than that it is."""
    told = judge_plainly(sensitivity, policies)
    return jax.tree.map(lambda values: jnp.where(told.accuracy < least, least / 2, values), told)


def test_a_search_with_a_race_reports_what_one_without_does():
    problem = make_world()
    raced = dataclasses.replace(problem, race=jax.tree_util.Partial(certain, *problem.evaluate.args))
    whole, part = (search(p, "random", episodes=40, key=jax.random.key(3), parallel=4) for p in (problem, raced))
    assert part.best == whole.best and part.accuracy == whole.accuracy and part.loss == whole.loss
    np.testing.assert_array_equal(part.records.policy, whole.records.policy)
    assert (part.records.accuracy < whole.records.accuracy).sum() > 20


def test_policies_of_a_round_are_held_against_the_best_before():
    problem = make_world()
    raced = dataclasses.replace(problem, race=jax.tree_util.Partial(certain, *problem.evaluate.args))
    widest = jnp.full((1, 4, 2), 8)
    best = float(judge(raced, widest).accuracy[0])
    assert float(judge(raced, widest, best).accuracy[0]) == best
    assert float(judge(raced, widest - 6, best).accuracy[0]) == pytest.approx(best / 2)
