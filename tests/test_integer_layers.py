"""A network under a policy is the same numbers whatever computes it: the anchor is a reference in NumPy integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax import calibrate, quantize
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.answers import sum_images
from haqjax.evaluation.evaluator import map_policies
from haqjax.evaluation.prefix_reuse import make_prefix_evaluator
from haqjax.models import build
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.fake_quantize import activation_grids, quantize_weights
from haqjax.quantizers.integer_layers import prepare_layers, with_prepared
from haqjax.quantizers.linear import snap
from haqjax.tracing.hooks import map_weights
from haqjax.tracing.integer_products import FORMS, Arithmetic, safe_arithmetic
from references_integer import put_on_device, run_reference, same_bits

pytestmark = pytest.mark.optimised  # else the compiler makes nothing of its freedom

IMAGES, CLASSES = 7, 5


def attention(params, x):
    """Normalisation, one block of attention, a two-layer perceptron, and a head."""
    x = x.reshape(len(x), 16, -1)
    centred = x - x.mean(-1, keepdims=True)
    x = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * params["scale"][None, None]
    queries, keys, values = (jnp.einsum("bsi,hio->bhso", x, params[name]) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bhso,bhto->bhst", queries, keys) / 2)
    mixed = jnp.einsum("bhst,bhto->bsho", weights, values).reshape(len(x), 16, -1)
    x = x + mixed @ params["out"]
    x = x + jax.nn.gelu(x @ params["wide"]) @ params["narrow"]
    return x.mean(1) @ params["head"]


def attention_params():
    random = np.random.default_rng(3)
    shapes = dict(q=(2, 12, 4), k=(2, 12, 4), v=(2, 12, 4), out=(8, 12), wide=(12, 24), narrow=(24, 12), head=(12, 5))
    draw = {name: jnp.asarray(random.normal(size=shape) / 3, jnp.float32) for name, shape in shapes.items()}
    return draw | {"scale": jnp.asarray(1 + random.random(12), jnp.float32)}


@functools.cache
def world(name):
    """The network, its parameters, images, and ranges on the device; two of three with offsets and biases."""
    size = 8 if name == "attention" else 16
    images = np.random.default_rng(0).normal(size=(IMAGES, size, size, 3)).astype(np.float32)
    if name == "attention":
        apply, params = attention, attention_params()
    else:
        network = build(name, classes=CLASSES, image_size=size, key=jax.random.key(0))
        apply, params = network.apply, network.params
    rounding = "nearest" if name == "mobilenet_v2" else "output"
    return apply, params, images, put_on_device(calibrate(apply, params, [images], "max", rounding=rounding))


def draw_policies(ranges, count):
    return jnp.asarray(np.random.default_rng(1).integers(2, 9, (count, len(ranges.clip), 2)))


def run_in_batches(name, policies, size, arithmetic=None, at_once=1):
    """Logits of every policy, with so many images and policies at a time."""
    apply, params, images, ranges = world(name)
    batches = np.resize(images, (-(-IMAGES // size) * size, *images.shape[1:])).reshape(-1, size, *images.shape[1:])

    @jax.jit
    def run(params, batches, policies, ranges):
        def prepare(policy):
            return prepare_layers(apply, params, batches[0], policy, ranges, arithmetic)

        def one(prepared):
            network = with_prepared(apply, prepared, ranges, arithmetic)
            return jax.lax.map(lambda x: network(params, x), batches)

        return map_policies(prepare, one, policies, at_once)

    return np.asarray(run(params, batches, policies, ranges)).reshape(len(policies), -1, CLASSES)[:, :IMAGES]


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow), "attention"])
def test_the_compiled_network_equals_numpy(name):
    apply, params, images, ranges = world(name)
    policies = draw_policies(ranges, 2)
    found = run_in_batches(name, policies, IMAGES)
    prepare = jax.jit(
        lambda params, policy, ranges: prepare_layers(apply, params, images[:1], policy, ranges).operands()
    )
    for policy, logits in zip(policies, found, strict=True):
        expected = run_reference(apply, params, images[:2], prepare(params, policy, ranges))
        assert same_bits(logits[:2], expected)
    assert len(np.unique(found)) > found.size // 2


@pytest.mark.parametrize("name", [pytest.param("resnet20", marks=pytest.mark.slow), "attention"])
def test_nothing_that_computes_a_network_changes_it(name):
    """Images and policies at a time, and the type of the products."""
    apply, params, images, ranges = world(name)
    policies = draw_policies(ranges, 4)
    found = run_in_batches(name, policies, IMAGES)
    in_forms = {form: choose_arithmetic(apply, params, images, ranges, [form] * len(ranges.clip)) for form in FORMS}
    others = {
        "images one at a time": run_in_batches(name, policies, 1),
        "policies side by side": run_in_batches(name, policies, 2, at_once=4),
        **{form: run_in_batches(name, policies, 2, arithmetic) for form, arithmetic in in_forms.items()},
    }
    assert [other for other, logits in others.items() if not same_bits(logits, found)] == []


def test_evaluations_agree_to_the_last_bit():
    apply, params, images, ranges = world("resnet20")
    split, policies = Split(images, np.arange(IMAGES, dtype=np.int32) % CLASSES), draw_policies(ranges, 3)
    policies = policies.at[1:, :9].set(policies[0, :9])  # begin alike, so that there is something to go on from
    evaluators = [
        make_evaluator(apply, params, split, ranges),
        make_evaluator(apply, params, split, ranges, batch_size=2, policies_at_once=3),
        make_evaluator(apply, params, split, ranges, arithmetic=[Arithmetic("int8")] * len(ranges.clip)),
        make_prefix_evaluator(apply, params, split, ranges, policies[0], [4, 9], batch_size=3),
    ]
    first, *others = [jax.jit(lambda e, p: e(p))(evaluator, policies) for evaluator in evaluators]
    for other in others:
        assert same_bits(other.loss, first.loss) and same_bits(other.accuracy, first.accuracy)


def test_an_evaluator_in_int8_leaves_tensors_as_they_are():
    """At 32 bits there are no codes; the whole call then goes by floats."""
    apply, params, images, ranges = world("attention")
    split, layers = Split(images, np.zeros(IMAGES, np.int32)), len(ranges.clip)
    policies = jnp.stack([jnp.full((layers, 2), 32), jnp.full((layers, 2), 4)])
    found = [
        make_evaluator(apply, params, split, ranges, arithmetic=[Arithmetic(form)] * layers)(policies) for form in FORMS
    ]
    for other in found[1:]:
        assert same_bits(other.loss, found[0].loss)
    losses = -jax.nn.log_softmax(apply(params, images))[:, 0]
    np.testing.assert_allclose(found[0].loss[0], losses.mean(), rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 3])
def test_the_gradient_is_that_of_the_floats(bits):
    """By parameters, images and clips, as if the values of the codes were multiplied."""
    apply, params, x = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"], {}, jnp.linspace(-1, 1, 24)
    x, params = x.reshape(4, 6), {"a": jnp.sin(jnp.arange(30.0)).reshape(6, 5), "b": jnp.cos(jnp.arange(10.0))[:, None]}
    params["b"] = params["b"].reshape(5, 2)
    ranges = put_on_device(calibrate(apply, params, [x], rounding="nearest"))
    policy = jnp.full((2, 2), bits)

    def loss(params, x, ranges):
        return (quantize(apply)(params, x, policy, ranges) ** 2).sum()

    def of_floats(params, x, ranges):
        weights, grids = quantize_weights(apply, params, x, policy, ranges), activation_grids(policy, ranges)
        first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], grids) for at in range(2))
        return ((snap(jnp.tanh(snap(x, first) @ weights[0]), second) @ weights[1]) ** 2).sum()

    differentiate = functools.partial(jax.grad, argnums=(0, 1, 2), allow_int=True)
    found, expected = (differentiate(function)(params, x, ranges) for function in (loss, of_floats))
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if mine.dtype == np.float32:
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[:2]))


def test_long_sums_of_small_weights_need_one_part():
    """The bound is of these weights, not of the largest that there could be; one large weight a channel is no harm."""
    apply, x = lambda params, x: x @ params["w"], jnp.ones((2, 4000))
    small = {"w": jax.random.normal(jax.random.key(0), (4000, 3)).at[0].set(20.0)}
    large = {"w": jnp.ones((4000, 3))}
    (safe,) = map_weights(lambda layer, weight: safe_arithmetic(layer).parts, apply, small, x)
    assert safe == 8
    for params, parts in ((small, 1), (large, safe)):
        ranges = calibrate(apply, params, [x], rounding="nearest")
        assert [layer.parts for layer in choose_arithmetic(apply, params, x, ranges)] == [parts]


@pytest.mark.parametrize("rounding", ["nearest", "output"])
def test_the_bound_holds_at_every_width(rounding):
    """No sum of codes of a layer that is computed in one part leaves what float32 holds."""
    random = np.random.default_rng(0)
    apply, params = lambda params, x: x @ params["w"], {"w": jnp.asarray(random.normal(size=(900, 4)), jnp.float32)}
    x = jnp.asarray(np.abs(random.normal(size=(64, 900))), jnp.float32)
    ranges = put_on_device(calibrate(apply, params, [x], rounding=rounding))
    assert choose_arithmetic(apply, params, x, ranges)[0].parts == 1
    for bits in range(2, 9):
        ((mine,),) = prepare_layers(apply, params, x, jnp.array([[bits, 8]]), ranges).operands()
        codes = np.asarray(mine.weights.integers, np.int64)
        assert 255 * max(np.maximum(codes, 0).sum(0).max(), np.maximum(-codes, 0).sum(0).max()) <= 2**24


def test_images_are_summed_in_one_order():
    values = jnp.asarray(np.random.default_rng(0).normal(size=60) * 10.0 ** (np.arange(60) % 8), jnp.float32)
    padded = jnp.concatenate([values, jnp.zeros(10)])
    totals = {float(sum_images(values.reshape(shape))) for shape in ((60, 1), (1, 60), (6, 10))}
    assert totals | {float(sum_images(padded.reshape(10, 7)))} == totals and len(totals) == 1
    assert float(values.sum()) not in totals or float(values[::-1].sum()) not in totals  # other orders give others
