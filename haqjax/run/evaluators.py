"""Evaluators of a run, on all devices of all hosts."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from haqjax.data import Split
from haqjax.evaluation import (
    make_evaluator,
    make_finetuned_evaluator,
    make_racing_evaluator,
    make_soft_loss,
    tune_arithmetic,
)
from haqjax.evaluation.batch_tuning import choose_batches
from haqjax.evaluation.batches import suggest_batch_size
from haqjax.evaluation.evaluator import only_finite, only_weights
from haqjax.evaluation.prefix_reuse import choose_cuts, make_prefix_evaluator
from haqjax.models import AnyNetwork
from haqjax.run.config.options import with_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import make_evaluation_mesh
from haqjax.run.float_network import cache_folder
from haqjax.run.setup import PreparedSearch
from haqjax.searchers.driver import evaluate
from haqjax.searchers.loop import BY_GRADIENT
from haqjax.sharding import shard_policies
from haqjax.tracing.integer_products import Arithmetic
from haqjax.types import ACTIVATION, FULL_PRECISION, Evaluation, Evaluator, Ranges

SOFT_IMAGES = 1024  # of the training split, that a search by gradients goes through
AT_ONCE = 4  # policies that are measured in one call
FINETUNE_SEED = 0  # of the images that every policy is fine-tuned on; the same for all, so that policies differ alone


def choose_batch_sizes(config: SearchConfig, network: AnyNetwork, split: Split, ranges: Ranges) -> SearchConfig:
    """Decides how much is evaluated at a time, by timing where nothing was asked.

    It is decided once a run, and changes no answer. Several devices time nothing.
    """
    options = config.evaluation
    asked = options.batch_size is not None or options.policies_at_once is not None
    other_evaluator = options.finetune_steps or options.race is not None
    if asked or other_evaluator or config.run.resume is not None or jax.device_count() > 1:
        return config
    chosen = choose_batches(
        network.apply, network.params, split, ranges, policies=config.method.parallel, cache=cache_folder()
    )
    return with_options(config, chosen._asdict())


def tune_products(network: AnyNetwork, split: Split, ranges: Ranges) -> tuple[Arithmetic, ...] | None:
    """Finds the fastest arithmetic of this device once, and remembers it; it changes no answer.

    None, which is float32, for several processes: they must run the same program.
    """
    if jax.process_count() > 1:
        return None
    size = suggest_batch_size(split.pixels)
    x = split.shaped(size)
    return tune_arithmetic(network.apply, network.params, x, ranges, cache=cache_folder())


def make_split_evaluator(
    config: SearchConfig, prepared: PreparedSearch, network: AnyNetwork, split: Split, ranges: Ranges
) -> Evaluator:
    """Makes the evaluator on one split; after a little fine-tuning under each policy where that is asked for."""
    options = config.evaluation
    mesh = make_evaluation_mesh(config.method.parallel, split, options.batch_size)
    batch_size, at_once = options.batch_size, options.policies_at_once or 1
    if options.finetune_steps:
        evaluator = make_finetuned_evaluator(
            network.apply,
            network.params,
            split,
            ranges,
            prepared.data.train,
            steps=options.finetune_steps,
            key=jax.random.key(FINETUNE_SEED),
            apply_train=network.apply_train,
            batch_size=batch_size,
            policies_at_once=at_once,
        )
        evaluator = evaluator if mesh is None else shard_policies(evaluator, mesh)
    else:
        evaluator = make_evaluator(
            network.apply,
            network.params,
            split,
            ranges,
            batch_size=batch_size,
            policies_at_once=at_once,
            mesh=mesh,
            arithmetic=tune_products(network, split, ranges),
        )
    return _as_stored(config, evaluator)


def make_search_evaluator(
    config: SearchConfig, prepared: PreparedSearch, network: AnyNetwork, ranges: Ranges, usual: Evaluator
) -> Evaluator:
    """Makes the evaluator that a search goes by: the usual one of the search split, a race, or with prefix reuse.

    A policy with an output that is not finite has no accuracy there, and can never be chosen.

    Raises:
      ValueError: a race or cuts, with more than one device.
    """
    options, split = config.evaluation, prepared.data.search
    if options.race is not None:
        _check_one_device(f"race {options.race:g}", "is", "it")
        evaluator = make_racing_evaluator(
            network.apply, network.params, split, ranges, error=options.race, batch_size=options.batch_size
        )
        return _as_stored(config, only_finite(evaluator))
    if options.cuts is not None:
        _check_one_device(f"cuts {options.cuts}", "are", "them")
        base = leave_activations(config, jnp.asarray(prepared.bounds.high))
        cuts = choose_cuts(prepared.layers, len(split), options.cuts)
        usual = _as_stored(
            config,
            make_prefix_evaluator(
                network.apply,
                network.params,
                split,
                ranges,
                base,
                cuts,
                batch_size=options.batch_size,
                arithmetic=tune_products(network, split, ranges),
            ),
        )
    evaluator = only_finite(usual)
    if config.method.search not in BY_GRADIENT:
        return evaluator
    train = prepared.data.train
    few = train.take(np.arange(min(SOFT_IMAGES, len(train))))
    return dataclasses.replace(evaluator, soft_loss=make_soft_loss(network.apply, network.params, few, ranges))


def measure(evaluator: Evaluator, policies: Mapping[str, Int[Array, "L 2"]]) -> dict[str, Evaluation]:
    """Evaluates policies by name, four at a time, so that one program serves any number of policies.

    It is that of a search with four policies a round. There a policy with an output that is not finite has no
    accuracy; here it has one, for which another program is compiled where it comes to that.
    """
    found = _measure_with(only_finite(evaluator), policies)
    broken = {name: policy for name, policy in policies.items() if np.isnan(found[name].accuracy)}
    return found | (_measure_with(evaluator, broken) if broken else {})


def _measure_with(evaluator: Evaluator, policies: Mapping[str, Int[Array, "L 2"]]) -> dict[str, Evaluation]:
    distinct = {np.asarray(policy, np.int32).tobytes(): np.asarray(policy, np.int32) for policy in policies.values()}
    names = {name: np.asarray(policy, np.int32).tobytes() for name, policy in policies.items()}
    rows, found = list(distinct.values()), []
    for at in range(0, len(rows), AT_ONCE):
        some = rows[at : at + AT_ONCE]
        evaluation = evaluate(evaluator, jnp.asarray(np.stack(some + some[-1:] * (AT_ONCE - len(some)))), 0.0)
        found += [Evaluation(*pair) for pair in zip(*map(_to_host, evaluation), strict=True)][: len(some)]
    by_policy = dict(zip(distinct, found, strict=True))
    return {name: by_policy[key] for name, key in names.items()}


def measure_accuracies(evaluator: Evaluator, policies: Mapping[str, Int[Array, "L 2"]]) -> dict[str, float]:
    """Measures accuracies by name; see `measure`."""
    return {name: float(found.accuracy) for name, found in measure(evaluator, policies).items()}


def _to_host(values: Float[Array, "N"]) -> Float[np.ndarray, "N"]:
    """Copies values to the host, from other processes too where the compiler has left a part of them there."""
    if values.is_fully_addressable or values.is_fully_replicated:
        return np.asarray(values)
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def leave_activations(config: SearchConfig, policy: Int[Array, "*n L 2"]) -> Int[Array, "*n L 2"]:
    """Returns the policy as it is evaluated: where only weights are stored, activations are not quantised at all."""
    return policy.at[..., ACTIVATION].set(FULL_PRECISION) if config.by_codebook else policy


def _check_one_device(asked: str, verb: str, pronoun: str) -> None:
    if jax.device_count() > 1:
        raise ValueError(f"{asked} {verb} for one device, here are {jax.device_count()}: leave {pronoun} out")


def _as_stored(config: SearchConfig, evaluator: Evaluator) -> Evaluator:
    """Evaluates weights alone where only they are stored; see `leave_activations`."""
    return only_weights(evaluator) if config.by_codebook else evaluator
