"""Sensitivities against closed forms of a linear softmax and slow loops over a small network."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import haqjax
from haqjax.allocation.additive import guard, predict, rank_correlation
from haqjax.data import Split
from haqjax.evaluation import curvature, sensitivity
from haqjax.evaluation.curvature import estimate_fisher_sensitivity, estimate_hessian_sensitivity
from haqjax.evaluation.evaluator import make_evaluator
from haqjax.evaluation.gauss_newton import estimate_gauss_newton_sensitivity
from haqjax.evaluation.sensitivity import (
    AT_ONCE,
    check_additive,
    draw_policies,
    make_divergence_evaluator,
    measure_kl_sensitivity,
    measure_loss_sensitivity,
    measure_sensitivities,
    probe_entries,
)
from haqjax.policies.bounds import make_bounds
from haqjax.searchers import ILP, make_ilp, search
from haqjax.searchers.ilp import check_additivity
from haqjax.types import ACTIVATION, FULL_PRECISION, WEIGHT, Evaluation, Evaluator
from references_quantize import quantize_value
from search_world import every_policy, make_world


def linear(params, x):
    return x.reshape(len(x), -1) @ params["w"]


def two_layers(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params["first"]) @ params["second"]


def make_linear(images=7):
    """Six inputs and three classes; clips at the maximum, one for each tensor, rounding to the nearest level."""
    random = np.random.default_rng(0)
    params = {"w": jnp.asarray(random.normal(size=(6, 3)), jnp.float32)}
    split = Split(random.normal(size=(images, 1, 6, 1)).astype(np.float32), random.integers(0, 3, images, np.int32))
    ranges = haqjax.calibrate(linear, params, [split.images], method="max", per_channel=False, rounding="nearest")
    return params, split, ranges


def make_two_layers(images=11):
    """Ten inputs, eight numbers between, four classes; right on each image with the label that it is surest of."""
    random = np.random.default_rng(1)
    first, second = random.normal(size=(10, 8)) / 2, random.normal(size=(8, 4)) / 2
    params = {"first": jnp.asarray(first, jnp.float32), "second": jnp.asarray(second, jnp.float32)}
    pixels = random.normal(size=(images, 2, 5, 1)).astype(np.float32)
    split = Split(pixels, np.asarray(two_layers(params, pixels)).argmax(axis=-1).astype(np.int32))
    return params, split, haqjax.calibrate(two_layers, params, [pixels])


def errors(values, clip, bits, signed=True):
    """Squared quantisation errors, number by number."""
    return np.vectorize(lambda x: (quantize_value(float(x), clip, bits, signed) - x) ** 2)(np.asarray(values, float))


def shares(params, split):
    """Inputs, weights, shares of classes and one-hot labels of the linear softmax, in float64."""
    x, w = split.images.reshape(len(split), -1).astype(float), np.asarray(params["w"], float)
    return x, w, softmax(x @ w, axis=-1), np.eye(3)[split.labels]


def test_fisher_of_a_linear_softmax_is_that_by_hand():
    params, split, ranges = make_linear()
    x, w, p, y = shares(params, split)
    found = estimate_fisher_sensitivity(linear, params, split, ranges)
    by_weight = np.mean([np.outer(x[n], p[n] - y[n]) ** 2 for n in range(len(x))], axis=0)
    by_activation = ((p - y) @ w.T) ** 2
    for bits in (2, 3, 5, 8):
        clip = ranges.clip[0, :, bits - 1]
        expected = 0.5 * (by_weight * errors(w, clip[WEIGHT], bits)).sum()
        assert found[0, WEIGHT, bits - 1] == pytest.approx(expected, rel=1e-4)
        expected = (
            0.5 * (by_activation * errors(x, clip[ACTIVATION], bits, ranges.signed[0, bits - 1])).sum(axis=1).mean()
        )
        assert found[0, ACTIVATION, bits - 1] == pytest.approx(expected, rel=1e-4)


def test_hessian_traces_are_those_of_the_closed_form():
    """Of a linear softmax, each image: `x x' (x) S` by the weights and `W S W'` by the inputs, `S = diag p - p p'`."""
    params, split, ranges = make_linear()
    x, w, p, _ = shares(params, split)
    draws = 400
    found = estimate_hessian_sensitivity(linear, params, split, ranges, key=jax.random.key(0), draws=draws)
    spread = np.array([np.diag(one) - np.outer(one, one) for one in p])
    whole = np.einsum("ni,nj,ncd->icjd", x, x, spread).reshape(18, 18) / len(x)
    each = [w @ s @ w.T / len(x) for s in spread]
    # What the signs add: pairs of one tensor, and pairs of a weight and an input, whose second derivative is:
    mixed = [np.einsum("i,cd,jd->icj", x[n], spread[n], w).reshape(18, 6) / len(x) for n in range(len(x))]
    residual = p - np.eye(3)[split.labels]
    mixed = [m + np.einsum("ij,c->icj", np.eye(6), residual[n]).reshape(18, 6) / len(x) for n, m in enumerate(mixed)]
    crossed = sum((m**2).sum() for m in mixed)
    for column, blocks, values in ((WEIGHT, [whole], w), (ACTIVATION, each, x)):
        trace = sum(np.trace(block) for block in blocks)
        apart = sum((block**2).sum() - (np.diag(block) ** 2).sum() for block in blocks)
        error = np.sqrt((2 * apart + crossed) / draws)
        assert error < 0.1 * trace
        for bits in (2, 4, 8):
            signed = column == WEIGHT or bool(ranges.signed[0, bits - 1])
            mean = errors(values, ranges.clip[0, column, bits - 1], bits, signed).mean()
            assert abs(found[0, column, bits - 1] / (0.5 * mean) - trace) < 3 * error


def test_signs_find_the_trace_of_a_quadratic_at_once_where_the_hessian_is_diagonal(monkeypatch):
    """A loss `sum h w^2 / 2` of one image: no draw is by chance."""
    strength = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def quadratic(apply, shifts, params, images, labels):
        (by_weight,), (by_activation,) = shifts
        loss = 0.5 * (strength * (params["w"] + by_weight) ** 2).sum() + 3.5 * ((images + by_activation) ** 2).sum()
        return loss, ((0, images),)

    monkeypatch.setattr(curvature, "_loss", quadratic)

    def apply(params, x):
        return x @ params["w"]

    params, x = {"w": jnp.ones((2, 3)) / 3}, jnp.asarray([[0.3, -1.0]])
    ranges = haqjax.calibrate(apply, params, [x], method="max")
    ranges.clip[:] = 1.0
    trace = curvature._measure_trace(apply, params, x, jnp.zeros(1, jnp.int32), ranges, jax.random.key(0))
    np.testing.assert_allclose(trace.trace, [[21.0, 14.0]], rtol=1e-6)
    mean = errors(x, 1.0, 3).mean()
    np.testing.assert_allclose(trace.errors[0, 2], mean, rtol=1e-4)


def test_blank_images_at_the_end_of_a_batch_do_not_count():
    params, split, ranges = make_linear(3)
    blank = np.pad(split.images, ((0, 2), (0, 0), (0, 0), (0, 0)), constant_values=0.7)
    batches = (split.images, split.labels), (blank, np.pad(split.labels, (0, 2), constant_values=-1))
    traces, losses = [], []
    for images, labels in batches:
        traces.append(curvature._measure_trace(linear, params, images, labels, ranges, jax.random.key(0)))
        shifts = curvature.make_shifts(linear, params, images)
        losses.append(curvature._loss(linear, shifts, params, images, labels)[0])
    np.testing.assert_allclose(traces[1].errors[:, 1:], traces[0].errors[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_measured_losses_and_divergences_are_those_of_a_slow_loop():
    params, split, ranges = make_two_layers()
    limits = make_bounds(2, low=2, pinned={1: 8})
    by_loss = measure_loss_sensitivity(two_layers, params, split, ranges, limits)
    by_answers = measure_kl_sensitivity(two_layers, params, split.images, ranges, limits)
    qapply, rows = haqjax.quantize(two_layers), np.arange(len(split))
    expected = log_softmax(np.asarray(two_layers(params, split.images), float), axis=-1)
    for layer, column, bits in [(0, 0, 2), (0, 0, 7), (0, 1, 3), (1, 0, 8), (1, 1, 8)]:
        policy = np.full((2, 2), FULL_PRECISION)
        policy[layer, column] = bits
        logits = np.asarray(qapply(params, split.images, jnp.asarray(policy), ranges), float)
        found = log_softmax(logits, axis=-1)
        rise = (expected - found)[rows, split.labels].mean()
        assert by_loss[layer, column, bits - 1] == pytest.approx(rise, rel=1e-3, abs=2e-6)
        apart = (np.exp(expected) * (expected - found)).sum(axis=-1).mean()
        assert by_answers[layer, column, bits - 1] == pytest.approx(apart, rel=1e-3, abs=2e-6)
    assert (by_loss[1, :, :7] == 0).all() and (by_loss[0, :, 0] == 0).all()


def test_batches_do_not_change_a_divergence():
    params, split, ranges = make_two_layers()
    policies = draw_policies(make_bounds(2, pinned={}), 3, jax.random.key(0))
    world = two_layers, params, split.images, ranges
    one, two = (make_divergence_evaluator(*world, batch_size=n)(policies).loss for n in (11, 4))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert (np.asarray(one) > 0).all()


def test_second_derivatives_foretell_small_losses_of_a_trained_linear_softmax():
    """With labels drawn from the network's own shares, Fisher information is the Hessian, and both tell the loss."""
    params, split, _ = make_linear(4000)
    x, _, p, _ = shares(params, split)
    labels = (p.cumsum(axis=-1) < np.random.default_rng(2).random((len(x), 1))).sum(axis=-1).astype(np.int32)
    split = Split(split.images, labels)
    ranges = haqjax.calibrate(linear, params, [split.images], method="max", per_channel=False, rounding="nearest")
    few = Split(split.images[:300], split.labels[:300])
    fisher = estimate_fisher_sensitivity(linear, params, few, ranges)[0, WEIGHT]
    hessian = estimate_hessian_sensitivity(linear, params, split, ranges, key=jax.random.key(0), draws=60)[0, WEIGHT]
    loss = measure_kl_sensitivity(linear, params, split.images, ranges, make_bounds(1, low=3, pinned={}))[0, WEIGHT]
    for column in (3, 4, 5):
        assert 0.3 < fisher[column] / loss[column] < 3 and 0.3 < hessian[column] / loss[column] < 3


def test_every_entry_is_evaluated_by_one_program():
    traces = []

    def evaluate(evaluator, policies, least):
        traces.append(policies.shape)
        return Evaluation(jnp.zeros(len(policies)), jnp.log2(policies.astype(jnp.float32)).sum((1, 2)))

    found = probe_entries(Evaluator(evaluate, None, None, None, None), make_bounds(5, low=1, pinned={}))
    assert traces == [(AT_ONCE, 5, 2)]
    np.testing.assert_allclose(found, np.broadcast_to(np.log2(np.arange(1, 9) / 32), (5, 2, 8)), rtol=1e-5)


def test_widths_without_a_level_are_named_and_as_bad_as_the_worst():
    params, split, ranges = make_linear()
    limits = make_bounds(1, low=1, pinned={})
    with pytest.warns(RuntimeWarning, match="not finite count as the worst: head, weights at 1 bits"):
        found = measure_sensitivities(
            linear, params, split, ranges, limits, key=jax.random.key(0), kinds=["loss"], names=["head"]
        )
    assert found["loss"][0, WEIGHT, 0] == found["loss"].max() > 0
    with pytest.warns(RuntimeWarning, match="layer 0, weights at 1 bits$"):
        found = measure_sensitivities(linear, params, split, ranges, limits, key=jax.random.key(0), kinds=["fisher"])
    assert np.isfinite(found["fisher"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_sensitivities(linear, params, split, ranges, make_bounds(1, pinned={}), key=jax.random.key(0))
    with pytest.raises(ValueError, match="unknown sensitivity 'guess': there are loss, fisher, hessian, kl"):
        measure_sensitivities(linear, params, split, ranges, limits, key=jax.random.key(0), kinds=["guess"])


def test_a_guard_without_a_factor_is_as_bad_as_the_worst():
    values = np.arange(16.0).reshape(1, 2, 8)
    values[0, 0, 5] = np.inf
    with pytest.warns(RuntimeWarning, match="layer 0, weights at 6 bits"):
        assert guard(values, make_bounds(1, low=2, pinned={}), factor=0)[0, 0, 5] == 15.0


def test_nothing_to_measure_on_is_an_error():
    params, split, ranges = make_linear()
    none = Split(split.images[:0], split.labels[:0])
    with pytest.raises(ValueError, match="no images"):
        estimate_fisher_sensitivity(linear, params, none, ranges)
    with pytest.raises(ValueError, match="no images"):
        make_divergence_evaluator(linear, params, none.images, ranges)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        estimate_hessian_sensitivity(linear, params, split, ranges, key=jax.random.key(0), draws=0)


def test_rank_correlations_are_those_of_the_formula_without_ties():
    random = np.random.default_rng(0)
    values, policies = random.exponential(size=(3, 2, 8)), random.integers(1, 9, (20, 3, 2))
    losses = random.normal(size=20) + predict(values, policies)
    apart = np.argsort(np.argsort(losses)) - np.argsort(np.argsort(predict(values, policies)))
    expected = 1 - 6 * (apart**2).sum() / (20 * (20**2 - 1))
    assert rank_correlation(values, policies, losses) == pytest.approx(expected) and 0.2 < expected < 0.98
    worst = int(losses.argmax())
    for broken in (np.nan, np.inf):
        assert rank_correlation(values, policies, np.where(np.arange(20) == worst, broken, losses)) == pytest.approx(
            expected
        )
    assert np.isnan(rank_correlation(values, policies, np.ones(20)))
    assert np.isnan(rank_correlation(values, policies[:2], losses[:2]))
    with pytest.raises(ValueError, match=r"losses have shape \(3,\), but there are 20 policies"):
        rank_correlation(values, policies, losses[:3])


@pytest.mark.slow
def test_measured_sensitivities_order_random_policies():
    params, split, ranges = make_two_layers(40)
    limits = make_bounds(2, low=2, pinned={})
    found = measure_sensitivities(two_layers, params, split, ranges, limits, key=jax.random.key(0))
    policies = draw_policies(limits, 40, jax.random.key(1))
    evaluator = make_evaluator(two_layers, params, split, ranges)
    kinds = check_additive(found, evaluator, policies)
    losses = np.asarray(evaluator(jnp.asarray(policies)).loss)
    assert kinds["loss"] == pytest.approx(rank_correlation(found["loss"], policies, losses))
    kinds = check_additive(found, make_divergence_evaluator(two_layers, params, split.images, ranges), policies)
    assert set(kinds) == set(sensitivity.KINDS) and min(kinds.values()) > 0.6 and kinds["kl"] > 0.85, kinds


def test_a_search_starts_from_given_sensitivities_and_probes_nothing():
    problem = make_world(limits={"latency": 0.4})
    (true,) = problem.evaluator.extra.args
    given = np.asarray(true)[..., None] * 4.0 ** (2 - np.arange(1.0, 9.0))
    given[1, 0, 1] = np.nan
    with pytest.warns(RuntimeWarning, match="layer1, weights at 2 bits$"):
        found = search(problem, make_ilp(ILP(parallel=4), given), episodes=12, key=jax.random.key(0))
    assert found.records.feasible.all() and len({policy.tobytes() for policy in found.records.policy}) == 12
    policies, evaluation = every_policy(problem)
    usable = policies[:, 1, 0] > 2
    assert found.records.loss[0] == pytest.approx(float(np.asarray(evaluation.loss)[usable].min()), rel=1e-4)
    value, count = check_additivity(found.records.policy, found.records.loss, problem.bounds, found.state.given)
    assert count == 12 and value > 0.99
    with pytest.raises(ValueError, match=r"shape \(1, 2, 8\), but the problem needs \(4, 2, 8\)"):
        search(problem, make_ilp(ILP(), given[:1]), episodes=1, key=jax.random.key(0))


def test_the_check_of_a_search_leaves_its_probes_out():
    problem = make_world(limits={"latency": 0.4})
    records = search(problem, make_ilp(ILP(parallel=4)), episodes=40, key=jax.random.key(0)).records
    value, count = check_additivity(records.policy, records.loss, problem.bounds)
    changed = (records.policy != 8).reshape(40, -1).sum(axis=1)
    assert count == (changed > 1).sum() and 0.5 < value <= 1
    assert np.isnan(check_additivity(records.policy[:0], records.loss[:0], problem.bounds)[0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gauss_newton_is_the_curvature_of_a_linear_softmax(temperature):
    """Over many draws: `d H d / 2` along the errors, whole for the weights, number by number for the activations."""
    params, split, ranges = make_linear(images=32)
    pixels, weight = split.images.reshape(32, 6), np.asarray(params["w"])
    answers = softmax(pixels @ weight / temperature, axis=-1)
    draws = [
        estimate_gauss_newton_sensitivity(
            linear, params, split, ranges, key=jax.random.key(seed), temperature=temperature
        )
        for seed in range(300)
    ]
    found = np.mean(draws, axis=0)
    assert np.isnan(found[0, 0, 0])
    each = np.vectorize(quantize_value, otypes=[float])
    for bits in (2, 4):
        clip, signed = np.asarray(ranges.clip)[0], np.asarray(ranges.signed)[0]
        by_weight = pixels @ (each(weight, float(clip[WEIGHT, bits - 1]), bits, True) - weight) / temperature
        mean = (answers * by_weight).sum(-1, keepdims=True)
        expected = 0.5 * (answers * (by_weight - mean) ** 2).sum(-1).mean()
        assert found[0, WEIGHT, bits - 1] == pytest.approx(expected, rel=0.15)
        error = each(pixels, float(clip[ACTIVATION, bits - 1]), bits, bool(signed[bits - 1])) - pixels
        spread = np.einsum("bc,ic->bi", answers, weight**2) - (answers @ weight.T) ** 2
        expected = 0.5 * (spread * error**2).sum(-1).mean() / temperature**2
        assert found[0, ACTIVATION, bits - 1] == pytest.approx(expected, rel=0.15)


def test_gauss_newton_needs_images_and_a_temperature():
    params, split, ranges = make_linear()
    for images, temperature, message in ((0, 1.0, "no images"), (7, 0.0, "temperature is 0.0")):
        with pytest.raises(ValueError, match=message):
            some = split.take(np.arange(images))
            options = {"key": jax.random.key(0), "temperature": temperature}
            estimate_gauss_newton_sensitivity(linear, params, some, ranges, **options)
