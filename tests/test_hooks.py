"""Hooks: layers found in programs, their table, and identity hooks that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from haqjax import models
from haqjax.tracing import hooks
from haqjax.tracing.layer_table import layers


def identity(layer, activation, weight, compute):
    return compute(activation, weight)


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), strides=2, name="stem")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name="norm")(x))
        x = linen.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2, name="depthwise")(x)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


class Attention(nnx.Module):
    """A ViT-style block: patches, layer norm, self-attention, an MLP, with and without jit and remat inside."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
        self.position = nnx.Param(draw(1, 4, 8))
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(x.shape[0], -1, 8) + self.position[...]
        x = x + self.attention(self.norm(x))
        return self.head((x + self.down(jax.nn.gelu(self.up(x)))).mean(1))


def linen_net():
    net = LinenNet()
    return net.apply, jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 8, 8, 3))), (2, 8, 8, 3)


def attention_net():
    graph, state = nnx.split(Attention(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x), state, (2, 8, 8, 3)


def plain_net():
    """A weight on the left, a transposed and scaled weight, a jitted helper called twice, remat, a scale."""
    product = jax.jit(lambda x, w: jax.nn.relu(x @ w))

    def apply(params, x):
        x = jnp.einsum("oi,bi->bo", params["left"], x)
        x = product(product(x, params["a"]), 2 * params["b"].T) * params["scale"][None]
        return jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, params["last"])

    shapes = {"left": (6, 4), "a": (6, 6), "b": (7, 6), "scale": (7,), "last": (7, 3)}
    return apply, {name: draw(*shape) for name, shape in shapes.items()}, (5, 4)


def grouped_net():
    """Grouped convolutions in NCHW and in one dimension, and a matrix product with a weight for each group."""

    def apply(params, x):
        kinds = ("NCHW", "OIHW", "NCHW")
        x = jax.lax.conv_general_dilated(
            x, params["grouped"], (2, 1), "SAME", feature_group_count=2, dimension_numbers=kinds
        )
        x = x.reshape(x.shape[0], 8, -1)
        x = jax.lax.conv_general_dilated(x, params["line"], (1,), [(1, 1)], dimension_numbers=("NCH", "OIH", "NCH"))
        return jnp.einsum("bgi,gio->bgo", x.reshape(x.shape[0], 2, -1), params["experts"])

    shapes = {"grouped": (8, 2, 3, 5), "line": (4, 8, 3), "experts": (2, 36, 3)}
    return apply, {name: draw(*shape) for name, shape in shapes.items()}, (3, 4, 6, 6)


def zoo_net(name):
    net = models.build(name, classes=10, image_size=32, width=0.25, key=jax.random.key(0))
    return net.apply, net.params, (2, 32, 32, 3)


NETS = {
    "linen": linen_net,
    "attention": attention_net,
    "plain": plain_net,
    "grouped": grouped_net,
    "mobilenet_v2": lambda: zoo_net("mobilenet_v2"),
    "resnet50": lambda: zoo_net("resnet50"),
}
SMALL = ("linen", "attention", "plain", "grouped")


def random_like(params):
    """Random values, positive so that a variance is one, in place of shapes."""
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [0.1 + abs(draw(*leaf.shape, seed=i)) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet50")) for name in NETS])
def test_identity_hook_changes_no_bit(name):
    apply, params, shape = NETS[name]()
    params, x = random_like(params), draw(*shape)
    hooked = hooks.with_hook(apply, identity)
    np.testing.assert_array_equal(jax.jit(hooked)(params, x), jax.jit(apply)(params, x))


@pytest.mark.parametrize("name", SMALL)
def test_identity_hook_under_eager_vmap_and_grad(name):
    apply, params, shape = NETS[name]()
    params, x = random_like(params), draw(*shape)
    hooked = hooks.with_hook(apply, identity)
    np.testing.assert_array_equal(hooked(params, x), apply(params, x))
    xs = jnp.stack([x, 2 * x])
    mapped = [jax.jit(jax.vmap(f, in_axes=(None, 0)))(params, xs) for f in (hooked, apply)]
    np.testing.assert_array_equal(*mapped)
    gradients = [jax.jit(jax.grad(lambda p, f=f: (f(p, x) ** 2).sum()))(params) for f in (hooked, apply)]
    jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_names_and_geometry_of_each_kind():
    apply, params, shape = grouped_net()
    table = layers(apply, params, jnp.ones(shape))
    assert table.names == ("grouped", "line", "experts")
    np.testing.assert_array_equal(table.kernel, [(3, 5), (1, 3), (1, 1)])
    np.testing.assert_array_equal(table.stride, [(2, 1), (1, 1), (1, 1)])
    np.testing.assert_array_equal(table.in_size, [(6, 6), (1, 18), (1, 1)])
    np.testing.assert_array_equal(table.out_size, [(3, 6), (1, 18), (1, 1)])
    np.testing.assert_array_equal(table.in_channels, [4, 8, 72])
    np.testing.assert_array_equal(table.out_channels, [8, 4, 6])
    np.testing.assert_array_equal(table.groups, [2, 1, 2])
    np.testing.assert_array_equal(table.dense, [False, False, True])
    np.testing.assert_array_equal(table.weights, [np.prod(leaf) for leaf in ((8, 2, 3, 5), (4, 8, 3), (2, 36, 3))])
    np.testing.assert_array_equal(table.macs, [240 * 18, 96 * 18, 216])


def test_attention_products_are_no_layers():
    apply, params, shape = attention_net()
    table = layers(apply, params, jnp.ones(shape))
    heads = ("attention.query", "attention.key", "attention.value", "attention.out")
    assert sorted(table.names) == sorted(("patches", *heads, "up", "down", "head"))
    assert table.names[0] == "patches" and table.names[-3:] == ("up", "down", "head")
    np.testing.assert_array_equal(table.out_size[-3:], [(4, 1), (4, 1), (1, 1)])


def test_linen_names_depthwise_and_learned_parameters():
    apply, params, shape = linen_net()
    table = layers(apply, params, jnp.ones(shape))
    assert table.names == ("stem", "depthwise", "head")
    np.testing.assert_array_equal(table.depthwise, [False, True, False])
    assert table.other_parameters == 8 + (8 + 8) + 8 + 5  # biases, and batch norm's scale and shift without statistics


@pytest.mark.parametrize("name", SMALL)
def test_batch_size_does_not_matter(name):
    apply, params, shape = NETS[name]()
    one, many = (layers(apply, params, jax.ShapeDtypeStruct((n, *shape[1:]), "float32")) for n in (1, 6))
    jax.tree.map(np.testing.assert_array_equal, one, many)


def test_hook_sees_the_weight_as_it_is_used():
    apply, params, shape = plain_net()
    weights = hooks.map_weights(lambda layer, weight: weight, apply, params, jax.ShapeDtypeStruct(shape, "float32"))
    expected = (params["left"], params["a"], 2 * params["b"].T, params["last"])
    for weight, wanted in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(weight, wanted)


def mixed_call(params, x):
    """A jitted helper without a layer that hands back a weight and an activation."""
    weight, activation = jax.jit(lambda w, x: (2 * w, x + 1))(params["w"], x)
    return activation @ weight


def barrier(params, x):
    weight, activation = jax.lax.optimization_barrier((2 * params["w"], x))
    return activation @ weight


@pytest.mark.parametrize("apply", [mixed_call, barrier])
def test_a_weight_is_followed_through_calls_that_mix(apply):
    params, x = {"w": draw(4, 3)}, draw(2, 4)
    assert layers(apply, params, x).names == ("w",)
    (weight,) = hooks.map_weights(lambda layer, weight: weight, apply, params, x)
    np.testing.assert_array_equal(weight, 2 * params["w"])
    np.testing.assert_array_equal(hooks.with_hook(apply, identity)(params, x), apply(params, x))


def test_channel_axes_count_outputs():
    found = {}

    def hook(layer, activation, weight, compute):
        found[layer.name] = layer.channel_axes
        return compute(activation, weight)

    for apply, params, shape in (plain_net(), grouped_net()):
        hooks.with_hook(apply, hook)(params, jnp.ones(shape))
    assert found == {"left": (0,), "a": (1,), "b": (1,), "last": (1,), "grouped": (0,), "line": (0,), "experts": (0, 2)}


def scanned(params, x):
    return jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), x, params["stack"])[0]


def halting(params, x):
    return jax.lax.while_loop(lambda y: (y @ params["stack"][0]).sum() < 0, lambda y: y + 1, x)


def growing(params, x):
    """The weight is another one in every turn."""
    return jax.lax.fori_loop(0, 3, lambda _, pair: (pair[0] @ pair[1] + x, 2 * pair[1]), (x, params["stack"][0]))[0]


@pytest.mark.parametrize(
    "apply, message",
    [
        (halting, r"'stack\[0\]' belongs to a layer in the condition of a `while`"),
        (growing, r"'stack\[0\]' changes from turn to turn"),
        (lambda params, x: scanned(params, x) @ params["stack"][2], r"'stack\[2\]' is read in two forms"),
        (lambda params, x: x @ params["stack"].reshape(4, 12) @ params["stack"].reshape(12, 4), "is read in two forms"),
        (lambda params, x: x * params["stack"][0], "no layer found"),
        (lambda params, x: (x[:, :2] @ params["stack"][0][:2]).reshape(-1, 1, 2)[: len(x)] @ x[None, :2], None),
    ],
)
def test_faults_name_the_parameter(apply, message):
    params, x = {"stack": draw(3, 4, 4)}, draw(4, 4)
    if message is None:
        assert layers(apply, params, x).names == ("stack[0][0:2]",)
    else:
        with pytest.raises(ValueError, match=message):
            layers(apply, params, x)


def test_an_activation_mixed_over_the_batch_is_named():
    def apply(params, x):
        return x.reshape(-1)[:10].reshape(5, 2) @ params["w"]

    with pytest.raises(ValueError, match="'w' does not treat the 3 examples"):
        layers(apply, {"w": draw(2, 2)}, draw(3, 4))
