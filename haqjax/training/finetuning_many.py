"""Proxy fine-tuning: a few steps under each of many policies, in one compiled function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Source, Split, batches
from haqjax.data.labels import check_answers
from haqjax.quantizers.trainable import Learned, begin
from haqjax.tracing.conv_gradients import use_training_kernels
from haqjax.tracing.hooks import Apply
from haqjax.training.augmentation import augment
from haqjax.training.finetuning import ApplyTrain, Tuning, make_program
from haqjax.training.steps import State, begin_state, take_step
from haqjax.types import Ranges

Tune = Callable[..., Learned]  # (params, ranges, images, labels, policy)


def finetune_policies(
    apply: Apply,
    params: PyTree,
    policies: Int[Array, "N L 2"],
    ranges: Ranges,
    data: Split | Source,
    tuning: Tuning = Tuning(),  # noqa: B008  it is frozen
    *,
    steps: int,
    key: PRNGKeyArray,
    apply_train: ApplyTrain | None = None,
) -> Learned:
    """Fine-tunes the network for a few steps under each policy, all starting from the same parameters.

    Every policy sees the same images in the same order, so that policies differ and nothing else. Other policies do
    not compile again.

    Args:
      policies: one after another.
      steps: batches that each policy sees; `tuning.epochs` is not read.
      apply, params, ranges, data, tuning, key, apply_train: as for `finetune_all`.

    Returns:
      What was learned, with a leading axis N: parameters, and the clips at each policy's widths; NaN where a step was
      not finite.

    Raises:
      ValueError: as `finetune_all`; less than one step.
    """
    check_answers(apply, params, data, data.shaped(1))
    images, labels = draw_batches(data, tuning, steps, key)
    tune = make_tuner(apply, apply_train, tuning)
    return _tune_all(tune, params, ranges, images, labels, jnp.asarray(policies))


def draw_batches(
    data: Split | Source, tuning: Tuning, steps: int, key: PRNGKeyArray
) -> tuple[Float[Array, "S B H W C"], Int[Array, "S B"]]:
    """Draws the varied images and the labels of so many steps.

    Raises:
      ValueError: less than one step, or fewer images than a batch has.
    """
    if steps < 1:
        raise ValueError(f"fine-tuning for {steps} steps does nothing: give at least 1")
    each = tuning.passes.count_steps(len(data)) // tuning.epochs
    order_key, vary_key = jax.random.split(key)
    drawn = batches(data, tuning.batch_size, seed=int(jax.random.bits(order_key)), epochs=-(-steps // each))
    taken = [batch for _, batch in zip(range(steps), drawn, strict=False)]
    images = np.concatenate([batch.images for batch in taken])
    varied = augment(jnp.asarray(images), shift=tuning.shift, flip=tuning.flip, key=vary_key)
    return varied.reshape(steps, -1, *images.shape[1:]), jnp.array([batch.labels for batch in taken])


@functools.lru_cache(maxsize=8)
def make_tuner(apply: Apply, apply_train: ApplyTrain | None, tuning: Tuning) -> Tune:
    """Makes `(params, ranges, images [S, B, ...], labels [S, B], policy) -> Learned`, S steps long; traceable.

    The same arguments give the same function.
    """

    def tune(params: PyTree, ranges: Ranges, images: Array, labels: Array, policy: Int[Array, "L 2"]) -> Learned:
        objective, optimiser = make_program(apply, apply_train, tuning, len(images), use_training_kernels)
        context = (policy, ranges, params if tuning.distill else None)
        learned = begin(params, policy, ranges)
        start = begin_state(learned, optimiser.init(learned))

        def step(state: State, batch: tuple[Array, Array]) -> tuple[State, None]:
            return take_step(objective, optimiser, state, *batch, context), None

        end = jax.lax.scan(step, start, (images, labels))[0]
        return jax.tree.map(lambda leaf: jnp.where(end.failed == 0, leaf, jnp.nan), end.learned)

    return tune


@functools.partial(jax.jit, static_argnums=0)
def _tune_all(
    tune: Tune, params: PyTree, ranges: Ranges, images: Array, labels: Array, policies: Int[Array, "N L 2"]
) -> Learned:
    return jax.lax.map(functools.partial(tune, params, ranges, images, labels), policies)
