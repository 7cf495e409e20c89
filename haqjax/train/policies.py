"""The accuracy of a network under many policies: the judge of a search."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from haqjax.capture import Apply, with_hook
from haqjax.data import Split
from haqjax.quantize.forward import make_hook, quantize_weights
from haqjax.quantize.nudges import output_biases
from haqjax.types import Judgement, Ranges

CACHED_PIXELS = 4 * 224 * 224  # at a time on a CPU: what one layer makes of so many stays in its cache
CPU_IMAGES = 128  # at a time at most
ACCELERATOR_IMAGES = 512  # at a time elsewhere


def make_evaluate(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    *,
    batch_size: int | None = None,
    policies_at_once: int = 1,
    with_loss: bool = False,
) -> jax.tree_util.Partial:
    """Makes the function that a search judges policies by.

    Weights are quantised once a policy, and the images go through in micro-batches. A logit that is not finite makes
    its image count as wrong.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images to judge by.
      ranges: from `calibrate`.
      batch_size: images at a time at most; None picks what suits the device.
      policies_at_once: policies evaluated side by side. On a CPU one is fastest; an accelerator wants more.
      with_loss: tell the mean cross entropy, too.

    Returns:
      `evaluate(policies int32 [N, L, 2]) -> accuracy float32 [N]` in 0..1, or `haqjax.types.Judgement` with the loss
      [N] in nats (not finite where a logit is not); traceable. Its arrays are arguments of the compiled program, not
      constants in it.

    Raises:
      ValueError: the split is empty.

    >>> from haqjax.quantize import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> evaluate = make_evaluate(apply, params, split, calibrate(apply, params, [split.images]))
    >>> evaluate(jnp.full((1, 1, 2), 8)).tolist()
    [0.75]
    """
    if not len(split):
        raise ValueError("cannot judge a policy on no images")
    most = batch_size or suggest_batch(split.images.shape[1] * split.images.shape[2])
    images, labels = in_batches(split, -(-len(split) // -(-len(split) // most)))  # as many batches, evenly filled
    return jax.tree_util.Partial(_make_judge(apply, policies_at_once, with_loss), params, images, labels, ranges)


def suggest_batch(pixels: int) -> int:
    """Images of so many pixels to put through a network at a time, by the device in use."""
    if jax.default_backend() == "cpu":
        return max(1, min(CPU_IMAGES, CACHED_PIXELS // pixels))
    return ACCELERATOR_IMAGES


def in_batches(split: Split, batch_size: int) -> tuple[Float[Array, "m b H W C"], Int[Array, "m b"]]:
    """Images and labels as micro-batches; the last is filled up with blank images labelled -1."""
    missing = -len(split) % batch_size
    images = np.pad(split.images, ((0, missing), *((0, 0),) * (split.images.ndim - 1)))
    labels = np.pad(split.labels, (0, missing), constant_values=-1)
    return jnp.asarray(images.reshape(-1, batch_size, *images.shape[1:])), jnp.asarray(labels.reshape(-1, batch_size))


@functools.cache
def _make_judge(apply: Apply, policies_at_once: int, with_loss: bool) -> Callable[..., Array | Judgement]:
    def judge(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Int[Array, "N L 2"]
    ) -> Array | Judgement:
        def measure(policy: Int[Array, "L 2"]) -> tuple[Array, Array | None]:
            weights = quantize_weights(apply, params, images[0], policy, ranges)
            biases = output_biases(apply, params, weights, images[0], ranges)
            quantised = with_hook(apply, make_hook(weights, policy, ranges, biases))

            def count(batch: tuple[Array, Array]) -> tuple[Array, Array | None]:
                logits = quantised(params, batch[0])
                right = ((logits.argmax(-1) == batch[1]) & jnp.isfinite(logits).all(-1)).sum()
                return right, _loss(logits, batch[1]) if with_loss else None

            sums = jax.tree.map(jnp.sum, jax.lax.map(count, (images, labels)))
            return jax.tree.map(lambda total: total / (labels >= 0).sum(), sums)

        accuracy, loss = jax.lax.map(measure, policies, batch_size=min(policies_at_once, len(policies)))
        return Judgement(accuracy, loss) if with_loss else accuracy

    return judge


def _loss(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> Float[Array, ""]:
    """Cross entropy, summed over the images that count."""
    log_share = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    return -jnp.where(labels >= 0, log_share, 0).sum()
