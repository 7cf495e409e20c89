"""K-means weights against every clustering there is, scikit-learn and sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from haqjax.quantizers import quantize
from haqjax.quantizers.codebook import codebook_weights, make_codebook
from haqjax.quantizers.kmeans import shared_values, sort_values
from haqjax.types import Codebook, Ranges
from references_kmeans import least_squared_errors, squared_error, sum_over_members

WIDTHS = range(1, 9)
RANDOM = np.random.default_rng(0)
# One column each: what the weights of a layer may look like.
COLUMNS = {
    "normal": RANDOM.normal(size=60),
    "heavy tails": RANDOM.standard_t(1.5, 60),
    "two humps": np.concatenate([RANDOM.normal(-9, 1, 20), RANDOM.normal(4, 0.1, 40)]),
    "even": RANDOM.random(60),
    "ties": RANDOM.normal(size=60).round(1),
    "far from zero": 1000 + RANDOM.normal(size=60),
    "one outlier": np.append(RANDOM.normal(size=59), 1e4),
    "sparse": RANDOM.normal(size=60) * (RANDOM.random(60) > 0.7),
    "lattice": RANDOM.binomial(60, 0.5, 60) / 7,
    "few values": RANDOM.choice([-1e-8, 0.0, 3e-8, 0.5, 77.0], 60),
    "neighbours": RANDOM.choice([0.0, 1e-30, 1.0, np.nextafter(np.float32(1), 2), -5.0], 60),
    "constant": np.full(60, -0.3),
}


def apply(params, x):
    """A layer for each weight of a dictionary."""
    return [x @ weight for weight in params.values()]


def codebook_of(params):
    size = len(next(iter(params.values())))
    return make_codebook(apply, params, jax.ShapeDtypeStruct((1, size), "float32"))


PARAMS = {name: jnp.asarray(COLUMNS[name], jnp.float32).reshape(60, 1) for name in sorted(COLUMNS)}


@pytest.fixture(scope="module")
def codebook():
    return codebook_of(PARAMS)


@pytest.mark.parametrize("layer, name", [*enumerate(PARAMS)])
def test_no_clustering_is_better(codebook, layer, name):
    least = least_squared_errors(PARAMS[name], 64)
    for bits in range(1, 7):
        found = squared_error(PARAMS[name], codebook.codebooks[layer, bits - 1], codebook.assignments[layer][bits - 1])
        # What the rounding of shared values to 32 bits may add.
        rounding = 60 * (np.abs(PARAMS[name]).max() * 2**-24) ** 2
        assert found <= least[2**bits - 1] * (1 + 1e-6) + rounding, f"{bits} bits"


@pytest.mark.parametrize("layer, name", [*enumerate(PARAMS)])
def test_codebooks_rise_and_assignments_name_the_nearest(codebook, layer, name):
    values = np.asarray(PARAMS[name], np.float64)
    for bits in WIDTHS:
        book = np.asarray(codebook.codebooks[layer, bits - 1], np.float64)
        assignments = np.asarray(codebook.assignments[layer][bits - 1])
        assert assignments.dtype == np.uint8 and assignments.shape == values.shape and assignments.max() < 2**bits
        assert (np.diff(book) >= 0).all() and (book[2**bits :] == book[2**bits - 1]).all()
        nearest = np.abs(values - book[:, None, None]).min(0)
        np.testing.assert_array_equal(np.abs(values - book[assignments]), nearest)


def test_few_distinct_values_are_kept_to_the_last_bit(codebook):
    weights, at_policy = tuple(PARAMS.values()), jax.jit(codebook_weights)
    for bits in WIDTHS:
        found = at_policy(codebook, jnp.full((len(weights), 2), bits), weights)
        for weight, kept in zip(weights, found, strict=True):
            if len(np.unique(weight)) <= 2**bits:
                np.testing.assert_array_equal(kept, weight)


@pytest.fixture(scope="module")
def large():
    """Two layers of many weights, and their codebook."""
    random = np.random.default_rng(1)
    params = {"even": random.random((250, 3)), "tails": random.standard_t(3, (250, 8))}
    params = {name: jnp.asarray(weight, jnp.float32) for name, weight in params.items()}
    return params, codebook_of(params)


@pytest.mark.parametrize("bits", WIDTHS)
def test_no_worse_than_the_best_of_ten_starts_of_scikit_learn(large, bits):
    params, codebook = large
    for layer, weight in enumerate(params.values()):
        values = np.asarray(weight, np.float64).reshape(-1, 1)
        with threadpool_limits(1):  # threads only wait for each other on problems this small
            other = KMeans(2**bits, n_init=10, random_state=0).fit(values).inertia_
        found = squared_error(weight, codebook.codebooks[layer, bits - 1], codebook.assignments[layer][bits - 1])
        assert found <= other * (1 + 1e-6)


def test_shared_values_are_the_means_of_their_members(large):
    params, codebook = large
    for layer, weight in enumerate(params.values()):
        for bits in WIDTHS:
            assignments = np.asarray(codebook.assignments[layer][bits - 1])
            means = [np.asarray(weight, np.float64)[assignments == code].mean() for code in range(2**bits)]
            np.testing.assert_allclose(codebook.codebooks[layer, bits - 1, : 2**bits], means, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_weights_does_not_matter(large):
    params, codebook = large
    order = np.random.default_rng(2).permutation(2000).reshape(250, 8)
    shuffled = {**params, "tails": params["tails"].reshape(-1)[order]}
    again = codebook_of(shuffled)
    np.testing.assert_array_equal(again.codebooks, codebook.codebooks)
    flat = np.asarray(codebook.assignments[1]).reshape(8, -1)
    np.testing.assert_array_equal(again.assignments[1], flat[:, order])


def test_layers_side_by_side_are_solved_as_one_by_one(large):
    """As an accelerator does it."""
    params, codebook = large
    with jax.enable_x64(True):
        shared = jax.jit(lambda weights: shared_values(sort_values(weights), 2))(tuple(params.values()))
    for bits in WIDTHS:
        np.testing.assert_array_equal(shared[bits - 1, :, : 2**bits], codebook.codebooks[:, bits - 1, : 2**bits])


def test_policies_are_data(large):
    params, codebook = large
    weights, traces = tuple(params.values()), []
    f = jax.jit(lambda codebook, policy: (traces.append(0), codebook_weights(codebook, policy, weights))[1])
    policies = jnp.array([[[1, 8], [8, 2]], [[32, 8], [4, 4]]])
    for policy in policies:
        for layer, found in enumerate(f(codebook, policy)):
            bits = int(policy[layer, 0])
            book, assignments = (np.asarray(a) for a in (codebook.codebooks[layer], codebook.assignments[layer]))
            expected = weights[layer] if bits == 32 else book[bits - 1][assignments[bits - 1]]
            np.testing.assert_array_equal(found, expected)
    assert len(traces) == 1
    mapped = jax.jit(jax.vmap(codebook_weights, (None, 0, None)))(codebook, policies, weights)
    np.testing.assert_array_equal(mapped[1][0], f(codebook, policies[0])[1])


def test_the_gradient_of_a_shared_value_is_the_sum_over_its_members(large):
    params, codebook = large
    weights, policy = tuple(params.values()), jnp.array([[2, 8], [32, 8]])

    def loss(books, weights):
        return sum(jnp.sin(3 * w).sum() for w in codebook_weights(codebook._replace(codebooks=books), policy, weights))

    by_book, by_weight = jax.jit(jax.grad(loss, (0, 1)))(codebook.codebooks, weights)
    assignments = np.asarray(codebook.assignments[0][1])
    upstream = 3 * np.cos(3 * np.asarray(codebook.codebooks, np.float64)[0, 1][assignments])
    np.testing.assert_allclose(by_book[0, 1, :4], sum_over_members(upstream, assignments, 4), rtol=1e-4)
    assert np.count_nonzero(by_book) == 4  # the width in use alone; the layer of 32 bits has no codebook
    assert (by_weight[0] == 0).all()
    np.testing.assert_allclose(by_weight[1], 3 * np.cos(3 * np.asarray(weights[1])), rtol=1e-4, atol=1e-5)


def test_gradient_equals_finite_differences():
    books = jnp.linspace(-1.0, 1.0, 2 * 8 * 256).reshape(2, 8, 256)
    assignments = tuple(jnp.asarray(RANDOM.integers(0, 4, (8, 7)), jnp.uint8) for _ in range(2))
    policy, weights = jnp.array([[2, 8], [7, 8]]), (jnp.ones(7),) * 2
    loss = jax.jit(
        lambda books: sum((w**2).sum() for w in codebook_weights(Codebook(assignments, books), policy, weights))
    )
    gradient = jax.grad(loss)(books)
    for at in ((0, 1, 0), (0, 1, 3), (1, 6, 2), (1, 5, 2)):
        up, down = (loss(books.at[at].add(step)) for step in (1e-2, -1e-2))
        assert float(gradient[at]) == pytest.approx(float(up - down) / 2e-2, rel=1e-2, abs=1e-3)


def test_a_training_step_moves_codebooks_and_leaves_assignments(large):
    """Least squares against other weights: one step takes every shared value to the mean of its members."""
    params, codebook = large
    target, weights, policy = params["even"][::-1], tuple(params.values()), jnp.array([[3, 8], [3, 8]])
    assignments = codebook.assignments[0][2]
    counts = jnp.maximum(jnp.bincount(assignments.reshape(-1), length=256), 1)

    def loss(books):
        return ((codebook_weights(codebook._replace(codebooks=books), policy, weights)[0] - target) ** 2).sum() / 2

    newton = codebook.codebooks - jax.jit(jax.grad(loss))(codebook.codebooks) / counts[None, None]
    means = [np.asarray(target)[np.asarray(assignments) == code].mean() for code in range(8)]
    np.testing.assert_allclose(newton[0, 2, :8], means, rtol=1e-4, atol=1e-5)


def test_a_network_runs_with_the_weights_of_its_codebook(large):
    """One bit is a width like any other here; the ranges' clips of weights do not matter."""
    params, codebook = large
    x = np.random.default_rng(3).normal(size=(4, 250)).astype(np.float32)
    ranges = Ranges(np.full((2, 2, 8), np.nan), np.ones((2, 8), bool), codebook=codebook)
    found = jax.jit(quantize(apply))(params, x, jnp.array([[1, 32], [5, 32]]), ranges)
    for layer, column in enumerate((0, 4)):
        book, assignments = (
            np.asarray(a) for a in (codebook.codebooks[layer, column], codebook.assignments[layer][column])
        )
        np.testing.assert_allclose(found[layer], x @ book[assignments], rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"weight of layer 'b' is not finite \(1 such layers\): check the weights"):
        codebook_of({"a": jnp.ones((2, 1)), "b": jnp.array([[jnp.inf], [0.0]])})


def test_a_codebook_of_another_network_is_refused(codebook):
    with pytest.raises(ValueError, match="the codebook is of weights .* make one for it"):
        codebook_weights(codebook, jnp.full((2, 2), 8), (jnp.ones((60, 1)),) * 2)


def test_a_policy_for_another_network_is_refused(large):
    params, codebook = large
    with pytest.raises(ValueError, match=r"policy has shape \(3, 2\), but the codebook's layers need \(2, 2\)"):
        codebook_weights(codebook, jnp.full((3, 2), 8), tuple(params.values()))


def prune(share, seed=0, mean=0.0):
    weight = np.random.default_rng(seed).normal(mean, 1, (32, 24)).astype(np.float32)
    return np.where(np.abs(weight) < np.quantile(np.abs(weight), share), 0, weight).astype(np.float32)


@pytest.mark.parametrize(("share", "mean"), [(0.001, 0.0), (0.3, 0.0), (0.5, 2.0), (0.9, 0.0)])
def test_pruned_zeros_stay_zeros_at_every_width(share, mean):
    weight = prune(share, mean=mean)
    codebook = make_codebook(lambda params, x: x @ params["w"], {"w": jnp.asarray(weight)}, jnp.ones((1, 32)))
    free = make_codebook(
        lambda params, x: x @ params["w"],
        {"w": jnp.asarray(weight[weight != 0])[:, None]},
        jnp.ones((1, (weight != 0).sum())),
    )
    for bits in range(1, 9):
        book = np.asarray(codebook.codebooks[0, bits - 1])
        found = book[np.asarray(codebook.assignments[0][bits - 1])]
        assert (found[weight == 0] == 0).all() and (np.diff(book) >= 0).all()
        assert (
            np.abs(found - weight) <= np.abs(book[:, None] - weight.reshape(-1)).min(0).reshape(weight.shape) + 1e-6
        ).all()
        others = free.codebooks[0, bits - 1][np.asarray(free.assignments[0][bits - 1])][:, 0]
        of_all, of_others = ((found - weight) ** 2).sum(), ((others - weight[weight != 0]) ** 2).sum()
        if bits > 3:  # one value of many is taken by zeros
            assert of_all <= 1.3 * of_others


def test_training_a_codebook_leaves_zero_where_it_is():
    from haqjax.quantizers.trainable import begin, quantize_learned
    from haqjax.types import Ranges

    apply = lambda params, x: x @ params["w"]
    params, x, policy = {"w": jnp.asarray(prune(0.5))}, jnp.ones((1, 32)), jnp.array([[3, 8]])
    ranges = Ranges(np.ones((1, 2, 8), np.float32), np.zeros((1, 8), bool), codebook=make_codebook(apply, params, x))
    start = begin(params, policy, ranges)
    loss = lambda learned: (quantize_learned(apply)(learned, x, policy, ranges) ** 2).sum()
    gradient = jax.grad(loss)(start).codebooks
    zero = np.asarray(start.codebooks[0, :8]) == 0
    assert zero.sum() == 1 and float(gradient[0, :8][zero][0]) == 0 and (np.asarray(gradient[0, :8])[~zero] != 0).all()
