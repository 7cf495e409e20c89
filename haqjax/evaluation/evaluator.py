"""Accuracy and loss of a network under many policies, evaluated on one split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from haqjax.data import Split
from haqjax.data.labels import check_answers
from haqjax.evaluation.answers import answer_images, average, sum_images
from haqjax.evaluation.batches import balance_batch_size, first_batch, split_into_batches
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.integer_layers import Prepared, prepare_layers, with_prepared
from haqjax.sharding import IMAGE, POLICY, pad_policies, place
from haqjax.tracing.hooks import Apply, only_arrays
from haqjax.tracing.integer_products import Arithmetic
from haqjax.tracing.parameters import check_params
from haqjax.types import ACTIVATION, FULL_PRECISION, WIDTHS, Evaluation, Evaluator, Ranges


class EvaluationPlan(NamedTuple):
    """How policies are evaluated; the answers do not depend on it."""

    policies_at_once: int
    arithmetic: tuple[Arithmetic, ...]  # one entry a layer

    @property
    def in_floats(self) -> tuple[Arithmetic, ...]:
        """The arithmetic of policies that leave tensors as they are."""
        return tuple(layer._replace(form="float32") for layer in self.arithmetic)

    def compute(self, sums: Callable[[Sequence[Arithmetic]], PyTree], policies: Int[Array, "N L 2"]) -> PyTree:
        """Computes `sums(arithmetic)`; where a policy leaves tensors as they are, all of them go by floats."""
        if self.in_floats == self.arithmetic:
            return sums(self.arithmetic)
        wide = (policies > WIDTHS).any()
        return jax.lax.cond(wide, lambda: sums(self.in_floats), lambda: sums(self.arithmetic))


def make_evaluator(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    *,
    batch_size: int | None = None,
    policies_at_once: int = 1,
    mesh: Mesh | None = None,
    arithmetic: Sequence[Arithmetic] | None = None,
) -> Evaluator:
    """Makes the evaluator of a search: accuracy and mean cross entropy of each policy on all images of a split.

    Weights are quantised once a policy, and the images go through in micro-batches. A logit that is not finite makes
    its image count as wrong, and the loss of its policy infinite.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images, or other inputs of the network, to evaluate on.
      ranges: from `calibrate`.
      batch_size: images at a time at most; None picks what suits the device.
      policies_at_once: policies evaluated side by side. On a CPU one is fastest; an accelerator wants more.
      mesh: devices to shard policies and micro-batches over, see `haqjax.sharding.make_mesh`; None is one device.
      arithmetic: how each layer's products are computed, see `haqjax.evaluation.tune_arithmetic`; None chooses float32.

    Results do not depend on any of the last four, to the last bit.

    Returns:
      An evaluator whose arrays are arguments of the compiled program, not constants in it: a second one of the same
      `apply` and shapes does not compile again.

    Raises:
      ValueError: the split is empty, or has a label beyond the network's classes; a parameter that is not finite.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> evaluator = make_evaluator(apply, params, split, calibrate(apply, params, [split.images]))
    >>> evaluator(jnp.full((1, 1, 2), 8)).accuracy.tolist()
    [0.75]
    """
    if not len(split):
        raise ValueError("cannot evaluate a policy on no images")
    check_params(params)
    apply, params = only_arrays(apply, params)
    check_answers(apply, params, split, split.first(1))
    images, labels = split_into_batches(split, balance_batch_size(split, batch_size))
    if arithmetic is None:
        arithmetic = choose_arithmetic(apply, params, split.first(1), ranges)
    plan = EvaluationPlan(policies_at_once, fit_arithmetic(arithmetic, policies_at_once))
    if mesh is None:
        return Evaluator(_make_function(apply, plan), params, images, labels, ranges)
    function = _make_sharded_function(apply, plan, mesh)
    images = jax.tree.map(lambda leaf: _shard_batches(leaf, mesh, blank=0), images)
    labels = _shard_batches(labels, mesh, blank=-1)
    params, ranges = place((params, ranges), mesh)
    return Evaluator(function, params, images, labels, ranges, mesh=mesh)


def only_finite(evaluator: Evaluator) -> Evaluator:
    """Makes the same evaluator, except that a policy has no accuracy (NaN) where one of its logits is not finite.

    So it can never be chosen, however well it does on the other images. Its infinite loss says that it is one of them;
    where losses are not measured, accuracies stay as they are.

    >>> unsafe = Evaluator(lambda *_: Evaluation(jnp.array([0.5, 0.9]), jnp.array([1.0, jnp.inf])), *[None] * 4)
    >>> only_finite(unsafe)(jnp.full((2, 1, 2), 8)).accuracy.tolist()
    [0.5, nan]
    """
    return _wrap(_mask_not_finite, evaluator)


def only_weights(evaluator: Evaluator) -> Evaluator:
    """Makes the same evaluator, except that it quantises weights alone, as where bits only save storage.

    >>> def evaluate(evaluator, policies, least):
    ...     return Evaluation(jnp.zeros(len(policies)), policies.sum((1, 2)) / 1.0)
    >>> only_weights(Evaluator(evaluate, None, None, None, None))(jnp.full((1, 1, 2), 8)).loss.tolist()
    [40.0]
    """
    return _wrap(_leave_activations, evaluator)


def fit_arithmetic(arithmetic: Sequence[Arithmetic], policies_at_once: int) -> tuple[Arithmetic, ...]:
    """Returns arithmetic that the platform has for so many policies side by side.

    XLA has no products of bfloat16 with float32 sums on a CPU where each policy has weights of its own.
    """
    if policies_at_once == 1 or jax.default_backend() != "cpu":
        return tuple(arithmetic)
    return tuple(layer._replace(form="float32") if layer.form == "bfloat16" else layer for layer in arithmetic)


def unpack(evaluator: Evaluator) -> tuple[PyTree, PyTree, Int[Array, "m b"], Ranges]:
    """Returns the parameters, images, labels and ranges of an evaluator that has them all."""
    images, labels, ranges = evaluator.images, evaluator.labels, evaluator.ranges
    assert images is not None and labels is not None and ranges is not None
    return evaluator.params, images, labels, ranges


@functools.cache
def _make_function(apply: Apply, plan: EvaluationPlan) -> Callable[..., Evaluation]:
    """Makes the function of an evaluator on one device."""

    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        params, images, labels, ranges = unpack(evaluator)

        def sums(arithmetic: Sequence[Arithmetic]) -> tuple[Array, Array]:
            def measure(prepared: Prepared) -> tuple[Array, Array]:
                return jax.tree.map(sum_images, _answer(apply, params, images, labels, ranges, prepared, arithmetic))

            def prepare(policy: Int[Array, "L 2"]) -> Prepared:
                return prepare_layers(apply, params, first_batch(images), policy, ranges, arithmetic)

            return map_policies(prepare, measure, policies, plan.policies_at_once)

        return average(plan.compute(sums, policies), labels)

    return evaluate


@functools.cache
def _make_sharded_function(apply: Apply, plan: EvaluationPlan, mesh: Mesh) -> Callable[..., Evaluation]:
    """Makes the function of an evaluator on a mesh.

    The answers to all images are gathered first and then added up in one order, so that the sums depend on no number
    of devices.
    """

    def answer(
        arithmetic: Sequence[Arithmetic], params: PyTree, images: Array, labels: Array, ranges: Ranges, policies: Array
    ) -> tuple[Array, Array]:
        def measure(prepared: Prepared) -> tuple[Array, Array]:
            return _answer(apply, params, images, labels, ranges, prepared, arithmetic)

        def prepare(policy: Int[Array, "L 2"]) -> Prepared:
            return prepare_layers(apply, params, first_batch(images), policy, ranges, arithmetic)

        answers = map_policies(prepare, measure, policies, plan.policies_at_once)
        answers = jax.tree.map(lambda part: jax.lax.all_gather(part, IMAGE, axis=1, tiled=True), answers)
        return jax.tree.map(lambda part: jax.lax.all_gather(part, POLICY, tiled=True), answers)

    whole = PartitionSpec()
    specs = (whole, PartitionSpec(IMAGE), PartitionSpec(IMAGE), whole, PartitionSpec(POLICY))

    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        params, images, labels, ranges = unpack(evaluator)

        def sums(arithmetic: Sequence[Arithmetic]) -> tuple[Array, Array]:
            function = functools.partial(answer, arithmetic)
            sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
            found = sharded(params, images, labels, ranges, pad_policies(policies, mesh.shape[POLICY]))
            return jax.tree.map(lambda part: sum_images(part[: len(policies)]), found)

        return average(plan.compute(sums, policies), labels)

    return evaluate


def map_policies(
    prepare: Callable[[Int[Array, "L 2"]], PyTree],
    run: Callable[[PyTree], PyTree],
    policies: Int[Array, "N L 2"],
    at_once: int,
) -> PyTree:
    """Computes `run(prepare(policy))` for each policy, so many runs side by side.

    Weights are prepared for one policy after another all the same: side by side their sums could be taken in another
    order.

    >>> map_policies(lambda policy: policy.sum(), lambda total: 2 * total, jnp.ones((3, 1, 2), jnp.int32), 2).tolist()
    [4, 4, 4]
    """
    count = len(policies)
    at_once = min(at_once, count)
    if at_once == 1:
        return jax.lax.map(lambda policy: run(prepare(policy)), policies)
    groups = pad_policies(policies, at_once).reshape(-1, at_once, *policies.shape[1:])
    found = jax.lax.map(lambda group: jax.vmap(run)(jax.lax.map(prepare, group)), groups)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def _answer(
    apply: Apply,
    params: PyTree,
    images: Array,
    labels: Array,
    ranges: Ranges,
    prepared: Prepared,
    arithmetic: Sequence[Arithmetic],
) -> tuple[Bool[Array, "m b"], Float[Array, "m b"]]:
    """Tells for each image whether the answer under one policy is right, and its loss."""
    quantised = with_prepared(apply, prepared, ranges, arithmetic)
    return jax.lax.map(lambda batch: answer_images(quantised(params, batch[0]), batch[1]), (images, labels))


def _shard_batches(batches: Array, mesh: Mesh, blank: float) -> Array:
    """Cuts micro-batches along the axis `image`, as many for each device: blank ones are added."""
    missing = -len(batches) % mesh.shape[IMAGE]
    padding = ((0, missing), *((0, 0),) * (batches.ndim - 1))
    return place(np.pad(np.asarray(batches), padding, constant_values=blank), mesh, IMAGE)


def _wrap(function: Callable[..., Evaluation], inner: Evaluator) -> Evaluator:
    bare = dataclasses.replace(inner, soft_loss=None)  # the wrapper carries it
    options: dict = dict(soft_loss=inner.soft_loss, races=inner.races, mesh=inner.mesh)
    return Evaluator(function, None, None, None, None, bare, **options)


def _leave_activations(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
    return evaluator.extra(policies.at[..., ACTIVATION].set(FULL_PRECISION), least)


def _mask_not_finite(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
    accuracy, loss = evaluator.extra(policies, least)
    return Evaluation(jnp.where(jnp.isposinf(loss), jnp.nan, accuracy), loss)
