"""Histograms and the clips that are chosen from them, against the values themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.quantizers import clipping
from haqjax.quantizers.clipping import KL_BINS, KL_CANDIDATES, METHODS, choose, levels_at
from haqjax.quantizers.histogram import (
    SAMPLES,
    Histogram,
    add_samples,
    bin_edges,
    count_on_host,
    draw_sample,
    empty_histogram,
    stack_samples,
)
from references_quantize import kl_clip, squared_error

WIDTHS = range(2, 9)
EDGES = bin_edges()
CHOOSE = {method: jax.jit(functools.partial(choose, method)) for method in METHODS}
CHOOSE_SIGNED = {method: jax.jit(functools.partial(choose, method, always_signed=True)) for method in METHODS}


def count(*parts, examples=None):
    """One tensor's histogram, from parts that are counted one after the other."""
    counted = empty_histogram(1)
    for part in parts:
        counted = add_samples(counted, stack_samples((draw_sample(jnp.asarray(part, jnp.float32), examples=examples),)))
    return counted


def row_of(values):
    return Histogram(*(field[0] for field in count(values)))


def normal(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_a_histogram_equals_numpy_over_all_orders_of_magnitude():
    values = normal(20000) * np.exp(normal(20000, seed=1) * 20)
    counted = count(values)
    finite = np.append(EDGES[np.isfinite(EDGES)], np.float32(np.inf))
    for found, side in ((counted.positive, values[values > 0]), (counted.negative, -values[values < 0])):
        expected, _ = np.histogram(side, finite.astype(np.float64))
        np.testing.assert_array_equal(found[0, : len(expected)], expected)
    assert (counted.lowest[0], counted.highest[0]) == (values.min(), values.max())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_neither_the_order_nor_the_cut_of_batches_matters(scale):
    small, large = normal(4000) * scale, normal(4000, seed=1)
    whole = count(np.concatenate([small, large]))
    for parts in ((small, large), (large, small), (large[:7], small, large[7:])):
        for one, other in zip(count(*parts), whole, strict=True):
            np.testing.assert_array_equal(one, other)


def test_examples_are_sampled_alike_however_they_are_cut():
    x = normal(6 * 3 * SAMPLES).reshape(6, -1)
    whole, cut = count(x, examples=6), empty_histogram(1)
    for part in (x[:1], x[1:3], x[3:]):
        cut = add_samples(cut, stack_samples((draw_sample(jnp.asarray(part), examples=len(part)),)))
    np.testing.assert_array_equal(cut.positive, whole.positive)


def test_counts_go_on_beyond_what_a_sum_of_ones_can_reach():
    many = count([0.5])._replace(positive=count([0.5]).positive * 2**24)
    grown = add_samples(many, stack_samples((draw_sample(jnp.full(1000, 0.5)),)))
    assert float(grown.positive.sum()) == 2**24 + 1000


def test_sampling_meets_every_channel_alike():
    x = jnp.broadcast_to(jnp.arange(16.0), (64, 32, 32, 16))
    for examples in (None, 64):
        counts = np.bincount(np.asarray(draw_sample(x, examples=examples).values, int), minlength=16)
        assert counts.min() > 0.98 * counts.max()


def test_a_sample_weighs_what_it_is_told():
    taken = draw_sample(jnp.array([[1.0, 2.0]]), jnp.array([[0.25, 4.0]]))
    assert taken.weight.tolist() == [0.25, 4]
    assert stack_samples((taken, draw_sample(jnp.ones(3)))).weight.tolist() == [[0.25, 4, 0], [1, 1, 1]]


@pytest.mark.parametrize("shape", [(7,), (300, 200)])
def test_counts_on_the_host_are_those_of_the_device(shape):
    values, weight = normal(shape), normal(shape, seed=1) ** 2
    on_device = add_samples(empty_histogram(1), stack_samples((draw_sample(jnp.asarray(values), jnp.asarray(weight)),)))
    for found, expected in zip(count_on_host(values, weight), on_device, strict=True):
        np.testing.assert_allclose(found, expected[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_told_on_the_host_too(bad):
    assert not count_on_host(np.array([1, bad, 2], np.float32)).finite and count_on_host(normal(3)).finite


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_least_divergence_equals_the_literal_reading(seed, signed):
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_t(3, 5000)) * (rng.random(5000) > 0.4 if seed == 1 else 1)
    counts, _ = np.histogram(values, KL_BINS, (0, values.max()))
    found = jax.jit(clipping.least_divergence)(jnp.append(counts, 0.0), levels_at(signed))
    for bits in (2, 4, 8):
        expected = kl_clip(counts, values.max(), bits, signed, KL_CANDIDATES)
        assert float(found[bits - 1]) * values.max() == pytest.approx(expected, rel=1e-5)


def test_spread_counts_are_those_of_equal_bins():
    values = np.abs(normal(30000))
    row = row_of(values)
    found = clipping._spread(row.positive, row.highest, jnp.float32(2.0))
    expected, _ = np.histogram(values, KL_BINS, (0, 2))
    assert float(found[-1]) == pytest.approx((values > 2).sum(), rel=0.02)
    np.testing.assert_allclose(
        np.add.reduceat(found[:-1], range(0, KL_BINS, 64)), expected.reshape(-1, 64).sum(1), rtol=0.05
    )


TENSORS = {
    "normal": normal(4000),
    "half of a normal": np.abs(normal(4000)),
    "heavy tails": np.random.default_rng(0).standard_t(2, 4000).astype(np.float32),
    "outliers": normal(4000) * np.where(np.arange(4000) % 50, 1, 4),
    "far outlier": np.append(np.abs(normal(4000)), 1e3).astype(np.float32),
    "tiny": normal(4000) * 1e-30,
    "huge": np.abs(normal(4000)) * 1e30,
    "silu": np.asarray(jax.nn.silu(2 * normal(4000))),
    "hard swish": np.asarray(jax.nn.hard_swish(3 * normal(4000))),
    "below zero": -np.abs(normal(4000)),
    "few values": np.random.default_rng(0).choice([0, 0.25, 1], 500).astype(np.float32),
    "a constant": np.full(64, 0.37, np.float32),
}


def best_error(values, bits):
    """The least squared error of signed and of unsigned levels over a fine grid of clips."""
    largest = np.abs(values).max()
    clips = largest * np.exp2(-np.arange(400) / 40)
    return min(squared_error(values, clip, bits, signed) for clip in clips for signed in (True, False))


@pytest.mark.parametrize("name", TENSORS)
def test_clip_and_sign_are_as_good_as_a_search_over_the_values_themselves(name):
    values = TENSORS[name].astype(np.float64)
    found = CHOOSE["mse"](row_of(TENSORS[name]))
    for bits in WIDTHS:
        error = squared_error(values, float(found.value[bits - 1]), bits, bool(found.signed[bits - 1]))
        assert error <= 1.04 * best_error(values, bits) + 1e-6 * (values**2).sum()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_sign_of_less_error_at_its_own_clips(method):
    for name in ("silu", "normal", "hard swish", "below zero"):
        values = TENSORS[name]
        found = CHOOSE[method](row_of(values))
        signed = CHOOSE_SIGNED[method](row_of(values)).value
        unsigned = CHOOSE[method](row_of(np.maximum(values, 0))).value
        for bits in WIDTHS:
            pair = [
                squared_error(values, float(of[bits - 1]), bits, sign)
                for of, sign in ((signed, True), (unsigned, False))
            ]
            if max(pair) > 1.1 * min(pair):
                assert bool(found.signed[bits - 1]) == (pair[0] < pair[1]), (name, bits, pair)


def test_one_bit_is_never_signed_since_it_would_have_no_level():
    for values in TENSORS.values():
        found = CHOOSE["mse"](row_of(values))
        assert not found.signed[0] and np.isfinite(found.value).all() and (found.value > 0).all()


@pytest.mark.parametrize("outlier", [1.0, 1e4, 1e6, 1e30])
def test_percentile_is_numpys_beside_any_outlier(outlier):
    values = np.append(np.random.default_rng(0).uniform(0, 1, 29999), outlier).astype(np.float32)
    found = CHOOSE["percentile"](row_of(values)).value
    np.testing.assert_allclose(found, np.percentile(values, 99.99), rtol=1 / 128)


def test_a_percentile_of_zero_is_no_clip():
    found = CHOOSE["percentile"](row_of(np.append(np.zeros(30000), 2.0).astype(np.float32)))
    np.testing.assert_array_equal(found.value, np.full(8, 2, np.float32))


def test_max_is_the_largest_magnitude_and_that_of_zeros_is_one():
    np.testing.assert_array_equal(CHOOSE_SIGNED["max"](row_of([-3.0, 1.0])).value, np.full(8, 3, np.float32))
    np.testing.assert_array_equal(CHOOSE["max"](row_of([0.0, 0.0])).value, np.ones(8, np.float32))


@pytest.mark.parametrize("outlier", [1e3, 1e6])
def test_an_outlier_does_not_decide_the_clip_of_least_divergence(outlier):
    values = np.abs(normal(30000))
    bare, beside = (float(CHOOSE["kl"](row_of(of)).value[7]) for of in (values, np.append(values, np.float32(outlier))))
    assert bare / 1.5 < beside < 1.5 * bare
