"""The accuracy of a network under many policies: the judge of a search."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.judging import count_answers, under_policy
from haqjax.sharding import IMAGE, POLICY, fill_up, place
from haqjax.tracing.hooks import Apply
from haqjax.types import Evaluation, Ranges

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
    mesh: Mesh | None = None,
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
      mesh: devices that share the policies and the micro-batches, see `haqjax.sharding.make_mesh`; None is one device.
        The answers do not depend on their number, to the last bit where `policies_at_once` is 1.

    Returns:
      `evaluate(policies int32 [N, L, 2]) -> accuracy float32 [N]` in 0..1, or `haqjax.types.Evaluation` with the loss
      [N] in nats (infinite where a logit is not finite); traceable. Its arrays are arguments of the compiled program,
      not constants in it.

    Raises:
      ValueError: the split is empty.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> evaluate = make_evaluate(apply, params, split, calibrate(apply, params, [split.images]))
    >>> evaluate(jnp.full((1, 1, 2), 8)).tolist()
    [0.75]
    """
    if not len(split):
        raise ValueError("cannot judge a policy on no images")
    images, labels = in_batches(split, fill_evenly(split, batch_size))
    if mesh is None:
        return jax.tree_util.Partial(_make_judge(apply, policies_at_once, with_loss), params, images, labels, ranges)
    judge = _make_shared_judge(apply, policies_at_once, with_loss, mesh, len(images))
    images, labels = (_share(batches, mesh, blank) for batches, blank in ((images, 0), (labels, -1)))
    params, ranges = place((params, ranges), mesh)
    return jax.tree_util.Partial(judge, params, images, labels, ranges)


def only_finite(judge: jax.tree_util.Partial) -> jax.tree_util.Partial:
    """The same judge with losses, but a policy has no accuracy (NaN) where one of its logits is not finite.

    So it can never be chosen, however well it does on the other images.

    >>> judge = jax.tree_util.Partial(lambda policies: Evaluation(jnp.array([0.5, 0.9]), jnp.array([1.0, jnp.inf])))
    >>> only_finite(judge)(jnp.full((2, 1, 2), 8)).accuracy.tolist()
    [0.5, nan]
    """
    return jax.tree_util.Partial(_only_finite, judge)


def _only_finite(judge: jax.tree_util.Partial, *asked: Array) -> Array | Evaluation:
    answer = judge(*asked)
    if not isinstance(answer, Evaluation):
        return answer
    return Evaluation(jnp.where(jnp.isfinite(answer.loss), answer.accuracy, jnp.nan), answer.loss)


def fill_evenly(split: Split, batch_size: int | None = None) -> int:
    """Images in each micro-batch: as few of these as if they held `batch_size`, or what suits the device.

    >>> fill_evenly(Split(np.zeros((10, 2, 2, 1), np.float32), np.zeros(10, np.int32)), 4)
    4
    >>> fill_evenly(Split(np.zeros((9, 2, 2, 1), np.float32), np.zeros(9, np.int32)), 8)
    5
    """
    most = batch_size or suggest_batch(split.images.shape[1] * split.images.shape[2])
    return -(-len(split) // -(-len(split) // most))


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


def _share(batches: Array, mesh: Mesh, blank: float) -> Array:
    """Micro-batches over the axis `image`, each device with as many: blank ones are added."""
    missing = -len(batches) % mesh.shape[IMAGE]
    padding = ((0, missing), *((0, 0),) * (batches.ndim - 1))
    return place(np.pad(np.asarray(batches), padding, constant_values=blank), mesh, IMAGE)


@functools.cache
def _make_judge(apply: Apply, policies_at_once: int, with_loss: bool) -> Callable[..., Array | Evaluation]:
    """The judge on one device."""

    def judge(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Int[Array, "N L 2"]
    ) -> Array | Evaluation:
        def measure(policy: Int[Array, "L 2"]) -> tuple[Array, Array | None]:
            parts = _count(apply, with_loss, params, images, labels, ranges, policy)
            return jax.tree.map(lambda part: add_up(part) / (labels >= 0).sum(), parts)

        accuracy, loss = jax.lax.map(measure, policies, batch_size=min(policies_at_once, len(policies)))
        return Evaluation(accuracy, loss) if with_loss else accuracy

    return judge


@functools.cache
def _make_shared_judge(
    apply: Apply, policies_at_once: int, with_loss: bool, mesh: Mesh, batches: int
) -> Callable[..., Array | Evaluation]:
    """The judge on a mesh: what each micro-batch gives is gathered first, and then added up in one order."""

    def count(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Int[Array, "n L 2"]
    ) -> tuple[Array, Array | None]:
        measure = lambda policy: _count(apply, with_loss, params, images, labels, ranges, policy)
        parts = jax.lax.map(measure, policies, batch_size=min(policies_at_once, len(policies)))
        gather = lambda part: jax.lax.all_gather(
            jax.lax.all_gather(part, IMAGE, axis=1, tiled=True), POLICY, tiled=True
        )
        return jax.tree.map(gather, parts)

    whole = PartitionSpec()
    specs = (whole, PartitionSpec(IMAGE), PartitionSpec(IMAGE), whole, PartitionSpec(POLICY))
    over = jax.shard_map(count, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)

    def judge(
        params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Int[Array, "N L 2"]
    ) -> Array | Evaluation:
        parts = over(params, images, labels, ranges, fill_up(policies, mesh.shape[POLICY]))
        sums = jax.tree.map(lambda part: add_up(part[: len(policies), :batches]), parts)
        accuracy, loss = jax.tree.map(lambda total: _divide(total, (labels >= 0).sum()), sums)
        return Evaluation(accuracy, loss) if with_loss else accuracy

    return judge


def _count(
    apply: Apply, with_loss: bool, params: PyTree, images: Array, labels: Array, ranges: Ranges,
    policy: Int[Array, "L 2"],
) -> tuple[Int[Array, "m"], Float[Array, "m"] | None]:  # fmt: skip
    """Right answers in each micro-batch under one policy, and the sum of their losses."""
    quantised = under_policy(apply, params, images[0], policy, ranges)

    def count(batch: tuple[Array, Array]) -> tuple[Array, Array | None]:
        right, loss = count_answers(quantised(params, batch[0]), batch[1])
        return right, loss if with_loss else None

    return jax.lax.map(count, (images, labels))


def _divide(totals: Array, count: Int[Array, ""]) -> Float[Array, "N"]:
    """Each total by the count, rounded as one quotient is: XLA would multiply all by one reciprocal."""
    return totals / jax.lax.optimization_barrier(jnp.broadcast_to(count, totals.shape))


def add_up(parts: Array) -> Array:
    """The sum over the last axis, of halves: the same order on every device, whatever is beside it.

    >>> add_up(jnp.arange(5)).item()
    10
    """
    while (count := parts.shape[-1]) > 1:
        half = -(-count // 2)
        rest = parts[..., half:]
        filled = jnp.concatenate([rest, jnp.zeros_like(parts[..., : 2 * half - count])], axis=-1)
        parts = parts[..., :half] + filled
    return parts[..., 0]
