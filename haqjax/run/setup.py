"""What a configuration asks for: network, data, machine and budget, and later the judge of policies."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.data import Dataset, Source, Split, load
from haqjax.evaluation import make_evaluate
from haqjax.evaluation.batch_tuning import choose_batches
from haqjax.evaluation.evaluator import only_finite
from haqjax.evaluation.finetuned import make_finetuned_evaluate
from haqjax.evaluation.prefix_reuse import choose_cuts, make_prefix_evaluate
from haqjax.evaluation.racing import make_race
from haqjax.evaluation.soft_loss import make_soft_loss
from haqjax.hardware import available_widths, cost_table, find_lifetimes
from haqjax.models import Network, is_pretrained_source, load_pretrained
from haqjax.policies.budgets import budget
from haqjax.policies.feasibility import check_reachable
from haqjax.policies.rules import bounds_by_rules
from haqjax.quantizers import calibrate
from haqjax.quantizers.codebook import make_codebook
from haqjax.run.config.commands import SearchConfig
from haqjax.run.distributed import make_evaluation_mesh
from haqjax.run.float_network import cache_folder, empty_network
from haqjax.searchers.front import spread_fractions
from haqjax.sharding import shard_policies
from haqjax.tracing.hooks import layers
from haqjax.types import ACTIVATION, FULL_PRECISION, Bounds, Budget, CostTable, Evaluation, LayerTable, Ranges

CALIBRATION_IMAGES = 256  # of the training split
CALIBRATION_BATCH = 64
SOFT_IMAGES = 1024  # of the training split, that a search by gradients goes through
AT_ONCE = 4  # policies that are measured in one call
FINETUNE_SEED = 0  # of the images that every policy is fine-tuned on; the same for all, so that policies differ alone


class Task(NamedTuple):
    """What is known before anything is trained."""

    machine: str
    data: Dataset
    network: Network  # with the parameters of others, or with shapes in their place
    layers: LayerTable
    table: CostTable
    bounds: Bounds
    budget: Budget  # that every policy has to keep to
    budgets: tuple[Budget, ...] = ()  # of a front, the tightest first


def prepare(config: SearchConfig) -> Task:
    """Reads the data, prices the network's layers, and makes sure that the budget can be met.

    Raises:
      ValueError: bad input; nothing has been trained or written.
    """
    config.check()
    accelerator = config.machine
    network, data = open_network(config)
    table_of = layers(network.apply, network.params, network.example)
    lifetimes = find_lifetimes(network.apply, network.params, network.example)
    storage = "codebook" if config.by_codebook else "plain"
    table = cost_table(accelerator, table_of, storage, lifetimes)
    low, high = config.widths
    there = available_widths(accelerator, table_of)
    limits = bounds_by_rules(table_of.names, config.layers, config.tie, low=low, high=high, available=there)
    spendable = budget(table, **config.limits)
    budgets = _spread_budgets(config, table, limits)
    for one in (spendable, *budgets):
        check_reachable(table, limits, one, table_of.names)
    return Task(accelerator.name, data, network, table_of, table, limits, spendable, budgets)


def _spread_budgets(config: SearchConfig, table: CostTable, bounds: Bounds) -> tuple[Budget, ...]:
    """The budgets of a front, in order.

    Raises:
      ValueError: the table does not know the resource of a front or a drop, or no policy makes it cheaper.
    """
    if config.resource is None:
        return ()
    fractions = spread_fractions(table, bounds, config.resource)
    if config.front is None:
        return ()
    asked = config.budgets or [{config.resource: share} for share in fractions]
    return tuple(sorted((budget(table, **limit) for limit in asked), key=operator.attrgetter(config.resource)))


def open_network(config: SearchConfig) -> tuple[Network, Dataset]:
    """The network and its data: weights of others say how their images are to be scaled."""
    if config.weights is None or not is_pretrained_source(config.weights):
        data = _load(config, config.preprocessing)
        return empty_network(config.model, data), data
    network, preprocessing = load_pretrained(config.weights, config.model)
    scaling = config.preprocessing or (None if config.data == "digits" else preprocessing)
    data = _load(config, scaling)
    if data.classes != network.classes:
        raise ValueError(
            f"the weights {config.weights!r} tell {network.classes} classes apart, {data.name} has {data.classes}: "
            "choose data that suit them"
        )
    return dataclasses.replace(network, image_size=empty_network(config.model, data).image_size), data


def _load(config: SearchConfig, preprocessing: str | None) -> Dataset:
    return load(
        config.data, data_dir=config.data_dir, image_size=config.image_size, preprocessing=preprocessing,
        splits=config.splits or None, search_images=config.search_images, report_images=config.report_images,
        workers=config.workers,
    )  # fmt: skip


def find_ranges(config: SearchConfig, network: Network, data: Dataset) -> Ranges:
    """Clip values from the first images of the training split, and shared values where weights are only stored."""
    few = calibration_batches(data.train)
    ranges = calibrate(network.apply, network.params, few, config.calibration, rounding=config.rounding)
    if not config.by_codebook:
        return ranges
    return dataclasses.replace(ranges, codebook=make_codebook(network.apply, network.params, network.example))


def calibration_batches(split: Split | Source) -> list[Float[np.ndarray, "B H W C"]]:
    """The images that clip values are chosen by."""
    images = split.take(np.arange(min(CALIBRATION_IMAGES, len(split)))).images
    return [images[at : at + CALIBRATION_BATCH] for at in range(0, len(images), CALIBRATION_BATCH)]


@jax.jit
def _judge_all(judge: jax.tree_util.Partial, policies: Int[Array, "N L 2"]) -> Evaluation:
    answer = judge(policies)
    return answer if isinstance(answer, Evaluation) else Evaluation(answer, jnp.full(len(policies), jnp.nan))


def judge_all(judge: jax.tree_util.Partial, policies: Mapping[str, Int[Array, "L 2"]]) -> dict[str, Evaluation]:
    """Accuracy and loss by name, the loss NaN where it is not told; four policies at a time, so that all splits and
    all numbers of policies share one compiled program."""
    names = {name: np.asarray(policy).tobytes() for name, policy in policies.items()}
    distinct = {names[name]: policy for name, policy in policies.items()}
    rows, told = list(distinct.values()), []
    for at in range(0, len(rows), AT_ONCE):
        some = rows[at : at + AT_ONCE]
        judged = _judge_all(judge, jnp.stack(some + some[-1:] * (AT_ONCE - len(some))))
        told += [Evaluation(*pair) for pair in zip(*map(np.asarray, judged), strict=True)][: len(some)]
    known = dict(zip(distinct, told, strict=True))
    return {name: known[key] for name, key in names.items()}


def measure(judge: jax.tree_util.Partial, policies: Mapping[str, Int[Array, "L 2"]]) -> dict[str, float]:
    """Accuracies by name; see `judge_all`."""
    return {name: float(judged.accuracy) for name, judged in judge_all(judge, policies).items()}


def settle_batches(config: SearchConfig, network: Network, split: Split, ranges: Ranges) -> SearchConfig:
    """The configuration with how much is evaluated at a time, by trial where nothing was said.

    It is settled once a run: accuracies depend on it in their last bits, and a run that goes on must go on alike.
    Several devices make no trial: their answers must not depend on their number.
    """
    said = config.batch_size is not None or config.policies_at_once is not None
    other_judge = config.finetune_steps or config.race is not None
    if said or other_judge or config.resume is not None or jax.device_count() > 1:
        return config
    chosen = choose_batches(
        network.apply, network.params, split, ranges, policies=config.parallel, cache=cache_folder()
    )
    return dataclasses.replace(config, **chosen._asdict())


def make_judge(
    config: SearchConfig, network: Network, split: Split, ranges: Ranges, data: Dataset
) -> jax.tree_util.Partial:
    """The function that policies are judged by, on one split; after a little fine-tuning where that is asked for.

    All devices of all hosts share the work.
    """
    mesh = make_evaluation_mesh(config.parallel, split, config.batch_size)
    if config.finetune_steps:
        judge = make_finetuned_evaluate(
            network.apply, network.params, split, ranges, data.train,
            steps=config.finetune_steps, key=jax.random.key(FINETUNE_SEED), apply_train=network.apply_train,
            batch_size=config.batch_size, policies_at_once=config.policies_at_once or 1,
        )  # fmt: skip
        judge = judge if mesh is None else shard_policies(judge, mesh)
    else:
        judge = make_evaluate(
            network.apply, network.params, split, ranges, batch_size=config.batch_size,
            policies_at_once=config.policies_at_once or 1, with_loss=True, mesh=mesh,
        )  # fmt: skip
    return _as_stored(config, judge)


def make_probing_judge(
    config: SearchConfig, network: Network, task: Task, ranges: Ranges
) -> jax.tree_util.Partial | None:
    """The judge that goes on from what the widest policy gave, where that is asked for.

    Raises:
      ValueError: there is more than one device.
    """
    if config.cuts is None:
        return None
    _check_one_device(f"cuts {config.cuts}", "are", "them")
    split, base = task.data.search, leave_activations(config, jnp.asarray(task.bounds.high))
    cuts = choose_cuts(task.layers, len(split), config.cuts)
    judge = make_prefix_evaluate(network.apply, network.params, split, ranges, base, cuts, batch_size=config.batch_size)
    return _as_stored(config, judge)


def make_racing_judge(
    config: SearchConfig, network: Network, split: Split, ranges: Ranges
) -> jax.tree_util.Partial | None:
    """The judge that gives policies up, where that is asked for.

    Raises:
      ValueError: there is more than one device.
    """
    if config.race is None:
        return None
    _check_one_device(f"race {config.race:g}", "is", "it")
    race = only_finite(
        make_race(network.apply, network.params, split, ranges, error=config.race, batch_size=config.batch_size)
    )
    return _as_stored(config, race)


def make_soft(config: SearchConfig, network: Network, data: Dataset, ranges: Ranges) -> jax.tree_util.Partial | None:
    """The loss that a search by gradients descends, on images of the training split; None for the other searches."""
    if config.search != "gradient":
        return None
    if config.by_codebook:
        raise ValueError("the search 'gradient' needs linear weights: with METRIC=size, choose another")
    split = data.train.take(np.arange(min(SOFT_IMAGES, len(data.train))))
    return make_soft_loss(network.apply, network.params, split, ranges)


def leave_activations(config: SearchConfig, policy: Int[Array, "*n L 2"]) -> Int[Array, "*n L 2"]:
    """The policy as it is judged: where only weights are stored, activations are not quantised at all."""
    return policy.at[..., ACTIVATION].set(FULL_PRECISION) if config.by_codebook else policy


def _check_one_device(asked: str, verb: str, pronoun: str) -> None:
    if jax.device_count() > 1:
        raise ValueError(f"{asked} {verb} for one device, here are {jax.device_count()}: leave {pronoun} out")


def _as_stored(config: SearchConfig, judge: jax.tree_util.Partial) -> jax.tree_util.Partial:
    """The judge, of weights alone where only they are stored; see `leave_activations`."""
    return jax.tree_util.Partial(_judge_weights, judge) if config.by_codebook else judge


def _judge_weights(
    judge: jax.tree_util.Partial, policies: Int[Array, "N L 2"], *more: Array
) -> Float[Array, "N"] | Evaluation:
    return judge(policies.at[..., ACTIVATION].set(FULL_PRECISION), *more)
