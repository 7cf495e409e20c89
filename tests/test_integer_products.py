"""Sums of products of codes are exact in every type, for every kind of layer, however long they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from haqjax.tracing.hooks import map_weights, with_hook
from haqjax.tracing.integer_products import FORMS, count_summed, multiply, ready_weights, safe_arithmetic
from references_integer import multiply_integers


def convolution(*, strides=(1, 1), padding="SAME", axes=("NHWC", "HWIO", "NHWC"), **options):
    return lambda params, x: lax.conv_general_dilated(x, params, strides, padding, dimension_numbers=axes, **options)


def einsum(text):
    return lambda params, x: jnp.einsum(text, x, params)


# A network of one layer, the shapes of its input and weight, and the parts that its sums of 8-bit codes need.
LAYERS = {
    "dense": (lambda params, x: x @ params, (4, 2000), (2000, 3), 4),
    "dense, weight on the left": (lambda params, x: jnp.einsum("oi,bi->ob", params, x), (2, 700), (3, 700), 2),
    "heads": (einsum("bsi,hio->bhso"), (2, 5, 700), (3, 700, 2), 2),
    "two summed axes": (einsum("bij,ijo->bo"), (2, 30, 31), (30, 31, 4), 2),
    "batched": (einsum("bgi,gio->bgo"), (2, 3, 700), (3, 700, 4), 2),
    "short": (lambda params, x: x @ params, (4, 518), (518, 3), 1),
    "convolution": (convolution(), (2, 6, 6, 80), (3, 3, 80, 4), 2),
    "map smaller than the kernel": (convolution(), (2, 2, 2, 80), (3, 3, 80, 4), 2),
    "pointwise": (convolution(), (2, 3, 3, 700), (1, 1, 700, 4), 2),
    "strided": (convolution(strides=(2, 2), padding=((0, 1), (2, 1))), (2, 7, 7, 80), (3, 3, 80, 4), 2),
    "grouped": (convolution(feature_group_count=2), (2, 6, 6, 160), (3, 3, 80, 4), 2),
    "depthwise": (convolution(feature_group_count=4), (2, 30, 30, 4), (25, 25, 1, 4), 2),
    "few channels": (convolution(), (1, 40, 40, 3), (31, 31, 3, 2), 6),
    "transposed": (convolution(lhs_dilation=(2, 2), padding=((2, 2), (2, 2))), (2, 5, 5, 80), (3, 3, 80, 4), 2),
    "dilated": (convolution(rhs_dilation=(2, 2)), (2, 7, 7, 80), (3, 3, 80, 4), 2),
    "along time": (convolution(strides=(1,), axes=("NCH", "OIH", "NCH")), (2, 80, 9), (4, 80, 9), 2),
}


def draw_codes(shapes, signed):
    """Codes of 8 bits whose sums are as long as they get, and odd: the first example and weights are the largest."""
    random = np.random.default_rng(0)
    low, high = (-127, 128) if signed else (0, 256)
    x, weight = random.integers(low, high, shapes[0]), random.integers(0, 128, shapes[1])
    x[0], weight.flat[::2] = high - 1, 127
    return jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32)


def multiply_in(form, apply, weight, x, signed):
    def hook(layer, activation, weight, compute):
        arithmetic = safe_arithmetic(layer)._replace(form=form)
        sign, whole = jnp.array(signed), jnp.array(True)
        return multiply(layer, activation, ready_weights(layer, weight, sign, form), arithmetic, sign, whole)

    return jax.jit(with_hook(apply, hook))(weight, x)


def in_integers(apply, weight, x):
    def hook(layer, activation, weight, compute):
        return jnp.asarray(multiply_integers(layer, activation, weight).astype(np.float32))

    return with_hook(apply, hook)(weight, x)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kind", LAYERS)
def test_sums_are_exact_in_every_type(kind, signed):
    apply, *shapes, parts = LAYERS[kind]
    x, weight = draw_codes(shapes, signed)
    (layer,) = map_weights(lambda layer, weight: layer, apply, weight, x)
    expected = in_integers(apply, weight, x)
    assert safe_arithmetic(layer).parts == parts
    assert np.abs(expected).max() > 2**22
    for form in FORMS:
        np.testing.assert_array_equal(multiply_in(form, apply, weight, x, signed), expected, err_msg=form)


def test_one_part_would_not_do():
    """Of 2,000 products in one sum some odd ones get lost: the parts are needed."""
    apply, *shapes, _ = LAYERS["dense"]
    x, weight = draw_codes(shapes, signed=False)
    (layer,) = map_weights(lambda layer, weight: layer, apply, weight, x)
    exact = multiply_integers(layer, x, weight)
    assert (exact > 2**24).any() and count_summed(layer) == 2000
    steps = np.cumsum(np.asarray(x)[0, :, None] * np.asarray(weight), axis=0, dtype=np.float32)[-1]
    assert (steps != exact[0]).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_no_32_bits_hold_are_exact_too(form, sign):
    """Of a flattened image of 224 pixels, where an int32 would go round; the largest sum, and one a little less."""
    apply, count = lambda params, x: x @ params, 3 * 224 * 224
    x = jnp.full((2, count), 255.0).at[1, :77].set(1.0)
    weight = jnp.full((count, 1), sign * 127.0)
    exact = sign * 127 * np.array([[255 * count], [255 * (count - 77) + 77]])
    assert (np.abs(exact) > 2**32).all()
    np.testing.assert_array_equal(multiply_in(form, apply, weight, x, False), exact.astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_a_number_does_not_get_a_code(form):
    apply, x_shape, weight_shape, _ = LAYERS["convolution"]
    x, weight = draw_codes((x_shape, weight_shape), signed=True)
    found = multiply_in(form, apply, weight, x.at[1, 2, 3, 4].set(jnp.nan), True)
    assert jnp.isfinite(found[0]).all() and jnp.isnan(found[1]).any()
    dense, *shapes, _ = LAYERS["heads"]
    x, weight = draw_codes(shapes, signed=True)
    found = multiply_in(form, dense, weight, x.at[1, 2, 3].set(jnp.nan), True)
    bad = jnp.isnan(found)
    assert bad[1, :, 2].all() and bad.sum() == bad[1, :, 2].size


@pytest.mark.parametrize("parts", [1, 3])
def test_floats_pass_through_a_sum_in_parts(parts):
    """At 32 bits an operand is no code: its sums are those of the floats."""
    apply = LAYERS["dense"][0]
    x, weight = jax.random.normal(jax.random.key(0), (4, 90)), jnp.ones((90, 3)) / 7

    def hook(layer, activation, weight, compute):
        arithmetic = safe_arithmetic(layer)._replace(parts=parts)
        weights = ready_weights(layer, weight, jnp.array(True), "float32")
        return multiply(layer, activation, weights, arithmetic, jnp.array(True), jnp.array(False))

    np.testing.assert_allclose(with_hook(apply, hook)(weight, x), x @ weight, rtol=1e-5, atol=1e-5)
