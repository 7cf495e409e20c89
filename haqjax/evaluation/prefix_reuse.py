"""Evaluation of policies that begin like a known one by partial evaluation of the network: its prefix runs once."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.answers import answer_images, average, sum_images
from haqjax.evaluation.batches import balance_batch_size, first_batch, split_into_batches
from haqjax.evaluation.evaluator import EvaluationPlan, unpack
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.integer_layers import LayerOperands, prepare_layers, with_operands
from haqjax.tracing.hooks import Apply
from haqjax.tracing.integer_products import Arithmetic
from haqjax.tracing.partial_eval import SplitProgram, split_program
from haqjax.types import Evaluation, Evaluator, LayerTable, Ranges

CUTS = 3  # each one compiles the rest of the network again
MOST_BYTES = 2**27  # that the activation a cut is made at may take; what is kept holds skips over the cut, too
FLOAT = 4  # bytes


class _Prefix(NamedTuple):
    """A known policy, with the activations that it has at each cut."""

    policy: Int[Array, "L 2"]
    activations: list[list[Array]]  # a list a cut: every tensor that crosses it, [micro-batches, images, ...]


def make_prefix_evaluator(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    base: Int[Array, "L 2"],
    cuts: Sequence[int],
    *,
    batch_size: int | None = None,
    arithmetic: Sequence[Arithmetic] | None = None,
) -> Evaluator:
    """Makes an evaluator that goes on from the activations of a known policy, for policies that begin like it.

    Probes of single layers are such policies: they are the widest policy but for one entry. The activations of the
    known policy at each cut are computed here, for all images, and kept in memory. A policy goes on from the last cut
    before the first layer where it differs.

    Args:
      apply, params, split, ranges, batch_size, arithmetic: as for `haqjax.evaluation.make_evaluator`.
      base: the known policy.
      cuts: numbers of first layers whose results are kept, ascending; such as `choose_cuts` gives.

    Returns:
      An evaluator that agrees with that of `make_evaluator` to the last bit. One device; under `vmap` no work
      is saved.

    Raises:
      ValueError: the split is empty, or the cuts do not ascend within the network.

    >>> from haqjax.quantizers import calibrate
    >>> apply = lambda params, x: jax.nn.relu(x.reshape(len(x), -1) @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.eye(4), "b": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges, base = calibrate(apply, params, [split.images]), jnp.full((2, 2), 8)
    >>> evaluator = make_prefix_evaluator(apply, params, split, ranges, base, [1])
    >>> evaluator(jnp.array([[[8, 8], [4, 8]], [[4, 8], [8, 8]]])).accuracy.tolist()
    [0.75, 0.75]
    """
    cuts = tuple(int(cut) for cut in cuts)
    if not len(split):
        raise ValueError("cannot evaluate a policy on no images")
    if not all(0 < a < b for a, b in itertools.pairwise((*cuts, len(base)))):
        raise ValueError(f"cuts {cuts}: give ascending numbers of layers, from 1 to below {len(base)}")
    images, labels = split_into_batches(split, balance_batch_size(split, batch_size))
    base = jnp.asarray(base, jnp.int32)
    if arithmetic is None:
        arithmetic = choose_arithmetic(apply, params, split.first(1), ranges)
    plan = EvaluationPlan(1, tuple(arithmetic))
    prefix = _Prefix(base, _run_heads(apply, cuts, plan.in_floats, params, images, ranges, base))
    return Evaluator(_make_function(apply, cuts, plan), params, images, labels, ranges, prefix)


def choose_cuts(layers: LayerTable, images: int, count: int = CUTS) -> tuple[int, ...]:
    """Chooses the cuts that save most work, if every layer is probed as often; none where nothing fits the memory.

    A cut is where an activation takes little. What skips over it is kept as well, which can be some times as much.

    Args:
      images: whose activations at each cut are to be kept.

    >>> from haqjax.models import outline
    >>> network = outline("resnet20", classes=10, image_size=32)
    >>> from haqjax.tracing.layer_table import layers as read_layers
    >>> choose_cuts(read_layers(network.apply, network.params, network.example), images=1000)
    (6, 11, 16)
    """
    places = np.prod(np.asarray(layers.in_size, np.int64), axis=-1) * np.asarray(layers.in_channels, np.int64)
    there = [cut for cut in range(1, len(layers)) if FLOAT * images * places[cut] <= MOST_BYTES]
    before = _work_before(layers)

    @functools.cache
    def best(cut: int, more: int) -> tuple[float, tuple[int, ...]]:
        """Finds the most that a cut and so many more after it save, summed over layers, and those cuts."""
        options: list[tuple[float, tuple[int, ...]]] = [(float(before[cut] * (len(layers) - cut)), ())]
        for later in there if more else []:
            if later > cut:
                saving, others = best(later, more - 1)
                options.append((float(before[cut] * (later - cut)) + saving, (later, *others)))
        return max(options, key=lambda option: option[0])

    return best(0, min(count, len(there)))[1]


def saved_fraction(layers: LayerTable, cuts: Sequence[int]) -> float:
    """Computes the fraction of the work that cuts save where every layer is probed as often."""
    last = np.searchsorted(np.asarray(cuts), np.arange(len(layers)), side="right")  # cuts up to each layer
    return float(_work_before(layers)[np.array([0, *cuts])[last]].mean())


def _work_before(layers: LayerTable) -> Float[np.ndarray, "L"]:
    """Computes the fraction of the work that comes before each layer."""
    macs = np.asarray(layers.macs, float)
    return (np.cumsum(macs) - macs) / macs.sum()


def split_network(
    apply: Apply,
    cut: int,
    params: PyTree,
    images: Array,
    ranges: Ranges,
    operands: LayerOperands,
    arithmetic: Sequence[Arithmetic] | None = None,
) -> SplitProgram:
    """Splits the network on one micro-batch before layer `cut`."""

    def run(params: PyTree, first: tuple[Array, tuple], rest: tuple) -> PyTree:
        return with_operands(apply, (*first[1], *rest), ranges, arithmetic)(params, first[0])

    return split_program(run, params, (first_batch(images), operands[:cut]), operands[cut:])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_heads(
    apply: Apply,
    cuts: tuple[int, ...],
    arithmetic: tuple[Arithmetic, ...],
    params: PyTree,
    images: Array,
    ranges: Ranges,
    base: Int[Array, "L 2"],
) -> list[list[Array]]:
    """Computes the activations of the known policy at each cut, [micro-batches, images, ...]."""
    operands = prepare_layers(apply, params, first_batch(images), base, ranges, arithmetic).operands()
    heads = [split_network(apply, cut, params, images, ranges, operands, arithmetic).head for cut in cuts]

    def run(batch: Array) -> list[list[Array]]:
        return [head(params, (batch, operands[:cut])) for head, cut in zip(heads, cuts, strict=True)]

    return jax.lax.map(run, images)


@functools.cache
def _make_function(apply: Apply, cuts: tuple[int, ...], plan: EvaluationPlan) -> Callable[..., Evaluation]:
    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        params, images, labels, ranges = unpack(evaluator)
        prefix: _Prefix = evaluator.extra

        def sums(arithmetic: Sequence[Arithmetic]) -> tuple[Array, Array]:
            def run_whole(operands: LayerOperands) -> tuple[Array, Array]:
                network = with_operands(apply, operands, ranges, arithmetic)
                return jax.lax.map(lambda batch: answer_images(network(params, batch[0]), batch[1]), (images, labels))

            def run_from(cut: int, kept: list[Array], operands: LayerOperands) -> tuple[Array, Array]:
                tail = split_network(apply, cut, params, images, ranges, operands, arithmetic).tail

                def run(batch: tuple[list[Array], Array]) -> tuple[Array, Array]:
                    return answer_images(tail(params, batch[0], operands[cut:]), batch[1])

                return jax.lax.map(run, (kept, labels))

            branches: list[Callable] = [run_whole]
            pairs = zip(cuts, prefix.activations, strict=True)
            branches += [functools.partial(run_from, cut, kept) for cut, kept in pairs]

            def measure(policy: Int[Array, "L 2"]) -> tuple[Array, Array]:
                differs = jnp.append((policy != prefix.policy).any(-1), True)
                branch = (jnp.array(cuts) <= jnp.argmax(differs)).sum()
                operands = prepare_layers(apply, params, first_batch(images), policy, ranges, arithmetic).operands()
                return jax.tree.map(sum_images, jax.lax.switch(branch, branches, operands))

            return jax.lax.map(measure, policies)

        return average(plan.compute(sums, policies), labels)

    return evaluate
