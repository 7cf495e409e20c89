"""Tuning of the batch: the fastest numbers of policies and images at a time, measured once for a kind of device."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from haqjax.data import Split
from haqjax.evaluation.batches import suggest_batch_size
from haqjax.evaluation.evaluator import make_evaluator
from haqjax.evaluation.tuning_cache import cache_path, least_seconds, recall, remember
from haqjax.tracing.hooks import Apply, map_weights
from haqjax.tracing.layer_table import layers
from haqjax.types import WIDTHS, Evaluation, Evaluator, Ranges

VERSION = 1  # of the file: raise it when the evaluation changes
FOLDER = "batch-tuning"  # of the cache
REPEATS = 3  # timings of each candidate, of which the least counts
MOST_BATCHES = 2  # of images, that are timed
POLICIES = (1, 4, 16)  # side by side on an accelerator


class Batches(NamedTuple):
    """Arguments of `make_evaluator`."""

    batch_size: int  # images at a time
    policies_at_once: int


def choose_batches(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    *,
    policies: int,
    cache: str | Path | None,
    candidates: Sequence[Batches] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Batches:
    """Finds how many images and policies at a time are evaluated fastest on this device.

    Policies of all widths are evaluated on the split's first images, with each candidate. It is done once for a kind
    of device, network, size of images and number of policies; a file in the cache remembers it, and one that cannot be
    read or written costs no more than to measure again. Accuracies of all candidates agree.

    Args:
      apply, params, split, ranges: as for `make_evaluator`.
      policies: that are evaluated in one call.
      cache: folder, made where it is not there; None remembers nothing.
      candidates: None tries `list_candidates`; a single one is not measured.
      clock: seconds.

    Raises:
      ValueError: the split is empty, or there is no candidate.

    >>> from haqjax.quantizers import calibrate
    >>> apply, params = lambda params, x: x.reshape(len(x), -1) @ params["w"], {"w": jnp.eye(4)}
    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> ranges, only = calibrate(apply, params, [split.images]), [Batches(4, 1)]
    >>> choose_batches(apply, params, split, ranges, policies=8, cache=None, candidates=only)
    Batches(batch_size=4, policies_at_once=1)
    """
    if not len(split):
        raise ValueError("cannot time an evaluation on no images")
    tried = list_candidates(split, policies) if candidates is None else list(candidates)
    if not tried:
        raise ValueError("no candidate to try: give at least one, or None for the usual ones")
    if len(tried) == 1:
        return tried[0]
    path = cache_path(cache, FOLDER, _describe(apply, params, split, policies, tried))
    known = recall(path).get("chosen")
    if isinstance(known, dict) and set(known) == set(Batches._fields) and Batches(**known) in tried:
        return Batches(**known)
    seconds = _time_candidates(apply, params, split, ranges, tried, policies=policies, clock=clock)
    best = tried[int(np.argmin(seconds))]
    rows = [{**one._asdict(), "seconds": each} for one, each in zip(tried, seconds, strict=True)]
    remember(path, {"chosen": best._asdict(), "tried": rows})
    return best


def list_candidates(split: Split, policies: int) -> list[Batches]:
    """Lists the candidates: on a CPU only what is known to be fastest, elsewhere several of each.

    >>> list_candidates(Split(np.zeros((100, 32, 32, 3), np.float32), np.zeros(100, np.int32)), 8)
    [Batches(batch_size=100, policies_at_once=1)]
    """
    usual = min(suggest_batch_size(split.pixels), len(split))
    if jax.default_backend() == "cpu":
        return [Batches(usual, 1)]
    images = sorted({max(1, usual // 4), usual, min(4 * usual, len(split))})
    return [Batches(count, at_once) for count in images for at_once in sorted({min(n, policies) for n in POLICIES})]


def _time_candidates(
    apply: Apply,
    params: PyTree,
    split: Split,
    ranges: Ranges,
    candidates: Sequence[Batches],
    *,
    policies: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Times each candidate, compilation left out: seconds for an image and policy, inf where memory is short."""
    most = MOST_BATCHES * max(candidate.batch_size for candidate in candidates)
    few = split.take(np.arange(min(most, len(split))))
    count = len(map_weights(lambda layer, weight: layer.name, apply, params, few.first(1)))
    bits = jnp.asarray(np.resize(np.arange(2, WIDTHS + 1), policies))  # of all widths: none is computed twice
    timed = jnp.broadcast_to(bits[:, None, None], (policies, count, 2))
    evaluators = (make_evaluator(apply, params, few, ranges, **candidate._asdict()) for candidate in candidates)
    return [_time(evaluator, timed, clock) / (len(few) * policies) for evaluator in evaluators]


def _time(evaluator: Evaluator, policies: Int[Array, "N L 2"], clock: Callable[[], float]) -> float:
    """Times an evaluation, once compiled: the least seconds of several, inf where memory does not suffice."""
    try:
        jax.block_until_ready(_evaluate(evaluator, policies))
        return least_seconds(lambda: _evaluate(evaluator, policies), REPEATS, clock)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")


@jax.jit
def _evaluate(evaluator: Evaluator, policies: Int[Array, "N L 2"]) -> Evaluation:
    return evaluator(policies)


def _describe(apply: Apply, params: PyTree, split: Split, policies: int, tried: Sequence[Batches]) -> str:
    """Describes what a choice holds for: networks of the same layers are alike."""
    table = layers(apply, params, split.shaped(1))
    shape = [(name, np.asarray(column).tolist()) for name, column in dataclasses.asdict(table).items()]
    return repr((VERSION, shape, [leaf.shape for leaf in jax.tree.leaves(split.images)], policies, [*tried]))
