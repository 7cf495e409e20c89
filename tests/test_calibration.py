"""Calibration is right, or says what it cannot know."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.quantizers import calibrate, quantize
from haqjax.quantizers.trainable import begin, quantize_learned
from haqjax.tracing.parameters import check_params

RNG = np.random.default_rng(0)


def dense(params, x):
    return x @ params["w"]


WEIGHT = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}


def uniform(*shape, scale=1.0):
    return (scale * RNG.uniform(size=shape)).astype(np.float32)


@pytest.mark.parametrize("method", ["mse", "max", "percentile", "kl"])
@pytest.mark.parametrize("first", [1e-30, 1e-12, 1e-3])
def test_the_order_and_the_cut_of_batches_change_no_clip(method, first):
    dark, bright = np.full((8, 4), first, np.float32), uniform(64, 4)
    batches = [[dark, bright], [bright, dark], [bright[:9], dark, bright[9:]], [np.concatenate([dark, bright])]]
    clips = [calibrate(dense, WEIGHT, each, method, rounding="nearest").clip for each in batches]
    for clip in clips[1:]:
        np.testing.assert_allclose(clip, clips[0], rtol=1e-4)
    assert 0.4 < clips[0][0, 1, 7] <= 1


def experts(params, x):
    chosen = (x.sum(-1, keepdims=True) > 50).astype(x.dtype)
    return (x * chosen) @ params["expert"] + (x * (1 - chosen)) @ params["w"]


def test_what_calibration_never_reached_is_named_and_left_in_floating_point():
    params, x = WEIGHT | {"expert": 2 * WEIGHT["w"]}, uniform(64, 4)
    with pytest.warns(UserWarning, match="the input of layer 'expert' was zero throughout calibration"):
        ranges = calibrate(experts, params, [x])
    assert ranges.reached.tolist() == [False, True] and np.isfinite(ranges.clip).all()
    policy, there = jnp.array([[32, 2], [32, 32]]), 100 * x
    found = quantize(experts)(params, there, policy, ranges)
    np.testing.assert_allclose(found, experts(params, there), rtol=1e-5, atol=1e-3)
    learned = quantize_learned(experts)(begin(params, policy, ranges), there, policy, ranges)
    np.testing.assert_allclose(learned, found, rtol=1e-5, atol=1e-3)


def test_inputs_far_from_zero_are_told():
    with pytest.warns(UserWarning, match="the inputs of layer 'w' lie around 10"):
        calibrate(dense, WEIGHT, [100 + uniform(64, 4)])


@pytest.mark.parametrize("x", [np.full((8, 4), 100, np.float32), uniform(64, 4), 1 + uniform(64, 4)])
def test_a_constant_or_a_spread_that_bits_can_tell_apart_is_no_warning(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(dense, WEIGHT, [x], rounding="nearest")


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([np.zeros((0, 4), np.float32)], "batch 0 to calibrate on has no examples"),
        ([uniform(3, 4), uniform(0, 4)], "batch 1 to calibrate on has no examples"),
        ([()], "batch 0 to calibrate on has no examples"),
        ([], "no batch to calibrate on"),
        (uniform(8, 4), r"batches is an array of shape \(8, 4\): pass a list"),
        ({"x": uniform(8, 4)}, "batches is dict: pass a list"),
        (None, "batches is NoneType: pass a list"),
        ((uniform(2, 4) for _ in range(0)), "no batch to calibrate on"),
    ],
)
def test_batches_without_examples_are_named(batches, reason):
    with pytest.raises(ValueError, match=reason):
        calibrate(dense, WEIGHT, batches)


def test_levels_below_zero_are_there_at_the_widths_where_they_are_worth_it():
    x = np.asarray(jax.nn.silu(2 * RNG.normal(size=(512, 4)).astype(np.float32)))
    ranges = calibrate(dense, WEIGHT, [x])
    assert not ranges.signed[0, :3].any() and ranges.signed[0, 7]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
@pytest.mark.parametrize("rounding", ["nearest", "output"])
def test_half_precision_networks_have_scales_of_32_bits(dtype, scale, rounding):
    params, x = {"w": WEIGHT["w"].astype(dtype)}, jnp.asarray(uniform(16, 4, scale=scale), dtype)
    ranges = calibrate(dense, params, [x], rounding=rounding)
    found = quantize(dense)(params, x, jnp.array([[8, 8]]), ranges)
    wanted = np.asarray(x, np.float32) @ np.asarray(params["w"], np.float32)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=0.03 * np.abs(wanted).max())


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scale": jnp.array([1.0, jnp.nan, 1.0])}, "'scale' has 1 of 3 numbers that are not finite"),
        ({"var": jnp.array([1.0, -1.0, -1.0])}, "'var' has 2 of 3 variances below zero"),
        ({"w": WEIGHT["w"].at[0].set(jnp.inf).astype(jnp.bfloat16)}, "'w' has 3 of 12 numbers that are not"),
    ],
)
def test_parameters_that_are_no_numbers_are_refused_at_every_batch_size(batch, change, reason):
    def apply(params, x):
        return jax.nn.relu((x @ params["w"]) * params["scale"][None] / jnp.sqrt(params["var"])[None])

    params = WEIGHT | {"scale": jnp.ones(3), "var": jnp.ones(3)}
    calibrate(apply, params, [uniform(batch, 4)], "max")
    with pytest.raises(ValueError, match=reason):
        calibrate(apply, params | change, [uniform(batch, 4)], "max")


def test_parameters_that_are_no_arrays_are_passed_over():
    check_params({"name": "relu", "activation": jax.nn.relu, "count": np.array([-1]), "var": None, "rate": 0.1})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [8, 4096, 70_000])
def test_one_input_that_is_not_finite_is_told_however_many_there_are(value, size):
    """On a CPU, the maximum and the minimum of 4,096 numbers and more pass over a NaN."""
    x = uniform(size, 4)
    x[size // 2, 1] = value
    with pytest.raises(ValueError, match="the input of layer 'w' is not finite"):
        calibrate(dense, WEIGHT, [uniform(8, 4), x], "max")
