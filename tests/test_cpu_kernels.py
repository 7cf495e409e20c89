"""CPU kernels equal the plain convolution, forward and backward, whatever the shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import compute_in, with_hook

DEPTHWISE = [
    # map, kernel, stride, padding, dilation, channels, multiplier
    ((8, 8), (3, 3), (1, 1), "SAME", (1, 1), 4, 1),
    ((9, 7), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 5, 1),
    ((8, 8), (5, 3), (2, 1), "VALID", (1, 1), 3, 2),
    ((8, 8), (3, 3), (1, 1), [(2, 2), (2, 2)], (2, 2), 4, 1),
    ((1, 1), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 6, 1),
    ((2, 2), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 6, 1),
    ((6, 6), (3, 3), (3, 2), [(-1, 2), (0, -1)], (1, 2), 4, 1),
    ((4, 4), (1, 1), (1, 1), "VALID", (1, 1), 4, 3),
]
DENSE = [
    ((8, 8), (1, 1), (1, 1), "VALID", (1, 1), 6, 5),
    ((9, 9), (1, 1), (2, 2), "VALID", (1, 1), 6, 5),
    ((5, 5), (1, 1), (1, 2), [(1, 0), (2, 1)], (1, 1), 3, 4),
    ((1, 1), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 6, 5),
    ((2, 2), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 6, 5),
    ((2, 2), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), 6, 5),
    ((2, 3), (5, 5), (1, 1), [(2, 2), (2, 2)], (1, 1), 3, 2),
    ((2, 2), (3, 3), (1, 1), [(2, 2), (2, 2)], (2, 2), 3, 2),
    ((2, 2), (3, 3), (1, 1), [(5, -2), (5, -2)], (1, 1), 3, 2),
]
LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NCHW", "HWIO", "NHWC"), ("HWNC", "OHWI", "CNHW")]


def every(cases):
    """Each case in one layout, and one case in each layout: a compilation apiece."""
    return [(case, LAYOUTS[0]) for case in cases] + [(cases[2], kinds) for kinds in LAYOUTS[1:]]


def network(kernel, stride, padding, dilation, groups, kinds):
    def apply(params, x):
        return jax.lax.conv_general_dilated(
            x, params["w"], stride, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=kinds
        )

    return apply


def arrange(named, kind, letters):
    """An array with axes `letters` in the order `kind`."""
    return jnp.transpose(named, [letters.index(letter) for letter in kind])


def check(apply, weight, x):
    def both(f):
        def loss(params, x):
            y = f(params, x)
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

        return f({"w": weight}, x), jax.grad(loss, (0, 1))({"w": weight}, x)

    plain, fast = jax.jit(lambda: both(apply))(), jax.jit(lambda: both(with_hook(apply, use_cpu_kernels)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), plain, fast)


@pytest.mark.parametrize("case, kinds", every(DEPTHWISE))
def test_depthwise(case, kinds):
    size, kernel, stride, padding, dilation, channels, multiplier = case
    x = arrange(jax.random.normal(jax.random.key(0), (2, *size, channels)), kinds[0], "NHWC")
    w = arrange(jax.random.normal(jax.random.key(1), (*kernel, 1, channels * multiplier)), kinds[1], "HWIO")
    check(network(kernel, stride, padding, dilation, channels, kinds), w, x)


@pytest.mark.parametrize("case, kinds", every(DENSE))
def test_pointwise_and_small_maps(case, kinds):
    size, kernel, stride, padding, dilation, inputs, outputs = case
    x = arrange(jax.random.normal(jax.random.key(0), (2, *size, inputs)), kinds[0], "NHWC")
    w = arrange(jax.random.normal(jax.random.key(1), (*kernel, inputs, outputs)), kinds[1], "HWIO")
    check(network(kernel, stride, padding, dilation, 1, kinds), w, x)


@pytest.mark.parametrize("groups", [1, 8])
def test_half_precision_operands_are_summed_as_precisely_as_asked(groups):
    kinds = dict(feature_group_count=groups, dimension_numbers=LAYOUTS[0], preferred_element_type=jnp.float32)

    def apply(params, x):
        return jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", **kinds)

    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 8)).astype(jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (3, 3, 8 // groups, 8)).astype(jnp.bfloat16)
    plain, fast = apply({"w": w}, x), with_hook(apply, use_cpu_kernels)({"w": w}, x)
    assert fast.dtype == jnp.float32
    np.testing.assert_allclose(plain, fast, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", [((8, 8), (3, 3), (1, 1), "SAME", (1, 1)), ((9, 7), (5, 3), (2, 1), [(2, 0), (1, 3)], (1, 2))]
)
def test_codes_in_bfloat16_are_summed_exactly_tap_by_tap(case):
    size, kernel, stride, padding, dilation = case
    apply = network(kernel, stride, padding, dilation, 1, LAYOUTS[1])
    draw = lambda key, low, shape: jax.random.randint(jax.random.key(key), shape, low, 128).astype(jnp.float32)
    x, w = draw(0, 0, (2, 6, *size)), draw(1, -127, (5, 6, *kernel))
    exact = jnp.dtype(jnp.float32)

    def hook(layer, activation, weight, compute):
        operands = activation.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
        return use_cpu_kernels(layer, *operands, compute_in(layer, exact), exact)

    fast = jax.jit(with_hook(apply, hook))
    np.testing.assert_array_equal(fast({"w": w}, x), apply({"w": w}, x))
    assert "stablehlo.convolution" not in fast.trace({"w": w}, x).lower(lowering_platforms=("cpu",)).as_text()


def test_one_dimension():
    kinds = ("NHC", "HIO", "NHC")
    x = jax.random.normal(jax.random.key(0), (2, 9, 4))
    check(network((3,), (2,), [(1, 1)], (1,), 4, kinds), jax.random.normal(jax.random.key(1), (3, 1, 4)), x)


def stablehlo_of(apply, weight, x, platform):
    traced = jax.jit(with_hook(apply, use_cpu_kernels)).trace({"w": weight}, x)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("groups, channels, size", [(4, 4, 8), (1, 4, 2)])
def test_the_cpu_form_has_no_convolution_and_others_keep_it(groups, channels, size):
    apply = network((3, 3), (1, 1), "SAME", (1, 1), groups, LAYOUTS[0])
    weight, x = jnp.ones((3, 3, channels // groups, 4)), jnp.ones((1, size, size, channels))
    assert "stablehlo.convolution" not in stablehlo_of(apply, weight, x, "cpu")
    assert "stablehlo.convolution" in stablehlo_of(apply, weight, x, "cuda")
    assert "stablehlo.convolution" in stablehlo_of(apply, weight, x, "tpu")


def test_a_kernel_of_many_taps_stays_as_it_is():
    apply = network((8, 8), (8, 8), "VALID", (1, 1), 1, LAYOUTS[0])
    assert "stablehlo.convolution" in stablehlo_of(apply, jnp.ones((8, 8, 3, 4)), jnp.ones((1, 32, 32, 3)), "cpu")


def test_a_large_dense_convolution_stays_as_it_is():
    apply = network((3, 3), (1, 1), "SAME", (1, 1), 1, LAYOUTS[0])
    assert "stablehlo.convolution" in stablehlo_of(apply, jnp.ones((3, 3, 4, 4)), jnp.ones((1, 8, 8, 4)), "cpu")


def test_vmap_over_weights():
    apply = network((3, 3), (1, 1), "SAME", (1, 1), 4, LAYOUTS[0])
    weights, x = jax.random.normal(jax.random.key(0), (3, 3, 3, 1, 4)), jnp.ones((2, 6, 6, 4))
    plain, fast = (jax.vmap(lambda w, f=f: f({"w": w}, x))(weights) for f in (apply, with_hook(apply, use_cpu_kernels)))
    np.testing.assert_allclose(plain, fast, rtol=1e-5, atol=1e-5)
