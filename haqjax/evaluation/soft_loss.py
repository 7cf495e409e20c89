"""Differentiable loss of a network under fractional bits: the objective of a search by gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.batches import nth_batch, split_into_batches
from haqjax.quantizers.fractional import quantize_fractionally
from haqjax.tracing.conv_gradients import use_training_kernels
from haqjax.tracing.hooks import Apply
from haqjax.types import Ranges

BATCH = 64  # images a step


def make_soft_loss(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, *, batch_size: int = BATCH
) -> jax.tree_util.Partial:
    """Makes the loss that a search by gradients descends.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images, in random order: of the training split, or of the one that policies are selected by.
      ranges: from `calibrate`.
      batch_size: images a step.

    Returns:
      `soft_loss(bits float [L, 2], index int) -> nats`: the mean cross entropy of batch `index`, counted round and
      round. Differentiable by the bits; its arrays are arguments of the compiled program, not constants in it.

    Raises:
      ValueError: the split is empty, or the batch size not positive.

    >>> from haqjax.quantizers import calibrate
    >>> import numpy as np
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> soft_loss = make_soft_loss(apply, params, split, calibrate(apply, params, [split.images]))
    >>> print(soft_loss(jnp.full((1, 2), 7.5), 0).round(3))
    0.994
    """
    if not len(split) or batch_size < 1:
        raise ValueError(f"no loss of {len(split)} images in batches of {batch_size}: give at least 1 of each")
    images, labels = split_into_batches(split, -(-len(split) // -(-len(split) // batch_size)))
    return jax.tree_util.Partial(_make_loss(apply), params, images, labels, ranges)


@functools.cache
def _make_loss(apply: Apply) -> Callable[..., Float[Array, ""]]:
    soft = quantize_fractionally(apply, hook=use_training_kernels)

    def loss(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, bits: Float[Array, "L 2"], index: Int[Array, ""]
    ) -> Float[Array, ""]:
        at = jnp.asarray(index) % len(labels)
        logits, truth = soft(params, nth_batch(images, at), bits, ranges), labels[at]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(truth, 0))
        return jnp.where(truth >= 0, losses, 0).sum() / (truth >= 0).sum()

    return loss
