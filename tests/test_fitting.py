"""Training in a small world: it learns, it is repeatable, and what it leaves alone stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.data import Split, load
from haqjax.evaluation import measure_accuracy
from haqjax.models import MODELS, Network, build, outline
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.training import RECIPES, augment, fit, load_params, save_params

VARY = jax.jit(augment, static_argnames=("shift", "flip"))


@pytest.fixture(scope="module")
def digits():
    return load("digits", image_size=16)


@pytest.fixture(scope="module")
def network():
    return build("resnet20", classes=10, image_size=16, width=0.25, key=jax.random.key(0))


@pytest.fixture(scope="module")
def trained(digits, network):
    seen = []
    params = fit(
        network, digits.train, epochs=4, batch_size=32, learning_rate=0.1, shift=1, key=jax.random.key(1),
        on_epoch=seen.append,
    )  # fmt: skip
    return params, seen


def test_small_network_learns_the_digits(digits, network, trained):
    value, error = measure_accuracy(with_hook(network.apply, use_cpu_kernels), trained[0], digits.search)
    assert value > 0.85
    assert error == pytest.approx((value * (1 - value) / 360) ** 0.5)


def test_progress_is_reported_each_epoch(trained):
    _, seen = trained
    assert [(p.epoch, p.epochs) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].loss < seen[0].loss < 4
    assert 0 < seen[0].accuracy < seen[-1].accuracy <= 1


def test_every_parameter_is_trained_and_the_start_is_left_as_it_was(network, trained):
    fresh = build("resnet20", classes=10, image_size=16, width=0.25, key=jax.random.key(0)).params
    leaves = zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (network.params, fresh, trained[0])), strict=True
    )
    for (path, start), (_, same), (_, end) in leaves:
        assert np.array_equal(start, same), path
        assert not np.array_equal(start, end), path


@pytest.fixture(scope="module")
def linear():
    """A dense layer, with a statistic that follows the input's mean: small enough to train by hand."""

    def apply_train(params, x):
        logits = x.reshape(len(x), -1) @ params["kernel"] + params["bias"][None, :]
        return logits, {**params, "mean": 0.9 * params["mean"] + 0.1 * x.mean()}

    params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2), "mean": jnp.zeros(())}
    network = Network("linear", 2, 2, 1.0, lambda params, x: apply_train(params, x)[0], apply_train, params)
    images = np.random.default_rng(0).normal(size=(6, 2, 2, 1)).astype(np.float32)
    return network, Split(images, np.array([0, 1, 0, 0, 1, 0], np.int32))


def test_steps_are_those_of_nesterov_s_momentum(linear):
    """Full batches, so that order does not matter: two steps written out in NumPy."""
    network, split = linear
    found = fit(
        network, split, epochs=2, batch_size=6, learning_rate=0.5, weight_decay=0.1, shift=0, key=jax.random.key(0)
    )
    x, target = split.images.reshape(6, 4).astype(np.float64), 0.9 * np.eye(2)[split.labels] + 0.05
    kernel, bias, memory, mean = np.zeros((4, 2)), np.zeros(2), [0, 0], 0.0
    for rate in (0.0, 0.5):  # the first step of two warms up from nothing
        logits = x @ kernel + bias
        error = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - target) / 6
        gradient = [x.T @ error + 0.1 * kernel, error.sum(0)]
        memory = [0.9 * m + g for m, g in zip(memory, gradient, strict=True)]
        kernel, bias = (
            value - rate * (g + 0.9 * m) for value, g, m in zip((kernel, bias), gradient, memory, strict=True)
        )
        mean = 0.9 * mean + 0.1 * x.mean()
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-5)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)


def test_key_decides_the_result(linear):
    network, split = linear
    first, again, other = (
        fit(network, split, epochs=2, batch_size=2, learning_rate=0.1, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first["kernel"], again["kernel"])
    assert not np.array_equal(first["kernel"], other["kernel"])


def test_hook_computes_the_layers(linear):
    network, split = linear
    seen = []

    def half(layer, activation, weight, compute):
        seen.append(layer.name)
        return compute(activation, weight / 2)

    plain, lowered, halved = (
        fit(network, split, epochs=2, batch_size=3, learning_rate=0.5, key=jax.random.key(0), hook=hook)["kernel"]
        for hook in (None, use_cpu_kernels, half)
    )
    assert set(seen) == {"kernel"}
    assert not np.allclose(plain, halved)
    np.testing.assert_allclose(plain, lowered, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"epochs": 0}, "epochs must be at least 1, got 0"), ({"batch_size": 7}, "between 1 and the 6 images .* got 7")],
)
def test_fit_checks_its_numbers(linear, wrong, message):
    network, split = linear
    with pytest.raises(ValueError, match=message):
        fit(network, split, **{"epochs": 1, "batch_size": 2, "learning_rate": 0.1, "key": jax.random.key(0)} | wrong)


def test_there_is_a_recipe_for_every_network():
    assert RECIPES.keys() == MODELS.keys()


def test_accuracy_counts_every_image_once_and_non_finite_logits_as_wrong():
    logits = np.array([[2, 1], [1, 2], [np.nan, 0], [0, np.inf], [3, 3]], np.float32)  # the tie goes to class 0
    split = Split(logits.reshape(5, 1, 1, 2), np.array([0, 0, 0, 1, 0], np.int32))
    for batch_size in (1, 2, 5, 8):
        found = measure_accuracy(_read_logits, None, split, batch_size=batch_size)
        assert found == pytest.approx((2 / 5, (0.4 * 0.6 / 5) ** 0.5))


def test_accuracy_is_compiled_once():
    traces = []

    def apply(params, x):
        traces.append(x.shape)
        return _read_logits(params, x)

    split = Split(np.zeros((7, 1, 1, 2), np.float32), np.zeros(7, np.int32))
    for _ in range(2):
        measure_accuracy(apply, None, split, batch_size=3)
    assert traces == [(3, 1, 1, 2)]


def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        measure_accuracy(_read_logits, None, Split(np.zeros((0, 1, 1, 2), np.float32), np.zeros(0, np.int32)))


def test_augmented_images_are_the_images_moved():
    images = np.zeros((400, 7, 9, 3), np.float32)
    images[:, 3, 4] = 1
    moved = np.asarray(VARY(images, shift=2, flip=False, key=jax.random.key(0)))
    assert moved.shape == images.shape
    _, rows, columns, channels = np.nonzero(moved)
    assert len(rows) == 400 * 3  # one pixel each, none lost
    counts = np.histogram2d(rows - 3, columns - 4, bins=[np.arange(-2.5, 3)] * 2)[0] / 3
    assert counts.sum() == 400  # none further than 2
    assert counts.min() > 0  # all 25 moves happen
    assert set(channels) == {0, 1, 2}


def test_what_moves_in_is_zero():
    moved = VARY(np.ones((50, 5, 5, 1), np.float32), shift=2, flip=False, key=jax.random.key(0))
    kept = np.asarray(moved)[..., 0].sum((1, 2))
    assert set(kept.tolist()) <= {rows * columns for rows in (3, 4, 5) for columns in (3, 4, 5)}
    assert len(set(kept.tolist())) > 3


def test_half_of_the_images_are_mirrored():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    found = np.asarray(VARY(np.repeat(image, 200, axis=0), shift=0, flip=True, key=jax.random.key(0)))
    mirrored = (found == image[:, :, ::-1]).all((1, 2, 3))
    assert ((found == image).all((1, 2, 3)) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_saved_parameters_come_back_bit_for_bit(tmp_path, trained):
    save_params(tmp_path / "new" / "weights", trained[0])
    like = outline("resnet20", classes=10, image_size=16, width=0.25).params
    found = load_params(tmp_path / "new" / "weights", like)
    assert jax.tree.structure(found) == jax.tree.structure(trained[0])
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(trained[0])))


def test_saving_again_replaces(tmp_path):
    for value in (1.0, 2.0):
        save_params(tmp_path / "weights", {"kernel": jnp.full(3, value)})
    assert load_params(tmp_path / "weights", {"kernel": jnp.zeros(3)})["kernel"].tolist() == [2, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": {"kernel": jnp.zeros((2, 4))}}, r"another network: 'a.kernel' has shape \(2, 3\), expected \(2, 4\)"),
        ({"a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}, "another network: it lacks 'a.bias'"),
        ({}, "another network: it also has 'a.kernel'"),
    ],
)
def test_parameters_of_another_network_are_refused(tmp_path, like, message):
    save_params(tmp_path / "weights", {"a": {"kernel": jnp.zeros((2, 3))}})
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "weights", like)


def test_unreadable_parameters_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no saved parameters at '.*nothing'"):
        load_params(tmp_path / "nothing", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot read the parameters at '.*folder'") as caught:
        load_params(tmp_path / "folder", {})
    assert "\n" not in str(caught.value)


def _read_logits(params, x):
    return x.reshape(len(x), 2)
