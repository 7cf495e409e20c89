"""Fractional bits against whole ones and finite differences; the descent against closed forms and enumeration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax import calibrate, cost_table, layers, machine, quantize
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.soft_loss import make_soft_loss
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import best_uniform
from haqjax.quantizers.fractional import quantize_fractionally
from haqjax.searchers import make_problem, search
from haqjax.searchers.base import as_evaluator
from haqjax.searchers.front import search_front
from haqjax.searchers.gradient import Gradient, make_gradient
from haqjax.searchers.relaxation import optimise_bits, soft_bits
from haqjax.searchers.svg import SVG, make_svg
from haqjax.types import Budget, Cost, CostTable
from search_world import every_policy, make_world

LAST = ("NHWC", "HWIO", "NHWC")
GRADIENT = make_gradient(Gradient(parallel=4))


def apply(params, x):
    """Unsigned images into a convolution, signed activations into a depthwise one, and a dense layer."""
    kinds = {"dimension_numbers": LAST}
    x = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", **kinds)
    x = jax.lax.conv_general_dilated(x, params["depthwise"], (1, 1), "SAME", feature_group_count=4, **kinds)
    return jax.nn.relu(x).reshape(len(x), -1) @ params["dense"]


@pytest.fixture(scope="module")
def network():
    """Parameters, images [12, 4, 4, 2] and ranges."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "conv": jax.random.normal(keys[0], (3, 3, 2, 4)) / 4,
        "depthwise": jax.random.normal(keys[1], (3, 3, 1, 4)) / 3,
        "dense": jax.random.normal(keys[2], (16, 5)) / 4,
    }
    x = jax.random.uniform(keys[3], (12, 4, 4, 2))
    return params, x, calibrate(apply, params, [x], rounding="output")


qapply, soft_apply = jax.jit(quantize(apply)), jax.jit(quantize_fractionally(apply))


# Fractional bits


@pytest.mark.parametrize("seed", range(4))
def test_whole_bits_are_the_quantised_network(network, seed):
    params, x, ranges = network
    policy = np.random.default_rng(seed).choice([2, 3, 5, 7, 8, 32], (3, 2))
    expected = qapply(params, x, policy, ranges)
    np.testing.assert_allclose(soft_apply(params, x, policy.astype(np.float32), ranges), expected, rtol=1e-5, atol=1e-6)


def test_one_fractional_tensor_mixes_the_outputs_of_both_widths(network):
    """The last layer is linear in either of its operands."""
    params, x, ranges = network
    for column in (0, 1):
        at = lambda width: np.full((3, 2), 6.0) + np.eye(3)[2][:, None] * np.eye(2)[column] * (width - 6)  # noqa: B023
        low, high = (qapply(params, x, at(width).astype(int), ranges) for width in (3, 4))
        found = soft_apply(params, x, jnp.asarray(at(3.3), jnp.float32), ranges)
        np.testing.assert_allclose(found, 0.7 * low + 0.3 * high, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_gradient_of_bits_equals_finite_differences(network, layer):
    """Behind the layer nothing is rounded: there the straight-through gradient would be another one."""
    params, x, ranges = network
    bits = np.full((3, 2), 32.0, np.float32)
    bits[layer], bits[:layer] = (3.4, 4.7), 5.0
    loss = jax.jit(lambda bits: jnp.sum(soft_apply(params, x, bits, ranges)[:, 0] ** 2))
    found = jax.jit(jax.grad(loss))(jnp.asarray(bits))[layer]
    for column in (0, 1):
        step = np.zeros((3, 2), np.float32)
        step[layer, column] = 0.05
        expected = (loss(bits + step) - loss(bits - step)) / 0.1
        np.testing.assert_allclose(found[column], expected, rtol=2e-2, atol=1e-3)


def test_the_gradient_at_a_whole_width_is_what_one_more_bit_changes_and_at_the_widest_what_the_last_one_did(network):
    params, x, ranges = network
    slope = jax.jit(jax.grad(lambda bits: soft_apply(params, x, bits, ranges).sum()))
    bits = np.full((3, 2), 32.0, np.float32)
    for width, other in ((4, 5), (8, 7)):
        bits[2, 0] = width
        total = lambda w: float(qapply(params, x, np.array([[32, 32]] * 2 + [[w, 32]]), ranges).sum())
        there, beyond = total(width), total(other)
        expected = (beyond - there) / (other - width)
        np.testing.assert_allclose(slope(jnp.asarray(bits))[2, 0], expected, rtol=1e-3, atol=1e-4)


def test_fractional_bits_are_data(network):
    params, x, ranges = network
    traces = []
    counted = jax.jit(lambda bits: (traces.append(1), quantize_fractionally(apply)(params, x, bits, ranges))[1])
    for width in (2.0, 4.5, 8.0):
        assert jnp.isfinite(counted(jnp.full((3, 2), width))).all()
    assert len(traces) == 1


def test_the_soft_loss_is_the_cross_entropy_of_one_batch(network):
    params, x, ranges = network
    labels = np.arange(10) % 5
    soft_loss = make_soft_loss(apply, params, Split(np.asarray(x[:10]), labels), ranges, batch_size=4)  # 4, 4 and 2
    measure = jax.jit(lambda soft_loss, bits, index: soft_loss(bits, index))
    policy = np.array([[4, 4], [3, 5], [8, 4]])
    logits = np.asarray(qapply(params, x[:10], policy, ranges), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(10), labels]
    for index in range(6):
        at = slice(4 * (index % 3), 4 * (index % 3) + 4)
        found = measure(soft_loss, jnp.asarray(policy, jnp.float32), index)
        np.testing.assert_allclose(found, losses[at].mean(), rtol=1e-4)


def test_no_images_have_no_loss(network):
    params, x, ranges = network
    with pytest.raises(ValueError, match="no loss of 0 images"):
        make_soft_loss(apply, params, Split(np.asarray(x[:0]), np.arange(0)), ranges)


# The descent


def smooth(sensitivity, bits, index):
    return (sensitivity * 4.0**-bits).sum()


def waterfill(sensitivity, work, limit):
    """Bits that minimise sum s 4^-b under sum m b <= limit within 2..8: bisection of the one multiplier."""
    low, high = 1e-12, 1e12
    for _ in range(200):
        price_of = np.sqrt(low * high)
        bits = np.clip(np.log(np.log(4) * sensitivity / (price_of * work)) / np.log(4), 2, 8)
        low, high = (price_of, high) if (work * bits).sum() > limit else (low, price_of)
    return bits


def test_a_front_in_one_call_equals_the_closed_form():
    random = np.random.default_rng(0)
    sensitivity, work = np.exp(random.normal(size=(6, 2))), np.exp(0.5 * random.normal(size=(6, 2)))
    width = np.arange(1.0, 9.0)
    latency = work[:, 0, None, None] * width[:, None] + work[:, 1, None, None] * width
    table = CostTable(latency, latency, latency, Cost(0.0, 0.0, 0.0))
    limits = work.sum() * np.linspace(3, 7, 16)
    found = optimise_bits(
        jax.tree_util.Partial(smooth, jnp.asarray(sensitivity, jnp.float32)),
        table,
        make_bounds(6, pinned={}),
        Budget(jnp.asarray(limits, jnp.float32), jnp.full(16, jnp.inf), jnp.full(16, jnp.inf)),
        jax.random.key(0),
        400,
    )
    for bits, limit in zip(np.asarray(found), limits, strict=True):
        np.testing.assert_allclose((work * bits).sum(), limit, rtol=0.01)
        np.testing.assert_allclose(bits, waterfill(sensitivity, work, limit), atol=0.25)


@pytest.mark.parametrize("limits", [{"latency": 0.3}, {"latency": 0.5, "size": 0.4}, {"size": 0.5}])
def test_every_limit_is_kept_nearly_before_rounding_and_one_is_used_up(limits):
    problem = make_world(limits=limits)
    budgets = jax.tree.map(lambda limit: limit[None], problem.budget)
    bits = optimise_bits(problem.evaluator.soft_loss, problem.table, problem.bounds, budgets, jax.random.key(0))[0]
    cost = policy_cost(problem.table, bits)
    shares = [float(getattr(cost, name) / getattr(problem.budget, name)) for name in limits]
    assert max(shares) == pytest.approx(1, abs=0.03)


def test_soft_bits_pass_through_the_allowed_widths_and_ties_follow():
    there = np.isin(np.arange(1, 9), (2, 4, 8)) * np.ones((3, 2, 1), bool)
    kinds = make_bounds(3, pinned={1: 4}, allowed=there, tied=[(0, 2)])
    rank = jnp.asarray([[0.0, 1.5], [0.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(soft_bits(rank, kinds), [[2, 6], [4, 4], [2, 6]])
    np.testing.assert_allclose(soft_bits(rank.at[0].set(jnp.array([2.0, 0.25])), kinds)[0], [8, 2.5])


# The searcher


@pytest.mark.parametrize("limit", [0.45, 0.6])
def test_a_search_by_gradients_comes_near_the_best_of_all_policies(limit):
    problem = make_world(pinned={0: 8, -1: 3}, limits={"latency": limit})
    policies, judged = every_policy(problem)
    found = search(problem, GRADIENT, episodes=24, key=jax.random.key(0))
    losses = np.sort(judged.loss)
    assert len(losses) > 500
    assert found.loss <= losses[2]


def test_it_beats_random_search_and_the_best_uniform_policy():
    problem = make_world(limits={"latency": 0.3})
    uniform = best_uniform(problem.table, problem.bounds, problem.budget).policy
    uniform = problem.evaluator(uniform[None]).loss[0]
    for seed in range(3):
        found, by_chance = (
            search(problem, s, parallel=4, episodes=16, key=jax.random.key(seed)).loss for s in (GRADIENT, "random")
        )
        assert found < min(by_chance, uniform)


def test_no_policy_is_evaluated_twice_and_the_first_is_the_plain_rounding():
    one, other = (search(make_world(), GRADIENT, episodes=32, key=jax.random.key(k)).records.policy for k in (0, 1))
    assert len(np.unique(one, axis=0)) == 32
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one, other)


def test_allowed_widths_and_ties_hold_where_other_widths_have_no_cost():
    there = np.isin(np.arange(1, 9), (2, 4, 8)) * np.ones((4, 2, 1), bool)
    problem = make_world(allowed=there, tied=[(0, 2)], limits={"latency": 0.4})
    latency = np.where(there[:, 0, :, None] & there[:, 1, None], problem.table.latency, np.nan)
    problem = dataclasses.replace(problem, table=dataclasses.replace(problem.table, latency=latency))
    found = search(problem, GRADIENT, episodes=16, key=jax.random.key(0))
    policies, judged = every_policy(problem)
    assert np.isin(found.records.policy, (2, 4, 8)).all() and found.records.feasible.all()
    np.testing.assert_array_equal(found.records.policy[:, 0], found.records.policy[:, 2])
    assert found.loss <= np.sort(judged.loss)[4]


def test_a_resumed_search_ends_as_if_it_had_never_stopped():
    problem = make_world()
    whole, half = (search(problem, GRADIENT, episodes=n, key=jax.random.key(0)) for n in (24, 12))
    rest = search(problem, GRADIENT, episodes=24, key=jax.random.key(0), resume=half)
    jax.tree.map(np.testing.assert_array_equal, whole.records, rest.records)


def test_no_budget_seed_or_machine_compiles_again():
    traces = []

    def counted(sensitivity, bits, index):
        traces.append(1)
        return smooth(sensitivity, bits, index)

    for seed, limit in enumerate((0.3, 0.5, 0.7)):
        problem = make_world(seed=seed, limits={"latency": limit})
        soft_loss = jax.tree_util.Partial(counted, *problem.evaluator.soft_loss.args)
        evaluator = dataclasses.replace(problem.evaluator, soft_loss=soft_loss)
        search(dataclasses.replace(problem, evaluator=evaluator), GRADIENT, episodes=4, key=jax.random.key(seed))
        before = len(traces) if not seed else before
    assert len(traces) == before


@pytest.mark.parametrize("searcher", [GRADIENT, make_svg(SVG(parallel=4))], ids=["gradient", "svg"])
def test_a_problem_without_a_soft_loss_is_refused_in_one_line(searcher):
    problem = make_world()
    problem = dataclasses.replace(problem, evaluator=dataclasses.replace(problem.evaluator, soft_loss=None))
    with pytest.raises(ValueError, match=r"needs a differentiable loss: give the evaluator a soft_loss=") as told:
        search(problem, searcher, episodes=4, key=jax.random.key(0))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("numbers", [{"parallel": 0}, {"steps": 0}, {"roundings": 0}])
def test_numbers_that_no_search_can_run_with_are_refused(numbers):
    with pytest.raises(ValueError, match="must be positive"):
        Gradient(**numbers)


# A network


def perceptron(params, x):
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["first"])
    return jax.nn.relu(x @ params["second"]) @ params["third"]


@pytest.fixture(scope="module")
def digits_problem():
    """A perceptron on scikit-learn's digits: 95 % as it is."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train, test = Split(images[:1200], labels[:1200]), Split(images[1200:], labels[1200:])
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"first": (64, 48), "second": (48, 32), "third": (32, 10)}
    params = {name: jax.random.normal(k, s) / s[0] ** 0.5 for k, (name, s) in zip(keys, sizes.items(), strict=True)}

    @jax.jit
    def step(params):
        def loss(params):
            chosen = jax.nn.log_softmax(perceptron(params, train.images))
            return -jnp.take_along_axis(chosen, jnp.asarray(train.labels)[:, None], axis=1).mean()

        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))

    for _ in range(300):
        params = step(params)
    ranges = calibrate(perceptron, params, [train.images[:256]])
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    table_of = layers(perceptron, params, shape)
    table = cost_table(machine("edge"), table_of)
    reference = float((perceptron(params, test.images).argmax(-1) == test.labels).mean())
    soft_loss = make_soft_loss(perceptron, params, train, ranges, batch_size=128)
    evaluator = dataclasses.replace(make_evaluator(perceptron, params, test, ranges), soft_loss=soft_loss)
    limits, limit = make_bounds(table_of, pinned={}), budget(table, latency=0.9)
    return make_problem(table_of, table, limits, limit, evaluator, reference)


@pytest.mark.slow
def test_a_front_of_16_budgets_on_a_trained_network(digits_problem):
    problem = digits_problem
    least = float(
        policy_cost(problem.table, problem.bounds.low).size / policy_cost(problem.table, problem.bounds.high).size
    )
    budgets = [budget(problem.table, size=share) for share in np.linspace(least * 1.1, 0.9, 16)]
    assert problem.reference > 0.9
    front = search_front(problem, "gradient", budgets, episodes=4, key=jax.random.key(0), parallel=4)
    assert len(front.records.accuracy) == 64 and None not in front.chosen
    uniform = jnp.stack([best_uniform(problem.table, problem.bounds, one).policy for one in budgets])
    beaten = jax.jit(lambda problem, policies: problem.evaluator(policies))(problem, uniform).accuracy
    for at, one in zip(front.chosen, budgets, strict=True):
        assert fits(jax.tree.map(lambda x: x[at], front.records.cost), one)  # noqa: B023
    accuracies = front.records.accuracy[list(front.chosen)]
    assert (accuracies >= beaten - 0.01).all()
    assert (np.diff(accuracies) >= 0).all()  # what fits less fits more
    assert accuracies[-1] > problem.reference - 0.01


def test_a_search_goes_by_accuracy_where_no_loss_is_measured(digits_problem):
    measured = digits_problem.evaluator
    blind = as_evaluator(jax.tree_util.Partial(lambda evaluator, policies: evaluator(policies).accuracy, measured))
    problem = dataclasses.replace(digits_problem, evaluator=dataclasses.replace(blind, soft_loss=measured.soft_loss))
    found = search(problem, "gradient", parallel=4, episodes=4, key=jax.random.key(0))
    np.testing.assert_allclose(found.records.reward, found.records.accuracy - digits_problem.reference, atol=1e-6)
