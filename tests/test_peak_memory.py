import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references_hardware as references
from haqjax.hardware.peak_memory import find_lifetimes
from haqjax.hardware.proxy_costs import bop_table
from haqjax.models import outline
from haqjax.policies.cost import peak_memory
from references_hardware import conv, dense, table


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


def peak(apply, params, x, activation_bits):
    policy = np.stack([np.full(len(activation_bits), 8), activation_bits], axis=-1)
    return float(peak_memory(find_lifetimes(apply, params, x), policy))


def normalise(params, x):
    return (x - params["mean"]) * params["scale"] + params["shift"]


NORM = {name: shape(1, 20) for name in ("mean", "scale", "shift")}


def chain(params, x):
    x = jax.nn.relu(normalise(params["norm"], x @ params["a"]))
    return jax.nn.relu(x @ params["b"]) @ params["c"]


CHAIN = {"a": shape(10, 20), "b": shape(20, 30), "c": shape(30, 5), "norm": NORM}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_chain_holds_what_a_layer_reads_and_writes(batch):
    # a: 10 at 8 bits in, 20 at 6 out; b: 20 at 6 in, 30 at 2 out; c: 30 at 2 in, 5 floats out.
    assert peak(chain, CHAIN, shape(batch, 10), [8, 6, 2]) == batch * max(80 + 120, 120 + 60, 60 + 160) / 8
    assert peak(chain, CHAIN, shape(batch, 10), [8, 6, 1]) == batch * max(80 + 120, 120 + 30, 30 + 160) / 8


def residual(params, x):
    x = jax.nn.relu(x @ params["in"])
    return (x + jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["out"]


def test_a_shortcut_stays_in_memory():
    params = {"in": shape(4, 20), "a": shape(20, 30), "b": shape(30, 20), "out": shape(20, 2)}
    # The shortcut has a's bits, its only direct reader; while b runs, it is in memory beside b's input and output.
    in_bits, a_bits, b_bits, out_bits = bits = [8, 5, 3, 4]
    during = [4 * in_bits + 20 * a_bits, 20 * a_bits + 30 * b_bits, 20 * a_bits + 30 * b_bits + 20 * out_bits]
    assert peak(residual, params, shape(1, 4), bits) == max(during) / 8
    assert max(during) == during[2]


def test_one_tensor_for_two_layers_is_stored_once_at_the_wider_bits():
    params = {"a": shape(40, 3), "b": shape(40, 3)}

    def apply(params, x):
        return x @ params["a"] + x @ params["b"]

    for bits in [(8, 2), (2, 8)]:
        assert peak(apply, params, shape(1, 40), list(bits)) == (40 * 8 + 3 * 32 + 3 * 32) / 8


def test_products_of_activations_count():
    def attention(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return (q @ k.T) @ params["out"]

    params = {"q": shape(2, 4), "k": shape(2, 4), "out": shape(50, 1)}
    # While q k is computed: both 50 x 4 at out's bits, with 50 x 50 scores.
    assert peak(attention, params, shape(50, 2), [8, 8, 4]) == (2 * 200 * 4 + 2500 * 4) / 8


def test_views_and_inner_functions_take_no_memory():
    @jax.jit
    def block(w, x):
        return jax.nn.relu(x.reshape(1, 4, 5).reshape(1, 20).astype(float) @ w)

    def apply(params, x):
        return block(params["b"], block(params["a"], x))

    assert peak(apply, {"a": shape(20, 20), "b": shape(20, 20)}, shape(1, 20), [8, 4]) == (20 * 4 + 20 * 32) / 8


def test_many_policies_at_once():
    lifetimes = find_lifetimes(chain, CHAIN, shape(1, 10))
    policy = np.random.default_rng(0).integers(1, 9, (4, 5, 3, 2))
    together = jax.jit(peak_memory)(lifetimes, policy)
    assert together.shape == (4, 5)
    for index in np.ndindex(4, 5):
        assert together[index] == peak_memory(lifetimes, policy[index])


def test_bit_operations_by_hand():
    layers = table([conv(3, 1, 8, 4, 5, groups=2), dense(16, 3, rows=2)])
    macs, summands = [25 * 4 * 4 * 9, 2 * 16 * 3], [36, 16]
    for w, a in [(1, 1), (3, 7), (8, 8)]:
        for i in range(2):
            assert bop_table(layers)[i, w - 1, a - 1] == macs[i] * w * a
            expected = macs[i] * (w * a + w + a + np.log2(summands[i]))
            assert bop_table(layers, "accumulated")[i, w - 1, a - 1] == pytest.approx(expected, rel=1e-12)


def test_bit_operations_of_resnet50():
    # 4.09 billion multiply-accumulates are published for ResNet-50 v1.5 at 224 px.
    found = bop_table(references.resnet50())
    assert found[:, 7, 7].sum() == pytest.approx(4.09e9 * 64, rel=1e-3)
    assert found[:, 3, 3].sum() == pytest.approx(4.09e9 * 16, rel=1e-3)


def test_an_unknown_convention():
    with pytest.raises(ValueError, match="convention is bits, expected one of products, accumulated"):
        bop_table(table([dense(2, 2)]), "bits")


def test_gradient_of_the_peak():
    lifetimes = find_lifetimes(chain, CHAIN, shape(1, 10))
    gradient = jax.grad(lambda policy: peak_memory(lifetimes, policy))(jnp.array([[8.0, 8.0], [8.0, 6.0], [8.0, 1.0]]))
    np.testing.assert_allclose(gradient, [[0, 10 / 8], [0, 20 / 8], [0, 0]])


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        # The widest depthwise layer: 96 channels at 112 x 112 in, at 56 x 56 out.
        ("mobilenet_v2", 96 * 112**2 + 96 * 56**2),
        # The last layer of a block at 56 x 56: the shortcut of 256 channels, 64 in, 256 out.
        ("resnet50", (256 + 64 + 256) * 56**2),
    ],
)
def test_peaks_of_published_networks(name, elements):
    network = outline(name)
    lifetimes = find_lifetimes(network.apply, network.params, network.example)
    layers = lifetimes.readers.shape[1]
    assert float(peak_memory(lifetimes, np.full((layers, 2), 8))) == elements
    assert float(peak_memory(lifetimes, np.full((layers, 2), 4))) == elements / 2


def test_tensors_of_more_elements_than_64_bits_count_are_counted():
    found = find_lifetimes(lambda params, x: x @ params["w"], {"w": shape(2**10, 2**30)}, shape(2**30, 2**30, 2**10))
    assert sorted(found.elements) == [2.0**70, 2.0**90]


def test_products_in_a_call_are_steps_as_they_are_outside():
    attend = lambda q, k: jax.nn.softmax(q @ k.swapaxes(1, 2)) @ k
    params = {name: jnp.ones((8, 8)) for name in "qko"}

    def network(attend):
        return lambda params, x: attend(x @ params["q"], x @ params["k"]) @ params["o"]

    policy = jnp.full((3, 2), 8)
    found = [
        float(peak_memory(find_lifetimes(network(one), params, jnp.ones((1, 256, 8))), policy))
        for one in (attend, jax.jit(attend))
    ]
    assert found[0] == found[1] > 256 * 256
