"""Fake quantisation, clip values and calibration against slow references."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.quantizers import calibrate, quantize
from haqjax.quantizers.clipping import METHODS
from haqjax.quantizers.fake_quantize import quantize_weights
from haqjax.quantizers.integer_layers import prepare_network
from haqjax.quantizers.linear import fake_quantize
from haqjax.quantizers.per_channel import channel_ratios
from haqjax.types import ACTIVATION, WEIGHT, Ranges
from references_quantize import quantize_value

WIDTHS = range(2, 9)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("bits, signed", [(1, False), *((bits, signed) for bits in WIDTHS for signed in (True, False))])
def test_fake_quantization_equals_the_definition(bits, signed):
    x = np.asarray(2 * normal(500))
    found = jax.jit(fake_quantize)(x, 1.3, bits, signed)
    expected = [quantize_value(float(v), 1.3, bits, signed) for v in x]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert len(np.unique(found)) <= (2**bits - 1 if signed else 2**bits)


def test_one_signed_bit_is_never_mistaken_for_a_number():
    assert jnp.isnan(fake_quantize(normal(5), 1.0, 1)).all()


def test_ties_go_to_the_even_level():
    assert fake_quantize(jnp.array([0.5, 1.5, 2.5]), 3.0, 3).tolist() == [0, 2, 2]


def test_32_bits_leave_every_bit_as_it_is():
    x = 1e3 * normal(100)
    np.testing.assert_array_equal(fake_quantize(x, 1.0, 32), x)
    np.testing.assert_array_equal(fake_quantize(x, 1.0, 32, False), x)


def test_widths_and_signs_share_one_program():
    traces = []
    f = jax.jit(lambda x, bits, signed: (traces.append(0), fake_quantize(x, 1.0, bits, signed))[1])
    for bits in (2, 5, 32):
        for signed in (True, False):
            f(normal(3), bits, signed)
    assert len(traces) == 1


@pytest.mark.parametrize("signed", [True, False])
def test_straight_through_gradient_is_that_of_the_clipping_alone(signed):
    x = np.array([-2.0, -0.7, -0.1, 0.2, 0.8, 3.0], np.float32)

    def clipped(x, clip):
        return np.clip(x, -clip if signed else 0, clip).sum()

    by_x, by_clip = jax.grad(lambda x, clip: fake_quantize(x, clip, 3, signed).sum(), (0, 1))(jnp.asarray(x), 1.0)
    steps = 1e-3 * np.eye(6)
    np.testing.assert_allclose(by_x, [(clipped(x + s, 1.0) - clipped(x - s, 1.0)) / 2e-3 for s in steps], atol=1e-3)
    np.testing.assert_allclose(by_clip, (clipped(x, 1.001) - clipped(x, 0.999)) / 2e-3, atol=1e-3)


def test_the_largest_value_keeps_its_whole_gradient():
    assert jax.grad(lambda x: fake_quantize(x, 1.0, 3).sum())(jnp.array([-1.0, 1.0])).tolist() == [1, 1]


def test_gradient_at_32_bits_is_the_identity():
    np.testing.assert_array_equal(jax.grad(lambda x: fake_quantize(x, 0.1, 32).sum())(normal(9)), np.ones(9))


def two_layers(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]


PARAMS = {"first": normal(6, 5, seed=1), "second": normal(5, 4, seed=2)}
X = normal(16, 6, seed=3)


def quantized_by_hand(policy, ranges):
    """The two layers in NumPy."""
    x = np.asarray(X, np.float64)
    for layer, name in enumerate(PARAMS):
        w = np.asarray(PARAMS[name], np.float64)
        w_bits, a_bits = policy[layer]
        clip = ranges.clip[layer, WEIGHT, w_bits - 1]
        clips = clip * np.abs(w).max(0) / np.abs(w).max() if ranges.per_channel else np.full(w.shape[1], clip)
        w = np.array([[quantize_value(v, c, w_bits, True) for v, c in zip(row, clips, strict=True)] for row in w])
        a_clip, signed = (of[a_bits - 1] for of in (ranges.clip[layer, ACTIVATION], ranges.signed[layer]))
        x = np.array([[quantize_value(v, a_clip, a_bits, signed) for v in row] for row in x]) @ w
        x = np.maximum(x, 0) if layer == 0 else x
    return x


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_quantized_forward_equals_numpy(method, per_channel):
    ranges = calibrate(two_layers, PARAMS, [X[:8], X[8:]], method, per_channel=per_channel, rounding="nearest")
    assert ranges.signed[0, 3:].all() and not ranges.signed[1].any()
    assert ranges.clip.shape == (2, 2, 8) and (ranges.clip > 0).all()
    for policy in ([[8, 8], [8, 8]], [[4, 3], [2, 5]]):
        found = jax.jit(quantize(two_layers))(PARAMS, X, jnp.array(policy), ranges)
        np.testing.assert_allclose(found, quantized_by_hand(policy, ranges), rtol=1e-4, atol=1e-4)


def test_32_bits_everywhere_is_the_float_network():
    ranges = calibrate(two_layers, PARAMS, [X])
    found = quantize(two_layers)(PARAMS, X, jnp.full((2, 2), 32), ranges)
    np.testing.assert_array_equal(found, two_layers(PARAMS, X))


def test_weights_quantized_once_serve_every_batch():
    ranges, policy = calibrate(two_layers, PARAMS, [X]), jnp.array([[3, 8], [5, 4]])
    network = prepare_network(two_layers, PARAMS, jax.ShapeDtypeStruct((1, 6), "float32"), policy, ranges)
    np.testing.assert_array_equal(network(PARAMS, X), quantize(two_layers)(PARAMS, X, policy, ranges))


def test_policies_and_ranges_are_data_under_vmap_and_grad():
    traces = []
    qapply = quantize(lambda params, x: (traces.append(0), two_layers(params, x))[1])
    ranges = calibrate(two_layers, PARAMS, [X], "max")
    policies = jnp.array([[[8, 8], [8, 8]], [[2, 3], [4, 5]]])
    f = jax.jit(jax.vmap(qapply, (None, None, 0, None)))
    mapped = f(PARAMS, X, policies, ranges)
    traced = len(traces)
    f(PARAMS, X, policies[::-1], Ranges(ranges.clip * 0.5, ~ranges.signed))
    assert len(traces) == traced
    for policy, one in zip(policies, mapped, strict=True):
        np.testing.assert_allclose(one, qapply(PARAMS, X, policy, ranges), rtol=1e-5, atol=1e-5)
    wide = dataclasses.replace(ranges, clip=ranges.clip * np.array([1, 1.1], np.float32)[:, None])  # of activations
    gradient = jax.grad(lambda params: (qapply(params, X, policies[0], wide) ** 2).sum())(PARAMS)
    float_gradient = jax.grad(lambda params: (two_layers(params, X) ** 2).sum())(PARAMS)
    for name in PARAMS:  # at 8 bits, with nothing clipped, the straight-through gradient is close to the float one
        cosine = jnp.vdot(gradient[name], float_gradient[name]) / (
            jnp.linalg.norm(gradient[name]) * jnp.linalg.norm(float_gradient[name])
        )
        assert cosine > 0.99


def test_a_channel_of_zeros_stays_zero():
    params = PARAMS | {"first": PARAMS["first"].at[:, 2].set(0)}
    ranges = calibrate(two_layers, params, [X])
    weights = quantize_weights(two_layers, params, X, jnp.full((2, 2), 4), ranges)
    assert (weights[0][:, 2] == 0).all() and jnp.isfinite(weights[0]).all()


def test_shares_are_of_the_own_layer():
    ratios, layer_of = channel_ratios((jnp.array([2.0, 1.0]), jnp.array([0.0, 8.0, 2.0]), jnp.zeros(1)))
    assert ratios.tolist() == [1, 0.5, 1, 1, 0.25, 1] and layer_of.tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(method="best"), "unknown calibration method 'best': one of max, mse, percentile, kl"),
        (dict(batches=[]), "no batch to calibrate on"),
        (
            dict(params=PARAMS | {"second": PARAMS["second"].at[0, 0].set(jnp.inf)}),
            "'second' has 1 of 20 numbers that are not",
        ),
        (dict(batches=[X.at[0, 0].set(jnp.nan)]), "input of layer 'first' is not finite"),
    ],
)
def test_calibration_refuses_in_one_line(change, message):
    arguments = dict(apply=two_layers, params=PARAMS, batches=[X]) | change
    with pytest.raises(ValueError, match=message):
        calibrate(**arguments)


def test_a_policy_for_another_network_is_refused():
    ranges = calibrate(two_layers, PARAMS, [X])
    with pytest.raises(ValueError, match=r"policy has shape \(3, 2\), but the network's 2 layers need \(2, 2\)"):
        quantize(two_layers)(PARAMS, X, jnp.full((3, 2), 8), ranges)


def test_grouped_and_depthwise_channels_have_clips_of_their_own():
    """A depthwise kernel whose channels differ a thousandfold keeps all of them at 8 bits."""
    scale = 10.0 ** jnp.arange(-1, 3)
    kinds = dict(feature_group_count=4, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(params, x):
        return jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", **kinds)

    params = {"w": normal(3, 3, 1, 4) * scale[None, None, None]}
    (weight,) = quantize_weights(
        apply,
        params,
        jnp.ones((1, 5, 5, 4)),
        jnp.full((1, 2), 8),
        calibrate(apply, params, [jnp.ones((1, 5, 5, 4))], "max"),
    )
    error = jnp.abs(weight - params["w"]).max((0, 1, 2)) / scale
    assert (error < 0.02).all()
