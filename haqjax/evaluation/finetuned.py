"""A few steps of fine-tuning for each of many policies, in one compiled function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.data import Source, Split, batches
from haqjax.evaluation.evaluator import make_evaluate
from haqjax.quantizers.trainable import Learned, as_ranges, begin
from haqjax.tracing.conv_gradients import use_training_kernels
from haqjax.tracing.hooks import Apply
from haqjax.training.augmentation import augment
from haqjax.training.finetuning import ApplyTrain, Tuning, make_program
from haqjax.training.steps import State, take_step
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
      What was learned, with a leading axis N: parameters, and the clips at each policy's widths.

    Raises:
      ValueError: as `finetune_all`; less than one step.
    """
    images, labels = draw(data, tuning, steps, key)
    tune = _make_tuner(apply, apply_train, tuning)
    return _tune_all(tune, params, ranges, images, labels, jnp.asarray(policies))


def make_finetuned_evaluate(
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
) -> jax.tree_util.Partial:
    """Makes the function that a search judges policies by, after a few steps of fine-tuning under each.

    Args:
      split, batch_size, policies_at_once: as for `haqjax.evaluation.make_evaluate`, which judges.
      data: the images to fine-tune on.
      apply, params, ranges, tuning, steps, key, apply_train: as for `finetune_policies`.

    Returns:
      `evaluate(policies int32 [N, L, 2]) -> accuracy float32 [N]` in 0..1, as `haqjax.evaluation.make_evaluate`.

    Raises:
      ValueError: as `finetune_policies` and `make_evaluate`.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)[:, ::-1] / 8}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.arange(4, dtype=np.int32))
    >>> ranges, tuning = calibrate(apply, params, [split.images]), Tuning(batch_size=4, learning_rate=1.0, shift=0)
    >>> evaluate = make_finetuned_evaluate(apply, params, split, ranges, split, tuning, steps=9, key=jax.random.key(0))
    >>> make_evaluate(apply, params, split, ranges)(jnp.full((1, 1, 2), 8)), evaluate(jnp.full((1, 1, 2), 8))
    (Array([0.], dtype=float32), Array([1.], dtype=float32))
    """
    images, labels = draw(data, tuning, steps, key)
    judge = make_evaluate(apply, params, split, ranges, batch_size=batch_size)
    assess = _make_assess(apply, _make_tuner(apply, apply_train, tuning), policies_at_once)
    return jax.tree_util.Partial(assess, params, ranges, images, labels, judge)


def draw(
    data: Split | Source, tuning: Tuning, steps: int, key: PRNGKeyArray
) -> tuple[Float[Array, "S B H W C"], Int[Array, "S B"]]:
    """The varied images and the labels of so many steps.

    Raises:
      ValueError: less than one step, or fewer images than a batch has.
    """
    if steps < 1:
        raise ValueError(f"fine-tuning for {steps} steps does nothing: give at least 1")
    each = tuning.passes.steps(len(data)) // tuning.epochs
    order_key, vary_key = jax.random.split(key)
    drawn = batches(data, tuning.batch_size, seed=int(jax.random.bits(order_key)), epochs=-(-steps // each))
    taken = [batch for _, batch in zip(range(steps), drawn, strict=False)]
    images = np.concatenate([batch.images for batch in taken])
    varied = augment(jnp.asarray(images), shift=tuning.shift, flip=tuning.flip, key=vary_key)
    return varied.reshape(steps, -1, *images.shape[1:]), jnp.array([batch.labels for batch in taken])


@functools.lru_cache(maxsize=8)
def _make_tuner(apply: Apply, apply_train: ApplyTrain | None, tuning: Tuning) -> Tune:
    def tune(params: PyTree, ranges: Ranges, images: Array, labels: Array, policy: Int[Array, "L 2"]) -> Learned:
        objective, optimiser = make_program(apply, apply_train, tuning, len(images), use_training_kernels)
        context = (policy, ranges, params if tuning.distill else None)
        learned = begin(params, policy, ranges)
        start = State(learned, optimiser.init(learned), jnp.zeros(2))

        def step(state: State, batch: tuple[Array, Array]) -> tuple[State, None]:
            return take_step(objective, optimiser, state, *batch, context), None

        return jax.lax.scan(step, start, (images, labels))[0].learned

    return tune


@functools.lru_cache(maxsize=8)
def _make_assess(apply: Apply, tune: Tune, policies_at_once: int) -> Callable[..., Float[Array, "N"]]:
    def assess(
        params: PyTree, ranges: Ranges, images: Array, labels: Array, judge: jax.tree_util.Partial, policies: Array
    ) -> Float[Array, "N"]:
        _, *judged_by, _ = judge.args

        def accuracy(policy: Int[Array, "L 2"]) -> Float[Array, ""]:
            learned = tune(params, ranges, images, labels, policy)
            found = as_ranges(apply, learned, images[0], policy, ranges)
            return judge.func(learned.params, *judged_by, found, policy[None])[0]

        return jax.lax.map(accuracy, policies, batch_size=min(policies_at_once, len(policies)))

    return assess


@functools.partial(jax.jit, static_argnums=0)
def _tune_all(
    tune: Tune, params: PyTree, ranges: Ranges, images: Array, labels: Array, policies: Int[Array, "N L 2"]
) -> Learned:
    return jax.lax.map(functools.partial(tune, params, ranges, images, labels), policies)
