"""Evaluation of policies in races that Serfling's bound ends: no more images for one that cannot be the best."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.answers import count_answers
from haqjax.evaluation.batches import balance_batch_size, first_batch, nth_batch, split_into_batches
from haqjax.evaluation.evaluator import unpack
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.integer_layers import prepare_network
from haqjax.tracing.hooks import Apply
from haqjax.tracing.integer_products import Arithmetic
from haqjax.types import Evaluation, Evaluator, Ranges


class Tally(NamedTuple):
    """Counts of one policy so far."""

    batches: Int[Array, ""]
    images: Int[Array, ""]
    right: Int[Array, ""]
    loss: Float[Array, ""]  # summed


def make_racing_evaluator(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, *, error: float = 0.0, batch_size: int | None = None
) -> Evaluator:
    """Makes an evaluator that gives up a policy which cannot have a given accuracy.

    The images come in an order drawn once. After each micro-batch a policy is given up where its accuracy on all images
    is below the one asked for: for certain with `error` 0, as even all images left would not suffice; otherwise with a
    chance of at most `error` that it is not, by Serfling's bound for drawing without replacement (Annals of Statistics
    2, 1974), divided among the batches. A policy that was given up has the accuracy and the loss of the images up to
    there, below what was asked.

    Args:
      apply, params, split, ranges: as for `haqjax.evaluation.make_evaluator`.
      error: chance of giving up a policy that has the accuracy, 0 to below 1.
      batch_size: images at a time at most; None picks what suits the device.

    Returns:
      An evaluator that `races`: `evaluator(policies, least)` evaluates every policy that was not given up on all
      images, and then gives the same as `make_evaluator` but for the order of the sums.

    Raises:
      ValueError: the split is empty, or the error outside its range.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges = calibrate(apply, params, [split.images])
    >>> evaluator = make_racing_evaluator(apply, params, split, ranges, batch_size=1)
    >>> evaluator(jnp.full((1, 1, 2), 8), least=0.0).accuracy.tolist()
    [0.75]
    """
    if not len(split) or not 0 <= error < 1:
        raise ValueError(f"a race on {len(split)} images with error {error}: give images, and 0 to below 1")
    order = np.random.default_rng(0).permutation(len(split))
    images, labels = split_into_batches(split.take(order), balance_batch_size(split, batch_size))
    arithmetic = choose_arithmetic(apply, params, split.first(1), ranges)
    return Evaluator(_make_function(apply, error, arithmetic), params, images, labels, ranges, races=True)


def bound_accuracy(tally: Tally, images: int | Int[Array, ""], batches: int, error: float) -> Float[Array, ""]:
    """Bounds the accuracy on all images from above, given what was counted so far.

    >>> tally = Tally(jnp.int32(1), jnp.int32(50), jnp.int32(10), jnp.float32(0))
    >>> print(bound_accuracy(tally, 100, 2, 0.0), bound_accuracy(tally, 100, 2, 0.1).round(3))
    0.6 0.324
    """
    certain = (tally.right + images - tally.images) / images
    if not error:
        return certain
    left = 1 - (tally.images - 1) / images
    likely = tally.right / tally.images + jnp.sqrt(left * np.log(batches / error) / (2 * tally.images))
    return jnp.where(tally.images > 0, jnp.minimum(certain, likely), certain)


@functools.cache
def _make_function(apply: Apply, error: float, arithmetic: tuple[Arithmetic, ...]) -> Callable[..., Evaluation]:
    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        params, images, labels, ranges = unpack(evaluator)
        whole = (labels >= 0).sum()

        def race(policy: Int[Array, "L 2"]) -> Evaluation:
            quantised = prepare_network(apply, params, first_batch(images), policy, ranges, arithmetic)

            def goes_on(tally: Tally) -> Bool[Array, ""]:
                promising = bound_accuracy(tally, whole, len(labels), error) >= least
                return (tally.batches < len(labels)) & promising

            def count_batch(tally: Tally) -> Tally:
                at = tally.batches
                right, loss = count_answers(quantised(params, nth_batch(images, at)), labels[at])
                return Tally(at + 1, tally.images + (labels[at] >= 0).sum(), tally.right + right, tally.loss + loss)

            zero = jnp.int32(0)
            end = jax.lax.while_loop(goes_on, count_batch, count_batch(Tally(zero, zero, zero, jnp.float32(0))))
            return Evaluation(end.right / end.images, end.loss / end.images)

        return jax.lax.map(race, policies)

    return evaluate
