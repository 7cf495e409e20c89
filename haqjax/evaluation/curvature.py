"""Sensitivity of the loss to each layer's quantisation by second derivatives: Fisher information and Hessian traces."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Split
from haqjax.evaluation.batches import first_batch, nth_batch, split_into_batches, suggest_batch_size
from haqjax.quantizers.fake_quantize import leave_unreached, quantize_weights
from haqjax.quantizers.linear import Grid, make_grid, snap
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, Compute, map_weights, with_records
from haqjax.tracing.jaxpr import Layer, dtype_of, shape_of
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Ranges


class Shifts(NamedTuple):
    """What is added to weights and activations."""

    weights: tuple[Array, ...]  # one a layer
    activations: tuple[Array, ...]  # one a use of a layer


Activations = tuple[tuple[int, Array], ...]  # one a use: (layer, what it reads)


class _Fisher(NamedTuple):
    """Sums over images."""

    weights: tuple[Array, ...]  # squared gradients, one array a layer
    activations: Float[Array, "L 8"]  # squared gradients times squared errors


class _Trace(NamedTuple):
    """Sums over the images of a batch."""

    trace: Float[Array, "L 2"]
    errors: Float[Array, "L 8"]  # mean squared errors of activations


def estimate_fisher_sensitivity(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges
) -> Float[np.ndarray, "L 2 8"]:
    """Estimates the rise of the loss as half the empirical Fisher information times the squared quantisation error.

    The products are taken number by number and summed over a tensor. The Fisher matrix is taken as diagonal: its
    entries are squared gradients of single images' losses, averaged over the images (Theis et al. 2018, arXiv
    1801.05787, equation 7). For an activation the square of the gradient meets the square of the error of the same
    image. One image at a time goes forward and back.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: labelled images.
      ranges: from `calibrate`. What rounding adds to outputs on average counts as an error, though `means` take it off.

    Returns:
      Nats, for widths 1 to 8; NaN where a width has no level but zero.

    Raises:
      ValueError: the split is empty.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> found = estimate_fisher_sensitivity(apply, params, split, calibrate(apply, params, [split.images]))
    >>> found.shape, bool(np.isnan(found[0, 0, 0]))
    ((1, 2, 8), True)
    """
    if not len(split):
        raise ValueError("cannot estimate sensitivities on no images")
    weights = map_weights(lambda layer, weight: weight, apply, params, split.first(1))
    sums = _Fisher(jax.tree.map(jnp.zeros_like, weights), jnp.zeros((len(weights), WIDTHS)))
    for at in range(len(split)):
        one = split.take(slice(at, at + 1))
        sums = _add_fisher(apply, sums, params, one.images, one.labels, ranges)
    by_weight = _weight_errors(apply, params, split.first(1), ranges, sums.weights)
    return 0.5 * np.stack([by_weight, sums.activations], axis=1).astype(float) / len(split)


def estimate_hessian_sensitivity(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, *, key: PRNGKeyArray, draws: int = 1
) -> Float[np.ndarray, "L 2 8"]:
    """Estimates the rise of the loss as half the trace of its Hessian times the mean squared quantisation error.

    HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852, equations 9 and 11), here for activations, too. The trace is
    Hutchinson's: `v H v` for random signs `v`, averaged. Signs are drawn for all tensors at once, so that one product
    with the Hessian serves all of them; its mixed terms of two tensors cancel on average.

    Args:
      apply, split, ranges: as for `estimate_fisher_sensitivity`.
      key: of the signs.
      draws: of signs for each batch of images.

    Returns:
      Nats, for widths 1 to 8; NaN where a width has no level but zero. A trace below 0, as a loss may have that is not
      at its least, or too few draws, counts as 0.

    Raises:
      ValueError: the split is empty, or no draws.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges = calibrate(apply, params, [split.images])
    >>> estimate_hessian_sensitivity(apply, params, split, ranges, key=jax.random.key(0)).shape
    (1, 2, 8)
    """
    if not len(split):
        raise ValueError("cannot estimate sensitivities on no images")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    images, labels = split_into_batches(split, suggest_batch_size(split.pixels))
    sums = [
        _measure_trace(apply, params, nth_batch(images, at // draws), labels[at // draws], ranges, one)
        for at, one in enumerate(jax.random.split(key, len(labels) * draws))
    ]
    trace = np.maximum(sum(np.asarray(one.trace, float) for one in sums) / (draws * len(split)), 0)
    activation = sum(np.asarray(one.errors, float) for one in sums) / (draws * len(split))
    weights = map_weights(lambda layer, weight: weight, apply, params, first_batch(images))
    uniform = tuple(jnp.full(weight.shape, 1 / weight.size) for weight in weights)
    errors = np.stack([_weight_errors(apply, params, first_batch(images), ranges, uniform), activation], axis=1)
    return 0.5 * trace[..., None] * errors.astype(float)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_fisher(
    apply: Apply, sums: _Fisher, params: PyTree, images: Array, labels: Int[Array, "B"], ranges: Ranges
) -> _Fisher:
    """Adds one image."""
    gradients, activations = jax.grad(_loss, argnums=1, has_aux=True)(
        apply, make_shifts(apply, params, images), params, images, labels
    )
    weights = jax.tree.map(lambda total, gradient: total + jnp.square(gradient), sums.weights, gradients.weights)
    weighted = sums.activations
    for (index, activation), gradient in zip(activations, gradients.activations, strict=True):
        weighted = weighted.at[index].add(_activation_errors(index, activation, ranges, jnp.square(gradient)))
    return _Fisher(weights, weighted)


@functools.partial(jax.jit, static_argnums=0)
def _measure_trace(
    apply: Apply, params: PyTree, images: Array, labels: Int[Array, "B"], ranges: Ranges, key: PRNGKeyArray
) -> _Trace:
    """Sums over the images of a batch: `v H v` of each tensor, and mean squared errors of activations."""
    zeros = make_shifts(apply, params, images)
    leaves, shape = jax.tree.flatten(zeros)
    keys = jax.random.split(key, len(leaves))
    signs = [jax.random.rademacher(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)]
    signs = jax.tree.unflatten(shape, signs)
    gradient = jax.grad(lambda shifts: _loss(apply, shifts, params, images, labels), has_aux=True)
    _, turned, activations = jax.jvp(gradient, (zeros,), (signs,), has_aux=True)
    products = jax.tree.map(lambda sign, product: (sign * product).sum(), signs, turned)
    count, uses = len(products.weights), jnp.array([index for index, _ in activations])
    errors, often = jnp.zeros((count, WIDTHS)), np.bincount([index for index, _ in activations])
    for index, activation in activations:
        there = (labels >= 0).reshape(-1, *(1,) * (activation.ndim - 1)) * len(labels) / activation.size
        errors = errors.at[index].add(_activation_errors(index, activation, ranges, there / often[index]))
    by_activation = jnp.zeros(count).at[uses].add(jnp.stack(products.activations))
    return _Trace(jnp.stack([jnp.stack(products.weights), by_activation], axis=1), errors)


def _loss(
    apply: Apply, shifts: Shifts, params: PyTree, images: Array, labels: Int[Array, "B"]
) -> tuple[Float[Array, ""], Activations]:
    """Sums the cross entropy of shifted weights and activations over the images; returns activations, too."""
    logits, activations = shift_network(apply, shifts, params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, losses, 0).sum(), activations


def shift_network(
    apply: Apply, shifts: Shifts, params: PyTree, images: Array
) -> tuple[Float[Array, "B C"], Activations]:
    """Computes logits with something added to every layer's weight and activation; returns activations, too."""

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, Array]:
        by_weight, by_activation = layer.arrange(shifts.weights[layer.index]), shifts.activations[layer.place]
        if layer.lookup:  # which has no activation: a number stands in its place
            return compute(activation, weight + by_weight), jnp.zeros(1)
        return use_cpu_kernels(layer, activation + by_activation, weight + by_weight, compute), activation

    logits, activations = with_records(apply, hook)(params, images)
    layer_of = map_weights(lambda layer, weight: layer.index, apply, params, images, each_use=True)
    found: Any = logits, tuple(zip(layer_of, activations, strict=True))
    return found


def make_shifts(apply: Apply, params: PyTree, images: Array) -> Shifts:
    """Makes shifts of zero for every layer's weight and activation.

    Raises:
      ValueError: a layer in a loop that stays one: its turns are no places where something different can be added.
    """
    uses = map_weights(lambda layer, weight: (layer, weight), apply, params, images, each_use=True)
    looped = [layer.name for layer, _ in uses if layer.looped]
    if looped:
        raise ValueError(
            f"layer {looped[0]!r} runs in a loop, where sensitivities by derivatives are not known: measure them by "
            "probes"
        )
    weights = tuple(jnp.zeros(weight.shape, weight.dtype) for layer, weight in uses if layer.use == 0)
    operands = [layer.equation.invars[1 - layer.weight_at] for layer, _ in uses]
    activations = [
        jnp.zeros(1) if layer.lookup else jnp.zeros(shape_of(operand), dtype_of(operand))
        for (layer, _), operand in zip(uses, operands, strict=True)
    ]
    return Shifts(weights, tuple(activations))


def _activation_errors(index: int, activation: Array, ranges: Ranges, importance: Array) -> Float[Array, "8"]:
    """Sums squared errors of one layer's activation at each width, times their importance."""
    grids = activation_grids(index, ranges)
    return jax.lax.map(lambda grid: (importance * jnp.square(snap(activation, grid) - activation)).sum(), grids)


def activation_grids(index: int, ranges: Ranges) -> Grid:
    """Makes the grids of one layer's activation, one a width."""
    clip, bits = jnp.asarray(ranges.clip)[index, ACTIVATION], jnp.arange(1, WIDTHS + 1)
    grids = make_grid(clip, bits, jnp.asarray(ranges.signed)[index])
    return grids if ranges.reached is None else leave_unreached(grids, jnp.asarray(ranges.reached)[index])


@functools.partial(jax.jit, static_argnums=0)
def _weight_errors(
    apply: Apply, params: PyTree, images: Array, ranges: Ranges, importance: tuple[Array, ...]
) -> Float[Array, "L 8"]:
    """Sums squared errors of each layer's weight at each width, times their importance."""
    weights = map_weights(lambda layer, weight: weight, apply, params, images)

    def at_width(bits: Int[Array, ""]) -> Float[Array, "L"]:
        policy = jnp.full((len(weights), 2), WIDTHS).at[:, WEIGHT].set(bits)
        rounded = quantize_weights(apply, params, images, policy, ranges)
        parts = zip(importance, rounded, weights, strict=True)
        return jnp.stack([(much * jnp.square(new - old)).sum() for much, new, old in parts])

    return jax.lax.map(at_width, jnp.arange(1, WIDTHS + 1)).T
