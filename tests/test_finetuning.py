"""Fine-tuning under a policy: it repairs what rounding broke, and leaves statistics alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_world import POLICY, TUNING, apply, apply_train, make_world
from haqjax import calibrate, finetune
from haqjax.data import Split, load
from haqjax.evaluation import make_evaluator
from haqjax.models import build
from haqjax.quantizers import quantize
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.training import Tuning, finetune_all, fit
from haqjax.training.finetuning import make_program
from haqjax.training.steps import make_step


@pytest.fixture(scope="module")
def tuned():
    """A small trained network at 3 bits, before and after an epoch."""
    data = load("digits", image_size=16)
    network = build("resnet20", classes=10, image_size=16, width=0.25, key=jax.random.key(0))
    recipe = dict(epochs=4, batch_size=32, learning_rate=0.1, shift=1)
    params = fit(network, data.train, **recipe, key=jax.random.key(1))
    ranges = calibrate(network.apply, params, [data.train.images[:128]], rounding="nearest")
    policy = jnp.full((20, 2), 3)
    after = finetune(
        network.apply, params, policy, ranges, data.train, epochs=2, learning_rate=0.02, shift=1, key=jax.random.key(2)
    )

    def measure(params):
        return float(make_evaluator(network.apply, params, data.report, ranges)(policy[None]).accuracy[0])

    return params, after, measure(params), measure(after)


def test_it_repairs_what_rounding_broke(tuned):
    *_, before, after = tuned
    assert after > before + 0.05


def test_statistics_stay_and_all_else_learns(tuned):
    before, after, *_ = tuned
    leaves = zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (before, after)), strict=True)
    for (path, old), (_, new) in leaves:
        assert np.array_equal(old, new) == (path[-1].key in ("mean", "var")), path


def test_tuned_weights_go_to_their_nearest_levels_under_the_ranges_that_calibration_gave():
    params, ranges, data = make_world(rounding="output")
    tune = lambda ranges: finetune(
        apply, params, POLICY, ranges, data, learning_rate=0.1, batch_size=8, key=jax.random.key(1)
    )
    after = tune(ranges)
    answer = lambda params, ranges: quantize(apply)(params, data.images, POLICY, ranges)
    np.testing.assert_array_equal(answer(after, ranges), answer(after, to_nearest(ranges)))
    assert not np.allclose(answer(params, ranges), answer(params, to_nearest(ranges)))
    jax.tree.map(np.testing.assert_array_equal, after, tune(to_nearest(ranges)))


def test_one_step_is_that_of_the_straight_through_gradient():
    """A dense layer whose gradient is written out: that of the loss at the rounded weight.

    The learning rate rises from zero, so that both of the two steps are taken at the start.
    """
    apply = lambda params, x: x.reshape(len(x), -1) @ params["w"]
    images = np.asarray(jax.random.normal(jax.random.key(0), (8, 2, 2, 1)))
    labels = np.arange(8, dtype=np.int32) % 2
    params, policy = {"w": jax.random.normal(jax.random.key(1), (4, 2))}, jnp.array([[3, 32]])
    ranges = calibrate(apply, params, [images], "max", per_channel=False)
    options = dict(epochs=2, batch_size=8, learning_rate=1.0, weight_decay=0.0, shift=0, key=jax.random.key(2))
    moved = finetune(apply, params, policy, ranges, Split(images, labels), **options)["w"] - params["w"]
    x = images.reshape(8, 4).astype(np.float64)
    rounded = np.asarray(quantize(lambda p, e: e @ p["w"])(params, jnp.eye(4), policy, ranges), np.float64)
    logits = x @ rounded
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradient = x.T @ (probability - (0.9 * np.eye(2)[labels] + 0.05)) / 8
    cosine = (np.asarray(moved) * -gradient).sum() / np.linalg.norm(moved) / np.linalg.norm(gradient)
    assert cosine == pytest.approx(1, abs=1e-4)


def test_a_parameter_without_gradient_is_named():
    apply = lambda params, x: x.reshape(len(x), -1) @ params["w"]
    params = {"w": jnp.ones((4, 2)), "count": jnp.array(3)}
    images = np.ones((2, 2, 2, 1), np.float32)
    ranges = calibrate(apply, params, [images])
    with pytest.raises(ValueError, match=r"params\['count'\] is int32, which has no gradient"):
        finetune(apply, params, jnp.full((1, 2), 8), ranges, Split(images, np.arange(2)), key=jax.random.key(0))


def test_another_policy_does_not_compile_again():
    params, ranges, data = make_world()
    for bits in (2, 5, 32):
        policy = np.full((2, 2), bits)
        finetune_all(apply, params, policy, ranges, data, TUNING, key=jax.random.key(bits), apply_train=apply_train)
    program = make_program(apply, apply_train, TUNING, TUNING.passes.count_steps(len(data)))
    assert make_step(*program, TUNING.shift, TUNING.flip)._cache_size() == 1


def test_clips_learn_where_they_have_a_rate_and_stay_where_not():
    params, ranges, data = make_world()
    for rate in (0.0, 0.1):
        tuning = dataclasses.replace(TUNING, clip_rate=rate, epochs=1)
        options = dict(key=jax.random.key(0), apply_train=apply_train)
        found = finetune_all(apply, params, POLICY, ranges, data, tuning, **options).ranges.clip
        moved = np.argwhere(found != ranges.clip).tolist()
        assert moved == ([[0, 0, 2], [0, 1, 7], [1, 0, 1], [1, 1, 3]] if rate else [])


def test_running_statistics_move_with_apply_train_alone():
    params, ranges, data = make_world()
    tuning = dataclasses.replace(TUNING, epochs=1)
    for train in (None, apply_train):
        found = finetune_all(apply, params, POLICY, ranges, data, tuning, key=jax.random.key(0), apply_train=train)
        assert np.array_equal(found.params["norm"]["mean"], params["norm"]["mean"]) == (train is None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(learning_rate=-1.0), "learning rates .* must be at least 0, and one of them more"),
        (dict(learning_rate=0.0), "learning rates .* must be at least 0, and one of them more"),
        (dict(distill=1.5), "distill 1.5 must be in 0..1"),
        (dict(temperature=0.0), "temperature 0.0 more than 0"),
    ],
)
def test_numbers_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        Tuning(**wrong)


def test_training_that_becomes_nan_stops_with_the_step_and_the_layer():
    params, ranges, data = make_world()
    for rate in (1e10, 1e30):
        with pytest.raises(ValueError, match=r"not finite at step \d: the update of params\..*, which had grown to"):
            tuning = Tuning(batch_size=8, learning_rate=rate)
            finetune_all(apply, params, POLICY, ranges, data, tuning, key=jax.random.key(0))
    huge, whole = params | {"dense": jnp.full((36, 3), 3e38)}, np.array([[8, 8], [32, 32]])
    with pytest.raises(ValueError, match="not finite at step 1: the output of layer 'dense'; lower the learning rate"):
        finetune_all(apply, huge, whole, ranges, data, Tuning(batch_size=8), key=jax.random.key(0))
    with pytest.raises(ValueError, match="'dense' has 1 of 108 numbers that are not finite"):
        finetune_all(
            apply,
            params | {"dense": params["dense"].at[0, 0].set(jnp.nan)},
            POLICY,
            ranges,
            data,
            Tuning(),
            key=jax.random.key(0),
        )


@pytest.mark.parametrize(
    ("bits", "reason"), [(1, "'dense' has 1 weight"), (0, "'dense' has 0 weight"), (16, "16 weight")]
)
def test_widths_that_are_none_are_refused_before_training(bits, reason):
    params, ranges, data = make_world()
    with pytest.raises(ValueError, match=f"layer .*{reason} bits: expected 2 to 8"):
        finetune_all(
            apply, params, np.array([[8, 8], [bits, 4]]), ranges, data, Tuning(batch_size=8), key=jax.random.key(0)
        )
