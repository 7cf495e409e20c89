"""Evaluation of policies by proxy fine-tuning: the accuracy after a few steps under each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Source, Split
from haqjax.data.labels import check_answers
from haqjax.evaluation.batches import first_batch
from haqjax.evaluation.evaluator import make_evaluator
from haqjax.quantizers.trainable import as_ranges
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.integer_products import safe_arithmetic
from haqjax.training.finetuning import ApplyTrain, Tuning
from haqjax.training.finetuning_many import Tune, draw_batches, make_tuner
from haqjax.types import Evaluation, Evaluator, Ranges


class _Proxy(NamedTuple):
    """The batches of a proxy fine-tuning, and the evaluator of what it ends at."""

    images: Float[Array, "S B H W C"]  # of each step
    labels: Int[Array, "S B"]
    evaluator: Evaluator  # without parameters or ranges


def make_finetuned_evaluator(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    data: Split | Source,
    tuning: Tuning = Tuning(),  # noqa: B008  it is frozen
    *,
    steps: int,
    key: PRNGKeyArray,
    apply_train: ApplyTrain | None = None,
    batch_size: int | None = None,
    policies_at_once: int = 1,
) -> Evaluator:
    """Makes an evaluator that measures the accuracy of each policy after a few steps of fine-tuning under it.

    Args:
      split, batch_size, policies_at_once: as for `haqjax.evaluation.make_evaluator`, which measures.
      data: the images to fine-tune on.
      apply, params, ranges, tuning, steps, key, apply_train: as for `finetune_policies`.

    Returns:
      An evaluator of accuracies only: its losses are NaN.

    Raises:
      ValueError: as `finetune_policies` and `make_evaluator`.

    >>> import numpy as np
    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)[:, ::-1] / 8}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.arange(4, dtype=np.int32))
    >>> ranges, tuning = calibrate(apply, params, [split.images]), Tuning(batch_size=4, learning_rate=1.0, shift=0)
    >>> tuned = make_finetuned_evaluator(apply, params, split, ranges, split, tuning, steps=9, key=jax.random.key(0))
    >>> untuned, policies = make_evaluator(apply, params, split, ranges), jnp.full((1, 1, 2), 8)
    >>> untuned(policies).accuracy.tolist(), tuned(policies).accuracy.tolist()
    ([0.0], [1.0])
    """
    check_answers(apply, params, data, split.first(1))
    images, labels = draw_batches(data, tuning, steps, key)
    safe = map_weights(lambda layer, weight: safe_arithmetic(layer), apply, params, split.first(1))  # weights move
    base = make_evaluator(apply, params, split, ranges, batch_size=batch_size, arithmetic=safe)
    proxy = _Proxy(images, labels, dataclasses.replace(base, params=None, ranges=None))
    function = _make_function(apply, make_tuner(apply, apply_train, tuning), policies_at_once)
    return Evaluator(function, params, None, None, ranges, proxy)


@functools.lru_cache(maxsize=8)
def _make_function(apply: Apply, tune: Tune, policies_at_once: int) -> Callable[..., Evaluation]:
    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        images, labels, base = evaluator.extra
        params, ranges = evaluator.params, evaluator.ranges
        assert ranges is not None

        def measure(policy: Int[Array, "L 2"]) -> Float[Array, ""]:
            learned = tune(params, ranges, images, labels, policy)
            found = as_ranges(apply, learned, first_batch(images), policy, ranges)
            return dataclasses.replace(base, params=learned.params, ranges=found)(policy[None]).accuracy[0]

        accuracy = jax.lax.map(measure, policies, batch_size=min(policies_at_once, len(policies)))
        return Evaluation(accuracy, jnp.full(len(policies), jnp.nan))

    return evaluate
