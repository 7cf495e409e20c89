"""Sensitivity of the loss to each layer's bit-widths by Gauss-Newton: one pass back tells of all layers and widths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Split
from haqjax.evaluation.curvature import Activations, Shifts, activation_grids, make_shifts, shift_network
from haqjax.quantizers.fake_quantize import quantize_weights
from haqjax.quantizers.linear import snap
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.types import WEIGHT, WIDTHS, Ranges

IMAGES = 256  # that the estimate is made by, at most
BATCH = 16  # images whose gradients are added up with random signs: a draw
TEMPERATURE = 3.0  # of the softmax: under few bits a network is less sure than it is in float


def estimate_gauss_newton_sensitivity(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    *,
    key: PRNGKeyArray,
    temperature: float = TEMPERATURE,
) -> Float[np.ndarray, "L 2 8"]:
    """Estimates, but for a common factor, by how much the loss rises with one entry quantised.

    Half the Gauss-Newton curvature of the cross entropy along the quantisation error, which is the Fisher information
    with labels that the network draws itself (Martens 2020, arXiv 1412.1193, section 9): the mean over images of
    `(gradient . error)^2 / 2`. For weights the product is that of the whole tensor, as rounding may choose errors that
    cancel at the output; a batch's gradients are added up with random signs, so that the squares of sums have the
    squares of images on average. For activations squares are taken number by number, as the errors of different places
    cancel by chance alone. The softmax has a temperature: where the float network is sure of its answers, its gradient
    vanishes, while with few bits it is not sure of them.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images, of which `IMAGES` are drawn at most; labels are not read.
      ranges: from `calibrate`.
      key: of the labels and the signs.
      temperature: that logits are divided by.

    Returns:
      For widths 1 to 8; NaN where a width has no level but zero.

    Raises:
      ValueError: the split is empty, or the temperature not above 0.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges = calibrate(apply, params, [split.images])
    >>> estimate_gauss_newton_sensitivity(apply, params, split, ranges, key=jax.random.key(0)).shape
    (1, 2, 8)
    """
    if not len(split):
        raise ValueError("cannot estimate sensitivities on no images")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: give one above 0")
    batch = min(BATCH, len(split))
    rows = np.random.default_rng(0).permutation(len(split))[: min(IMAGES, len(split)) // batch * batch]
    drawn = split.take(np.sort(rows))
    keys = jax.random.split(key, len(drawn) // batch)
    parts = []
    for at, one in enumerate(keys):
        some = drawn.take(slice(at * batch, (at + 1) * batch)).images
        parts.append(np.asarray(_measure(apply, params, some, ranges, one, jnp.float32(temperature)), float))
    return 0.5 * np.sum(parts, axis=0) / len(rows)


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    apply: Apply, params: PyTree, images: Array, ranges: Ranges, key: PRNGKeyArray, temperature: Array
) -> Float[Array, "L 2 8"]:
    """Sums `(gradient . error)^2` over the images of a batch."""
    sign_key, label_key = jax.random.split(key)

    def loss(shifts: Shifts) -> tuple[Array, Activations]:
        logits, activations = shift_network(apply, shifts, params, images)
        logits = logits / temperature
        labels = jax.random.categorical(label_key, jax.lax.stop_gradient(logits))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (jax.random.rademacher(sign_key, losses.shape, losses.dtype) * losses).sum(), activations

    gradients, activations = jax.grad(loss, has_aux=True)(make_shifts(apply, params, images))
    weights = map_weights(lambda layer, weight: weight, apply, params, images)
    grids = [activation_grids(index, ranges) for index in range(len(weights))]

    def at_width(bits: Int[Array, ""]) -> Float[Array, "L 2"]:  # one loop over widths for all layers: quick to compile
        policy = jnp.full((len(weights), 2), WIDTHS).at[:, WEIGHT].set(bits)
        rounded = quantize_weights(apply, params, images, policy, ranges)
        by_weight = [
            jnp.square((gradient * (new - old)).sum())
            for gradient, new, old in zip(gradients.weights, rounded, weights, strict=True)
        ]
        by_activation = [jnp.float32(0)] * len(weights)
        for (index, activation), gradient in zip(activations, gradients.activations, strict=True):
            grid = jax.tree.map(lambda of_widths, at=index: of_widths[bits - 1], grids[index])
            squares = jnp.square(gradient * (snap(activation, grid) - activation))
            by_activation[index] = by_activation[index] + squares.sum()
        return jnp.stack([jnp.stack(by_weight), jnp.stack(by_activation)], axis=1)

    return jnp.moveaxis(jax.lax.map(at_width, jnp.arange(1, WIDTHS + 1)), 0, -1)
