"""Cross-layer equalisation: the function stays, and neighbouring layers come to like ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.models import build, equalise


@pytest.fixture(scope="module", params=["mobilenet_v1", "mobilenet_v2"])
def world(request):
    """A narrow network whose channels differ, and whose norms are not the identity."""
    network = build(request.param, classes=5, image_size=32, width=0.1, key=jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def vary(path, leaf):
        if path[-1].key not in ("scale", "bias", "mean", "var"):
            return leaf
        drawn = jax.random.normal(next(keys), leaf.shape)
        return jnp.exp(drawn) if path[-1].key == "var" else leaf + 0.3 * drawn

    params = jax.tree_util.tree_map_with_path(vary, network.params)
    images = jax.random.normal(jax.random.key(2), (6, 32, 32, 3))
    return network, params, images, equalise(network, params, [images[:3], images[3:]])


def test_the_function_stays_on_the_images(world):
    network, params, images, found = world
    before, after = (jax.jit(network.apply)(p, images) for p in (params, found))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * float(jnp.abs(before).max()))
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True))


def test_weights_on_the_way_out_and_in_come_to_one_size(world):
    """Equation 11 of the paper, where the cap leaves a channel free."""
    network, params, _, found = world

    def ratio(params):
        first, second = params["blocks"][1]["depthwise"], params["blocks"][1]
        second = second.get("project") or second["pointwise"]
        slope = first["norm"]["scale"] / np.sqrt(first["norm"]["var"] + network.epsilon)
        return np.abs(slope) * np.abs(first["kernel"]).max((0, 1, 2)) / np.abs(second["kernel"]).max((0, 1, 3))

    before, after = np.log(ratio(params)), np.log(ratio(found))
    assert (np.abs(after) < 1e-3).mean() > 0.25 > (np.abs(before) < 1e-3).mean()
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()


def test_another_network_and_no_images_are_refused():
    network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no pairs of layers to equalise are known in 'resnet20'"):
        equalise(network, network.params, [jnp.ones((1, 8, 8, 3))])
    network = build("mobilenet_v1", classes=2, image_size=32, width=0.1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="cannot equalise on no images"):
        equalise(network, network.params, [])
