"""Answers of a network to images: right or wrong, the loss of each, and sums in one order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from haqjax.types import Evaluation


def answer_images(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> tuple[Bool[Array, "B"], Float[Array, "B"]]:
    """Tells for each image whether its largest logit is at the label, and its cross entropy.

    A label below 0 marks an image that does not count: it is never right, and its loss is zero. One with a logit that
    is not finite is wrong, and its loss infinite.

    >>> right, loss = answer_images(jnp.array([[0.0, 9.0], [0.0, jnp.nan]]), jnp.array([1, -1]))
    >>> right.tolist(), loss.round(4).tolist()
    ([True, False], [9.999999747378752e-05, 0.0])
    """
    finite = jnp.isfinite(logits).all(-1)
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    loss = jnp.where(labels >= 0, jnp.where(finite, -log_likelihood, jnp.inf), 0)
    return (logits.argmax(-1) == labels) & finite, loss


def count_answers(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Counts the right answers of `answer_images`, and sums the losses."""
    right, loss = answer_images(logits, labels)
    return right.sum(), loss.sum()


def sum_images(parts: Array) -> Float[Array, "..."] | Int[Array, "..."]:
    """Adds up the last two axes, micro-batches and images in them, in one order whatever the size of the batches is.

    Neighbours are added, then neighbouring sums, and so on: zeros at the end change nothing.

    >>> parts = jnp.array([0.1, 1e8, -1e8, 0.25, 3.0, 0.0, 0.0, 0.0])
    >>> sum_images(parts.reshape(4, 2)) == sum_images(parts.reshape(1, 8)) == sum_images(parts[None, :5])
    Array(True, dtype=bool)
    """
    sums = parts.reshape(*parts.shape[:-2], -1)
    sums = sums.astype(jnp.int32) if sums.dtype == bool else sums
    while sums.shape[-1] > 1:
        odd = [(0, 0)] * (sums.ndim - 1) + [(0, sums.shape[-1] % 2)]
        sums = jnp.pad(sums, odd)
        sums = sums[..., 0::2] + sums[..., 1::2]
    return sums[..., 0]


def average(sums: tuple[Array, Array], labels: Int[Array, "m b"]) -> Evaluation:
    """Divides the sums of N policies by the number of images that count."""
    count = (labels >= 0).sum()
    return Evaluation(*(_divide(total, count) for total in sums))


def _divide(totals: Array, count: Int[Array, ""]) -> Float[Array, "N"]:
    """Divides each total by the count, rounded as one quotient is: XLA would multiply all by one reciprocal."""
    return totals / jax.lax.optimization_barrier(jnp.broadcast_to(count, totals.shape))
