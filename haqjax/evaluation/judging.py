"""What every judge of policies does: a network under one policy, and how its answers are counted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from haqjax.quantizers.fake_quantize import Operands, hook_with, make_operands, quantize_weights
from haqjax.quantizers.rounding_offsets import output_biases
from haqjax.tracing.hooks import Apply, with_hook
from haqjax.types import Ranges


def under_policy(
    apply: Apply, params: PyTree, x: PyTree, policy: Int[Array, "L 2"], ranges: Ranges
) -> Callable[[PyTree, PyTree], PyTree]:
    """`(params, images) -> logits` with weights that are quantised here, once for all batches.

    Of `x` only shapes are read.
    """
    return with_hook(apply, hook_with(operands_under(apply, params, x, policy, ranges), ranges))


def operands_under(
    apply: Apply, params: PyTree, x: PyTree, policy: Int[Array, "L 2"], ranges: Ranges
) -> tuple[Operands, ...]:
    """What a policy makes of every layer, for all batches. Of `x` only shapes are read."""
    weights = quantize_weights(apply, params, x, policy, ranges)
    return make_operands(weights, policy, ranges, output_biases(apply, params, weights, x, ranges))


def count_answers(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Images whose largest logit is at the label, and the cross entropy summed over the images that count.

    A label below 0 marks an image that does not count. One with a logit that is not finite is wrong, and makes the sum
    infinite.

    >>> right, loss = count_answers(jnp.array([[0.0, 9.0], [0.0, jnp.nan]]), jnp.array([1, -1]))
    >>> int(right), round(float(loss), 4)
    (1, 0.0001)
    """
    finite = jnp.isfinite(logits).all(-1)
    right = ((logits.argmax(-1) == labels) & finite).sum()
    log_share = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    return right, -jnp.where(labels >= 0, jnp.where(finite, log_share, -jnp.inf), 0).sum()
