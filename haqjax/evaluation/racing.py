"""Judging policies that may be given up: no more images for one that cannot be the best any more."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.evaluator import fill_evenly, in_batches
from haqjax.evaluation.judging import count_answers, under_policy
from haqjax.tracing.hooks import Apply
from haqjax.types import Evaluation, Ranges


class Tally(NamedTuple):
    """What was counted of one policy so far."""

    batches: Int[Array, ""]
    seen: Int[Array, ""]  # images
    right: Int[Array, ""]
    loss: Float[Array, ""]  # summed


def make_race(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, *, error: float = 0.0, batch_size: int | None = None
) -> jax.tree_util.Partial:
    """Makes a judge that stops at a policy which cannot reach an accuracy.

    The images come in an order drawn once. After each micro-batch a policy is given up where its accuracy on all images
    is below the one asked for: for certain with `error` 0, as even all images left would not suffice; otherwise with a
    chance of at most `error` that it is not, by Serfling's bound for drawing without replacement (Annals of Statistics
    2, 1974), shared among the batches. A policy that was given up is told by the images it saw, below what was asked.

    Args:
      apply, params, split, ranges: as for `haqjax.evaluation.make_evaluate`.
      error: chance of giving up a policy that reaches the accuracy, 0 to below 1.
      batch_size: images at a time at most; None picks what suits the device.

    Returns:
      `race(policies int32 [N, L, 2], least float32 []) -> Evaluation`: of all images for every policy that was not
      given up, and then the same as `make_evaluate` tells but for the order of the sums. Traceable.

    Raises:
      ValueError: the split is empty, or the error no share.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> race = make_race(apply, params, split, calibrate(apply, params, [split.images]), batch_size=1)
    >>> race(jnp.full((1, 1, 2), 8), 0.0).accuracy.tolist()
    [0.75]
    """
    if not len(split) or not 0 <= error < 1:
        raise ValueError(f"a race on {len(split)} images with error {error}: give images, and 0 to below 1")
    order = np.random.default_rng(0).permutation(len(split))
    images, labels = in_batches(split.take(order), fill_evenly(split, batch_size))
    return jax.tree_util.Partial(_make_race(apply, error), params, images, labels, ranges)


def reachable(tally: Tally, images: int | Int[Array, ""], batches: int, error: float) -> Float[Array, ""]:
    """The greatest accuracy on all images that what was seen allows.

    >>> seen = Tally(jnp.int32(1), jnp.int32(50), jnp.int32(10), jnp.float32(0))
    >>> print(reachable(seen, 100, 2, 0.0), reachable(seen, 100, 2, 0.1).round(3))
    0.6 0.324
    """
    certain = (tally.right + images - tally.seen) / images
    if not error:
        return certain
    left = 1 - (tally.seen - 1) / images
    likely = tally.right / tally.seen + jnp.sqrt(left * np.log(batches / error) / (2 * tally.seen))
    return jnp.where(tally.seen > 0, jnp.minimum(certain, likely), certain)


@functools.cache
def _make_race(apply: Apply, error: float) -> Callable[..., Evaluation]:
    def race(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Int[Array, "N L 2"], least: Array
    ) -> Evaluation:
        whole = (labels >= 0).sum()

        def run(policy: Int[Array, "L 2"]) -> Evaluation:
            quantised = under_policy(apply, params, images[0], policy, ranges)

            def goes_on(tally: Tally) -> Bool[Array, ""]:
                within_reach = reachable(tally, whole, len(images), error) >= least
                return (tally.batches < len(images)) & within_reach

            def see(tally: Tally) -> Tally:
                at = tally.batches
                right, loss = count_answers(quantised(params, images[at]), labels[at])
                return Tally(at + 1, tally.seen + (labels[at] >= 0).sum(), tally.right + right, tally.loss + loss)

            zero = jnp.int32(0)
            end = jax.lax.while_loop(goes_on, see, see(Tally(zero, zero, zero, jnp.float32(0))))
            return Evaluation(end.right / end.seen, end.loss / end.seen)

        return jax.lax.map(run, policies)

    return race
