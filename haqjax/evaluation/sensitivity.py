"""What each layer loses at each width, measured or foretold in four ways."""

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
from haqjax.evaluation.curvature import fisher_sensitivity, hessian_sensitivity
from haqjax.evaluation.evaluator import in_batches, make_evaluate, suggest_batch
from haqjax.evaluation.judging import under_policy
from haqjax.policies.actions import to_bits
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Apply, with_hook
from haqjax.types import FULL_PRECISION, Bounds, Ranges

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
    """Sensitivities of several kinds, all in nats, for `haqjax.allocation.integer_program` or
    `haqjax.searchers.make_ilp`.

    "loss": what the loss rises by with one entry quantised, evaluated. "kl": how far the answers move from the float
    network's then. "fisher" and "hessian": half the second derivative times the squared quantisation error.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes].
      split: the images; only "kl" does without their labels.
      ranges: from `calibrate`.
      bounds: entries of widths that they do not allow are 0 and not measured.
      key: of the Hessian's random signs.
      kinds: of `KINDS`.
      names: of the layers, for the warning.

    Returns:
      By kind. What was not finite is as bad as the worst that was, and a warning names it.

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
        "loss": lambda: loss_sensitivity(apply, params, split, ranges, bounds),
        "fisher": lambda: fisher_sensitivity(apply, params, split, ranges),
        "hessian": lambda: hessian_sensitivity(apply, params, split, ranges, key=key),
        "kl": lambda: kl_sensitivity(apply, params, split.images, ranges, bounds),
    }
    unknown = [kind for kind in kinds if kind not in makers]
    if unknown:
        raise ValueError(f"unknown sensitivity {unknown[0]!r}: there are {', '.join(KINDS)}")
    return {kind: guard(np.where(allowed(bounds), makers[kind](), 0), bounds, names, factor=0) for kind in kinds}


def loss_sensitivity(
    apply: Apply, params: PyTree, split: Split, ranges: Ranges, bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """What the mean cross entropy rises by when one entry alone is quantised, in nats; 0 where bounds do not allow it.

    Evaluates each allowed width of each entry, everything else in float.

    Raises:
      ValueError: the split is empty.
    """
    return probe_entries(make_evaluate(apply, params, split, ranges, with_loss=True), bounds)


def kl_sensitivity(
    apply: Apply, params: PyTree, images: Float[Any, "B H W C"], ranges: Ranges, bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """The divergence of the answers with one entry quantised from the float network's; see `make_divergence`."""
    return probe_entries(make_divergence(apply, params, images, ranges), bounds)


def probe_entries(judge: jax.tree_util.Partial, bounds: Bounds) -> Float[np.ndarray, "L 2 8"]:
    """By how much a judge's word of the float network rises when one entry alone is quantised.

    Args:
      judge: policies [N, L, 2] -> losses [N], or a `Evaluation` with losses; compiled for `AT_ONCE` policies.
      bounds: the widths to try; 0 stands at all others.

    >>> from haqjax.policies.bounds import make_bounds
    >>> judge = jax.tree_util.Partial(lambda policies: jnp.exp2(-policies[:, 0, 0] / 1.0))
    >>> print(probe_entries(judge, make_bounds(1, low=2, high=4, pinned={}))[0, 0])
    [0.     0.25   0.125  0.0625 0.     0.     0.     0.    ]
    """
    there = allowed(bounds)
    layer_costs = np.argwhere(there)
    policies = np.full((len(layer_costs) + 1, *there.shape[:2]), FULL_PRECISION, np.int32)
    rows = np.arange(len(layer_costs))
    policies[rows, layer_costs[:, 0], layer_costs[:, 1]] = layer_costs[:, 2] + 1
    losses = judge_in_turn(judge, policies)
    found = np.zeros(there.shape)
    found[there] = losses[:-1] - losses[-1]
    return found


def judge_in_turn(judge: jax.tree_util.Partial, policies: Int[np.ndarray, "N L 2"]) -> Float[np.ndarray, "N"]:
    """The losses of any number of policies, `AT_ONCE` in a call of one compiled program."""
    missing = -len(policies) % AT_ONCE
    rows = np.concatenate([policies, np.repeat(policies[-1:], missing, axis=0)])
    parts = [_judge(judge, jnp.asarray(rows[at : at + AT_ONCE])) for at in range(0, len(rows), AT_ONCE)]
    return np.concatenate(parts).astype(float)[: len(policies)]


def make_divergence(
    apply: Apply, params: PyTree, images: Float[Any, "B H W C"], ranges: Ranges, *, batch_size: int | None = None
) -> jax.tree_util.Partial:
    """Makes a judge that needs no labels: how far a policy moves the answers from the float network's.

    Returns:
      `divergence(policies int32 [N, L, 2]) -> float32 [N]`: the Kullback-Leibler divergence of the quantised network's
      shares of classes from the float one's, `sum p log(p / q)`, in nats, averaged over the images. Traceable.

    Raises:
      ValueError: no images.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> images = np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1)
    >>> divergence = make_divergence(apply, params, images, calibrate(apply, params, [images]))
    >>> divergence(jnp.full((1, 1, 2), 32)).tolist()
    [0.0]
    """
    if not len(images):
        raise ValueError("cannot compare answers on no images")
    most = batch_size or suggest_batch(images.shape[1] * images.shape[2])
    split = Split(np.asarray(images), np.zeros(len(images), np.int32))
    batches, labels = in_batches(split, -(-len(split) // -(-len(split) // most)))
    log_shares = _float_answers(apply, params, batches)
    return jax.tree_util.Partial(_make_divergence(apply), params, batches, labels, log_shares, ranges)


def random_policies(bounds: Bounds, count: int, key: PRNGKeyArray) -> Int[np.ndarray, "N L 2"]:
    """Policies whose entries are drawn evenly from the widths that the bounds allow.

    >>> from haqjax.policies.bounds import make_bounds
    >>> random_policies(make_bounds(3, low=4, high=4), 2, jax.random.key(0))[:, 1].tolist()
    [[4, 4], [4, 4]]
    """
    return np.asarray(to_bits(jax.random.uniform(key, (count, *bounds.low.shape)), bounds))


def check_additive(
    sensitivities: Mapping[str, Float[np.ndarray, "L 2 8"]],
    judge: jax.tree_util.Partial,
    policies: Int[np.ndarray, "N L 2"],
) -> dict[str, float]:
    """Spearman's rank correlation of what sensitivities add up to with what policies really lose, by kind.

    Args:
      sensitivities: from `measure_sensitivities`.
      judge: policies -> losses, or a `Evaluation` with losses.
      policies: such as `random_policies`; all are evaluated, once.

    >>> judge = jax.tree_util.Partial(lambda policies: -policies.sum((1, 2)) / 1.0)
    >>> policies = np.array([[[2, 2]], [[4, 2]], [[4, 8]]])
    >>> found = check_additive({"sum": np.broadcast_to(-np.arange(8.0), (1, 2, 8))}, judge, policies)
    >>> {kind: round(value, 3) for kind, value in found.items()}
    {'sum': 1.0}
    """
    losses = judge_in_turn(judge, np.asarray(policies))
    return {kind: rank_correlation(values, policies, losses) for kind, values in sensitivities.items()}


@jax.jit
def _judge(judge: jax.tree_util.Partial, policies: Int[Array, "N L 2"]) -> Float[Array, "N"]:
    answer = judge(policies)
    return getattr(answer, "loss", answer)


@functools.partial(jax.jit, static_argnums=0)
def _float_answers(apply: Apply, params: PyTree, batches: Array) -> Float[Array, "m b C"]:
    return jax.lax.map(lambda images: jax.nn.log_softmax(with_hook(apply, use_cpu_kernels)(params, images)), batches)


@functools.cache
def _make_divergence(apply: Apply) -> Callable[..., Float[Array, "N"]]:
    def divergence(
        params: PyTree, images: Array, labels: Array, log_shares: Array, ranges: Ranges, policies: Int[Array, "N L 2"]
    ) -> Float[Array, "N"]:
        def measure(policy: Int[Array, "L 2"]) -> Float[Array, ""]:
            quantised = under_policy(apply, params, images[0], policy, ranges)

            def apart(batch: tuple[Array, Array, Array]) -> Float[Array, ""]:
                x, there, expected = batch
                found = jax.nn.log_softmax(quantised(params, x))
                return jnp.where(there >= 0, (jnp.exp(expected) * (expected - found)).sum(-1), 0).sum()

            return jax.lax.map(apart, (images, labels, log_shares)).sum() / (labels >= 0).sum()

        return jax.lax.map(measure, policies)

    return divergence
