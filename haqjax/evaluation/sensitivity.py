"""Sensitivity of the loss to each layer's bit-widths, measured or estimated in four ways."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from haqjax.allocation.additive import guard, rank_correlation
from haqjax.allocation.choices import allowed
from haqjax.data import Split
from haqjax.evaluation.batches import balance_batch_size, first_batch, split_into_batches
from haqjax.evaluation.curvature import estimate_fisher_sensitivity, estimate_hessian_sensitivity
from haqjax.evaluation.evaluator import make_evaluator, unpack
from haqjax.policies.actions import to_bits
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.integer_layers import prepare_network
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, with_hook
from haqjax.tracing.integer_products import Arithmetic
from haqjax.types import FULL_PRECISION, Bounds, Evaluation, Evaluator, Ranges

KINDS = ("loss", "fisher", "hessian", "kl")
AT_ONCE = 16  # policies a call


def measure_sensitivities(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    bounds: Bounds,
    *,
    key: PRNGKeyArray,
    kinds: Sequence[str] = KINDS,
    names: Sequence[str] | None = None,
) -> dict[str, Float[np.ndarray, "L 2 8"]]:
    """Measures sensitivities of several kinds, in nats.

    They are for `haqjax.allocation.integer_program` or `haqjax.searchers.make_ilp`. "loss": the rise of the loss with
    one entry quantised, evaluated. "kl": the divergence of the answers from the float network's then. "fisher" and
    "hessian": half the second derivative times the squared quantisation error.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images; only "kl" does without their labels.
      ranges: from `calibrate`.
      bounds: entries of widths that they do not allow are 0 and not measured.
      key: of the Hessian's random signs.
      kinds: of `KINDS`.
      names: of the layers, for the warning.

    Returns:
      Sensitivities by kind. One that is not finite counts as the worst that is, and a warning names it.

    Raises:
      ValueError: an unknown kind, or an empty split.

    >>> from haqjax.policies.bounds import make_bounds
    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges, limits = calibrate(apply, params, [split.images]), make_bounds(1, low=2, pinned={})
    >>> found = measure_sensitivities(apply, params, split, ranges, limits, key=jax.random.key(0))
    >>> {kind: values.shape for kind, values in found.items()}
    {'loss': (1, 2, 8), 'fisher': (1, 2, 8), 'hessian': (1, 2, 8), 'kl': (1, 2, 8)}
    """
    makers: dict[str, Callable[[], Float[np.ndarray, "L 2 8"]]] = {
        "loss": lambda: measure_loss_sensitivity(apply, params, split, ranges, bounds),
        "fisher": lambda: estimate_fisher_sensitivity(apply, params, split, ranges),
        "hessian": lambda: estimate_hessian_sensitivity(apply, params, split, ranges, key=key),
        "kl": lambda: measure_kl_sensitivity(apply, params, split.images, ranges, bounds),
    }
    unknown = [kind for kind in kinds if kind not in makers]
    if unknown:
        raise ValueError(f"unknown sensitivity {unknown[0]!r}: there are {', '.join(KINDS)}")
    return {kind: guard(np.where(allowed(bounds), makers[kind](), 0), bounds, names, factor=0) for kind in kinds}


def measure_loss_sensitivity(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """Measures the rise of the mean cross entropy when one entry alone is quantised, in nats.

    Evaluates each width of each entry that the bounds allow, everything else in float; 0 stands at all others.

    Raises:
      ValueError: the split is empty.
    """
    return probe_entries(make_evaluator(apply, params, split, ranges), bounds)


def measure_kl_sensitivity(
    apply: Apply, params: PyTree, images: Float[Any, "B H W C"], ranges: Ranges, bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """Measures the Kullback-Leibler divergence of the answers when one entry alone is quantised, in nats.

    See `make_divergence_evaluator`.
    """
    return probe_entries(make_divergence_evaluator(apply, params, images, ranges), bounds)


def probe_entries(evaluator: Evaluator, bounds: Bounds) -> Float[np.ndarray, "L 2 8"]:
    """Measures by how much the loss rises over the float network's when one entry alone is quantised.

    Args:
      evaluator: compiled for `AT_ONCE` policies; its losses are read.
      bounds: the widths to try; 0 stands at all others.

    >>> from haqjax.policies.bounds import make_bounds
    >>> def evaluate(evaluator, policies, least):
    ...     return Evaluation(jnp.zeros(len(policies)), jnp.exp2(-policies[:, 0, 0] / 1.0))
    >>> evaluator = Evaluator(evaluate, None, None, None, None)
    >>> print(probe_entries(evaluator, make_bounds(1, low=2, high=4, pinned={}))[0, 0])
    [0.     0.25   0.125  0.0625 0.     0.     0.     0.    ]
    """
    there = allowed(bounds)
    places = np.argwhere(there)  # layer, column, width - 1
    policies = np.full((len(places) + 1, *there.shape[:2]), FULL_PRECISION, np.int32)
    policies[np.arange(len(places)), places[:, 0], places[:, 1]] = places[:, 2] + 1
    losses = _evaluate_in_turn(evaluator, policies)
    found = np.zeros(there.shape)
    found[there] = losses[:-1] - losses[-1]
    return found


def _evaluate_in_turn(evaluator: Evaluator, policies: Int[np.ndarray, "N L 2"]) -> Float[np.ndarray, "N"]:
    """Evaluates the losses of any number of policies, `AT_ONCE` in a call of one compiled program."""
    missing = -len(policies) % AT_ONCE
    rows = np.concatenate([policies, np.repeat(policies[-1:], missing, axis=0)])
    parts = [_evaluate_losses(evaluator, jnp.asarray(rows[at : at + AT_ONCE])) for at in range(0, len(rows), AT_ONCE)]
    return np.concatenate(parts).astype(float)[: len(policies)]


def make_divergence_evaluator(
    apply: Apply, params: PyTree, images: Float[Any, "B H W C"], ranges: Ranges, *, batch_size: int | None = None
) -> Evaluator:
    """Makes an evaluator that needs no labels: of the distance of a policy's answers from the float network's.

    Returns:
      An evaluator whose losses are the Kullback-Leibler divergence of the quantised network's probabilities of classes
      from the float one's, `sum p log(p / q)`, in nats, averaged over the images; its accuracies are NaN.

    Raises:
      ValueError: no images.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> images = np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1)
    >>> evaluator = make_divergence_evaluator(apply, params, images, calibrate(apply, params, [images]))
    >>> evaluator(jnp.full((1, 1, 2), 32)).loss.tolist()
    [0.0]
    """
    count = len(jax.tree.leaves(images)[0])
    if not count:
        raise ValueError("cannot compare answers on no images")
    split = Split(jax.tree.map(np.asarray, images), np.zeros(count, np.int32))
    batches, labels = split_into_batches(split, balance_batch_size(split, batch_size))
    expected = _float_answers(apply, params, batches)
    arithmetic = choose_arithmetic(apply, params, first_batch(batches), ranges)
    return Evaluator(_make_divergence(apply, arithmetic), params, batches, labels, ranges, expected)


def draw_policies(bounds: Bounds, count: int, key: PRNGKeyArray) -> Int[np.ndarray, "N L 2"]:
    """Draws policies whose entries are equally likely to be any width that the bounds allow.

    >>> from haqjax.policies.bounds import make_bounds
    >>> draw_policies(make_bounds(3, low=4, high=4), 2, jax.random.key(0))[:, 1].tolist()
    [[4, 4], [4, 4]]
    """
    return np.asarray(to_bits(jax.random.uniform(key, (count, *bounds.low.shape)), bounds))


def check_additive(
    sensitivities: Mapping[str, Float[np.ndarray, "L 2 8"]], evaluator: Evaluator, policies: Int[np.ndarray, "N L 2"]
) -> dict[str, float]:
    """Correlates the sums of sensitivities with the true losses of policies: Spearman's rank correlation by kind.

    Args:
      sensitivities: from `measure_sensitivities`.
      evaluator: its losses are read.
      policies: such as `draw_policies`; all are evaluated, once.

    >>> def evaluate(evaluator, policies, least):
    ...     return Evaluation(jnp.zeros(len(policies)), -policies.sum((1, 2)) / 1.0)
    >>> evaluator = Evaluator(evaluate, None, None, None, None)
    >>> policies = np.array([[[2, 2]], [[4, 2]], [[4, 8]]])
    >>> found = check_additive({"sum": np.broadcast_to(-np.arange(8.0), (1, 2, 8))}, evaluator, policies)
    >>> {kind: round(value, 3) for kind, value in found.items()}
    {'sum': 1.0}
    """
    losses = _evaluate_in_turn(evaluator, np.asarray(policies))
    return {kind: rank_correlation(values, policies, losses) for kind, values in sensitivities.items()}


@jax.jit
def _evaluate_losses(evaluator: Evaluator, policies: Int[Array, "N L 2"]) -> Float[Array, "N"]:
    return evaluator(policies).loss


@functools.partial(jax.jit, static_argnums=0)
def _float_answers(apply: Apply, params: PyTree, batches: Array) -> Float[Array, "m b C"]:
    """Computes logarithms of the float network's probabilities of classes."""
    return jax.lax.map(lambda images: jax.nn.log_softmax(with_hook(apply, use_cpu_kernels)(params, images)), batches)


@functools.cache
def _make_divergence(apply: Apply, arithmetic: tuple[Arithmetic, ...]) -> Callable[..., Evaluation]:
    def evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array | float) -> Evaluation:
        params, images, labels, ranges = unpack(evaluator)

        def measure(policy: Int[Array, "L 2"]) -> Float[Array, ""]:
            quantised = prepare_network(apply, params, first_batch(images), policy, ranges, arithmetic)

            def diverge(batch: tuple[Array, Array, Array]) -> Float[Array, ""]:
                x, there, expected = batch
                found = jax.nn.log_softmax(quantised(params, x))
                return jnp.where(there >= 0, (jnp.exp(expected) * (expected - found)).sum(-1), 0).sum()

            return jax.lax.map(diverge, (images, labels, evaluator.extra)).sum() / (labels >= 0).sum()

        loss = jax.lax.map(measure, policies)
        return Evaluation(jnp.full_like(loss, jnp.nan), loss)

    return evaluate
