"""Batch norm put back, against the statistics that training itself measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.models import build, restore_batchnorm
from haqjax.tracing.names import is_statistic

BATCHES = (5, 3)  # images: not alike, so that each must count by its size


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2"])
def restored(request):
    """A network with batch norm of arbitrary slope and offset, images, and its parameters with batch norm restored."""
    network = build(request.param, classes=5, image_size=16, width=0.25, epsilon=1e-3, key=jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-2].key != "norm":
            return leaf
        bounds = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-1, 1), "var": (0.5, 1.5)}[path[-1].key]
        return jnp.asarray(random.uniform(*bounds, leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, network.params)
    images = random.standard_normal((sum(BATCHES), 16, 16, 3), np.float32)
    batches = np.split(images, np.cumsum(BATCHES)[:-1])
    return network, params, images, restore_batchnorm(network, params, batches)


def test_the_function_stays_as_it_was(restored):
    network, params, _, found = restored
    others = np.random.default_rng(1).standard_normal((6, 16, 16, 3), np.float32)
    apply = jax.jit(network.apply)
    expected = np.asarray(apply(params, others))
    np.testing.assert_allclose(apply(found, others), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_training_on_the_same_images_finds_the_same_statistics(restored):
    """The form that normalises by the batch computes the same logits and moves no statistic."""
    network, _, images, found = restored
    logits, moved = jax.jit(network.apply_train)(found, images)
    np.testing.assert_allclose(logits, jax.jit(network.apply)(found, images), rtol=1e-3, atol=1e-3)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(moved), strict=True):
        if is_statistic(path):
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4, err_msg=str(path))


def test_only_batch_norm_changes(restored):
    _, params, _, found = restored
    assert jax.tree.structure(found) == jax.tree.structure(params)
    leaves = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(params), strict=True)
    assert all(np.array_equal(new, old) for (path, new), old in leaves if path[-2].key != "norm")


def test_statistics_of_the_stem_are_those_of_a_plain_loop(restored):
    network, params, images, found = restored
    kernel = np.asarray(params["stem"]["kernel"], np.float64)
    stride = 1 if network.name == "resnet20" else 2
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = range(0, 16, stride)
    rows = [np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) for i in places for j in places]
    np.testing.assert_allclose(found["stem"]["norm"]["mean"], np.mean(rows, (0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["stem"]["norm"]["var"], np.var(rows, (0, 1)), rtol=1e-4)


def test_a_channel_without_signal_keeps_its_constant():
    """Its variance is 0, and it computes its bias still."""
    network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    params = network.params | {"stem": jax.tree.map(jnp.zeros_like, network.params["stem"])}
    params["stem"]["norm"]["bias"] = jnp.full(4, 0.7)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    found = restore_batchnorm(network, params, [images])
    assert np.array_equal(found["stem"]["norm"]["bias"], params["stem"]["norm"]["bias"])
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(found, images), apply(params, images), rtol=1e-4)


def test_no_images_are_refused():
    network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    with pytest.raises(ValueError, match="cannot measure batch norm on no images: give at least one batch"):
        restore_batchnorm(network, network.params, [])
