"""Gradients of every quantiser against finite differences of its own straight-through definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax import calibrate
from haqjax.quantizers import quantize
from haqjax.quantizers.linear import fake_quantize
from haqjax.quantizers.rounding_offsets import to_nearest
from haqjax.quantizers.trainable import begin, end, look_up, nearest, quantize_learned, scale_gradient, sort_codebook
from haqjax.tracing.conv_gradients import LAST, use_training_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.training.distillation import cross_entropy, distillation_loss
from haqjax.types import ACTIVATION, WEIGHT, Codebook, Ranges

STEP = 1e-6


def slope(f, x):
    """Central differences of a function of float64 arrays, an entry at a time."""
    found = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][at] += STEP
        moved[1][at] -= STEP
        found[at] = (f(moved[0]) - f(moved[1])) / (2 * STEP)
    return found


def held_rounding(x, clip, bits, signed):
    """The straight-through definition: clipping, and a rounding error that is held, in steps."""
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    limit = lambda x, clip: np.clip(x, -clip if signed else 0, clip)
    value = limit(x, clip) * levels / clip
    error = np.round(value) - value
    return {
        "lsq": lambda x, clip: limit(x, clip) + error * clip / levels,
        "pact": lambda x, clip_now: limit(x, clip_now) + error * clip / levels,
    }


@pytest.mark.parametrize("gradient", ["lsq", "pact"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_linear_quantiser(gradient, signed, bits):
    random = np.random.default_rng(bits)
    x, g, clip = random.normal(size=60), random.normal(size=60), np.array(0.83)
    held = held_rounding(x, clip, bits, signed)[gradient]
    loss = lambda x, clip: (fake_quantize(x, clip, bits, signed, gradient) * g).sum()
    by_x, by_clip = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(x, jnp.float32), jnp.float32(clip))
    np.testing.assert_allclose(by_x, slope(lambda x: (held(x, clip) * g).sum(), x), atol=1e-4)
    np.testing.assert_allclose(by_clip, slope(lambda clip: (held(x, clip) * g).sum(), clip), rtol=1e-3, atol=1e-4)


def test_one_clip_a_channel():
    random = np.random.default_rng(0)
    x, g, clip = random.normal(size=(20, 3)), random.normal(size=(20, 3)), np.array([[0.5, 1.0, 2.0]])
    held = held_rounding(x, clip, 3, True)["lsq"]
    loss = lambda clip: (fake_quantize(jnp.asarray(x, jnp.float32), clip, 3, True, "lsq") * g).sum()
    expected = slope(lambda clip: (held(x, clip) * g).sum(), clip)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(clip, jnp.float32)), expected, rtol=1e-3)


def test_codebook():
    """The definition: which value a weight takes is held, and the weight adds what it moves by."""
    random = np.random.default_rng(0)
    weight, g, book = random.normal(size=50), random.normal(size=50), np.sort(random.normal(size=4))
    padded = lambda book: jnp.concatenate([book, jnp.repeat(book[-1:], 252)])
    assignments = np.abs(weight[:, None] - book).argmin(1)
    found = jax.grad(lambda w, book: (look_up(w, padded(book)) * g).sum(), (0, 1))(
        jnp.asarray(weight, jnp.float32), jnp.asarray(book, jnp.float32)
    )
    np.testing.assert_allclose(
        look_up(jnp.asarray(weight, jnp.float32), padded(jnp.asarray(book))), book[assignments], 1e-6
    )
    np.testing.assert_allclose(
        found[0], slope(lambda w: ((book[assignments] + w - weight) * g).sum(), weight), atol=1e-4
    )
    np.testing.assert_allclose(found[1], slope(lambda book: (book[assignments] * g).sum(), book), rtol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_a_weight_takes_the_nearest_value_in_use(bits):
    random = np.random.default_rng(bits)
    weight, book = random.normal(size=300).astype(np.float32), random.normal(size=256).astype(np.float32)
    settled = np.asarray(sort_codebook(jnp.asarray(book), bits))
    used = np.sort(book[: 2**bits])
    np.testing.assert_array_equal(settled, [*used, *[used[-1]] * (256 - 2**bits)])
    np.testing.assert_array_equal(nearest(weight, settled), np.abs(weight[:, None] - used).argmin(1))


def small_network():
    """A convolution and a dense layer: its function, parameters, images and a policy."""
    first, second, images = jax.random.split(jax.random.key(0), 3)

    def apply(params, x):
        y = jax.lax.conv_general_dilated(x, params["first"], (2, 2), "SAME", dimension_numbers=LAST)
        return jax.nn.relu(y).reshape(len(x), -1) @ params["second"]

    params = {"first": jax.random.normal(first, (3, 3, 2, 4)), "second": jax.random.normal(second, (36, 3))}
    return apply, params, jax.random.normal(images, (5, 6, 6, 2)), jnp.array([[3, 8], [2, 4]])


def bank_of(apply, params):
    """Values evenly spaced over each tensor, at every width."""
    weights = [params["first"], params["second"]]
    books = np.stack(
        [
            [np.pad(np.linspace(w.min(), w.max(), 2**n), (0, 256 - 2**n), "edge") for n in range(1, 9)]
            for w in map(np.asarray, weights)
        ]
    ).astype(np.float32)
    assignments = [np.stack([nearest(w, book) for book in rows]) for w, rows in zip(weights, books, strict=True)]
    return Codebook(tuple(assignments), books)


@pytest.mark.parametrize("banked", [False, True])
def test_forward_pass_is_that_of_the_evaluation(banked):
    apply, params, x, policy = small_network()
    ranges = calibrate(apply, params, [x])
    if banked:
        ranges = dataclasses.replace(ranges, codebook=bank_of(apply, params))
    learned = begin(params, policy, ranges)
    for gradient in ("lsq", "pact"):
        found = jax.jit(quantize_learned(apply, gradient=gradient))(learned, x, policy, ranges)
        evaluated = jax.jit(quantize(apply))(params, x, policy, to_nearest(ranges))
        np.testing.assert_allclose(found, evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("banked", [False, True])
def test_what_was_learned_is_what_is_evaluated(banked):
    apply, params, x, policy = small_network()
    ranges = calibrate(apply, params, [x])
    if banked:
        ranges = dataclasses.replace(ranges, codebook=bank_of(apply, params))
    learned = begin(params, policy, ranges)
    moved = jax.tree.map(lambda leaf: 1.2 * leaf, learned._replace(params=None))._replace(
        params=jax.tree.map(lambda leaf: leaf + 0.1, params)
    )
    after = end(apply, moved, x, policy, ranges)
    found = jax.jit(quantize_learned(apply))(moved, x, policy, ranges)
    np.testing.assert_allclose(jax.jit(quantize(apply))(moved.params, x, policy, after), found, rtol=1e-5, atol=1e-5)
    changed = after.clip != ranges.clip
    assert np.argwhere(changed).tolist() == [[0, 0, 2], [0, 1, 7], [1, 0, 1], [1, 1, 3]]


def test_clips_learn_by_the_scaled_gradient_of_their_step():
    """The gradient of the activation's step over `sqrt(elements levels)`, written out for a dense layer."""
    apply = lambda params, x: x @ params["w"]
    random = np.random.default_rng(0)
    x, w = np.abs(random.normal(size=(7, 5))), random.normal(size=(5, 1))
    policy, clip, levels = jnp.array([[32, 2]]), 1.1, 3
    ranges = Ranges(np.full((1, 2, 8), clip, np.float32), np.zeros((1, 8), bool))
    learned = begin({"w": jnp.asarray(w, jnp.float32)}, policy, ranges)
    loss = lambda learned: quantize_learned(apply)(learned, jnp.asarray(x, jnp.float32), policy, ranges).sum()
    found = jax.jit(jax.grad(loss))(learned).clip[0, ACTIVATION]
    held = held_rounding(x, np.array(clip), 2, False)["lsq"]
    by_step = slope(lambda step: (held(x, step * levels) @ w).sum(), np.array(clip / levels))
    # The step moves by its own gradient over sqrt(elements levels) where the clip moves by so many times as much.
    np.testing.assert_allclose(found, levels * by_step / np.sqrt(5 * levels), rtol=1e-3)


def test_pact_learns_the_clips_of_activations_alone():
    apply, params, x, policy = small_network()
    ranges = calibrate(apply, params, [x])
    loss = lambda learned: quantize_learned(apply, gradient="pact")(learned, x, policy, ranges).sum()
    by_clip = jax.jit(jax.grad(loss))(begin(params, policy, ranges)).clip
    assert (by_clip[:, WEIGHT] == 0).all()
    assert (by_clip[:, ACTIVATION] != 0).any()


def test_scaling_a_gradient_leaves_the_value():
    x = jnp.array([0.1, 0.7])
    value, slope = jax.value_and_grad(lambda x: scale_gradient(x, jnp.array([3.0, 0.1])).sum())(x)
    assert value == x.sum()
    np.testing.assert_allclose(slope, [3, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((8, 7), (3, 3), (2, 2), ((0, 1), (1, 1))),
        ((9, 6), (2, 3), (3, 1), ((0, 0), (2, 0))),
        ((6, 6), (3, 3), (2, 2), ((0, 0), (0, 0))),  # the last row and column are not used
    ],
)
def test_ordered_convolutions_have_the_same_gradients(size, kernel, stride, padding):
    def apply(params, x):
        return jax.lax.conv_general_dilated(x, params["w"], stride, padding, dimension_numbers=LAST)

    keys = jax.random.split(jax.random.key(0), 2)
    params, x = {"w": jax.random.normal(keys[0], (*kernel, 3, 4))}, jax.random.normal(keys[1], (2, *size, 3))

    def gradients(apply):
        loss = lambda params, x: jnp.sin(jnp.arange(apply(params, x).size) * apply(params, x).reshape(-1)).sum()
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(params, x))

    for found, expected in zip(gradients(with_hook(apply, use_training_kernels)), gradients(apply), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_losses_are_those_of_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits, teacher, labels = random.normal(size=(6, 4)), random.normal(size=(6, 4)), random.integers(0, 4, 6)
    ours = lambda x: jnp.asarray(x, jnp.float32)
    theirs = torch.nn.functional
    expected = theirs.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1)
    assert float(cross_entropy(ours(logits), labels, 0.1)) == pytest.approx(float(expected), rel=1e-5)
    log = lambda x: theirs.log_softmax(torch.tensor(x) / 3, dim=-1)
    expected = 9 * theirs.kl_div(log(logits), log(teacher), reduction="batchmean", log_target=True)
    assert float(distillation_loss(ours(logits), ours(teacher), 3.0)) == pytest.approx(float(expected), rel=1e-5)
    by_teacher = jax.grad(lambda teacher: distillation_loss(ours(logits), teacher, 3.0))(ours(teacher))
    assert (by_teacher == 0).all()
