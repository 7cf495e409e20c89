"""Subjects of the experiments: a trained network with its data, evaluators and costs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from options import Options
from rich.console import Console

from haqjax import calibrate, cost_table, layers, machine
from haqjax.data import Dataset, Split, load, stratified
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.evaluator import only_weights
from haqjax.hardware import Machine
from haqjax.models import Network, build, outline, restore_batchnorm
from haqjax.policies.bounds import make_bounds
from haqjax.policies.cost import exact_cost, layer_costs
from haqjax.policies.projection import best_uniform
from haqjax.quantizers.codebook import make_codebook
from haqjax.report import standard_error
from haqjax.run import SearchConfig
from haqjax.run.float_network import cache_folder, load_network
from haqjax.run.setup import calibration_batches, open_network
from haqjax.searchers import SEARCHERS, Problem, Searcher, SearchResult, make_haq, make_problem, search
from haqjax.searchers.driver import evaluate_policies
from haqjax.searchers.haq import HAQ
from haqjax.training import RECIPES, Tuning, finetune_all, fit, load_params, save_params
from haqjax.types import (
    ACTIVATION,
    FULL_PRECISION,
    Bounds,
    Budget,
    Cost,
    CostTable,
    Evaluation,
    Evaluator,
    LayerTable,
    Ranges,
)

PUBLISHED_SIZE = {"resnet20": (32, 10), "resnet56": (32, 10)}  # pixels, classes; of the others 224, 1000
QUICK_WIDTH, QUICK_PIXELS, QUICK_IMAGES, QUICK_EPOCHS, QUICK_TRAINING = 0.25, 16, 96, 8, 2000
BATCH = 4  # policies measured at a time, as many as a round of a search has: one compiled program serves both


class Subject(NamedTuple):
    """A network to search the bits of."""

    network: Network
    data: Dataset
    layers: LayerTable  # at the size that it was published for, which costs are of
    ranges: Ranges
    search: Evaluator  # on the search split
    report: Evaluator  # on the report split
    reference: Evaluation  # of the float network on the search split
    weights_only: bool  # k-means weights, activations left alone


def prepare(config: Options, model: str, codebooks: bool = False) -> Subject:
    """Loads or trains a network, calibrates it, and makes the evaluators.

    Args:
      codebooks: k-means weights at every width, activations left alone.

    Raises:
      ValueError: bad input; before anything is trained.
    """
    check_searcher(config.searcher)
    if config.seeds < 1 or config.episodes < 1:
        raise ValueError(f"episodes {config.episodes}, seeds {config.seeds}: give at least 1 of both")
    network, data = _open(config, model)
    few = calibration_batches(data.train)
    ranges = calibrate(network.apply, network.params, few, rounding="nearest")
    if codebooks:
        ranges = dataclasses.replace(ranges, codebook=make_codebook(network.apply, network.params, network.example))
    searched, reported = (
        _make_evaluator(network.apply, network.params, split, ranges, codebooks) for split in (data.search, data.report)
    )
    pixels, classes = _published_size(model)
    published = outline(model, classes=classes, image_size=pixels, width=network.width, padding=network.padding)
    table_of = layers(published.apply, published.params, published.example)
    unknown = Evaluation(jnp.float32(0), jnp.float32(0))
    subject = Subject(network, data, table_of, ranges, searched, reported, unknown, codebooks)
    found = measure(subject, [jnp.full((len(table_of), 2), FULL_PRECISION)], split="search")
    return subject._replace(reference=jax.tree.map(lambda values: values[0], found))


def check_searcher(name: str) -> None:
    """Raises a ValueError of one line where there is no such search."""
    if name not in SEARCHERS:
        raise ValueError(f"unknown searcher {name!r}: there are {', '.join(sorted(SEARCHERS))}")


def open_machine(hw: str) -> Machine:
    """Opens a machine by name; BitFusion with depthwise layers as one convolution of all channels.

    Its authors' simulator has no grouped convolution. Read to the letter, one convolution a channel, depthwise layers
    take 93 % of MobileNet-V1's time whatever their bits, and no policy saves more than 3 %.
    """
    found = machine(hw)
    merged = {"spec": found.spec._replace(merge_depthwise=True)} if hw == "bitfusion" else {}
    return dataclasses.replace(found, **merged)


def make_table(subject: Subject, hw: str, storage: str = "plain") -> CostTable:
    """Makes the cost table of the network on a machine, at the size it was published for."""
    return cost_table(open_machine(hw), subject.layers, storage)


def limit_between(table: CostTable, limits: Bounds, place: float, resource: str = "latency") -> float:
    """Computes a limit between the cost of the fewest bits (place 0) and that of 8 bits (1), in s, J or bytes."""
    least = getattr(cost(table, limits.low), resource)
    return least + place * (getattr(cost(table, limits.high), resource) - least)


def pose(
    subject: Subject,
    table: CostTable,
    limit: Budget,
    limits: Bounds | None = None,
    evaluator: Evaluator | None = None,
) -> Problem:
    """Poses the problem of a search; by the evaluator of the search split unless another is given."""
    limits = make_bounds(subject.layers) if limits is None else limits
    evaluator = subject.search if evaluator is None else evaluator
    reference, loss = subject.reference
    return make_problem(subject.layers, table, limits, limit, evaluator, reference, reference_loss=loss)


def find(config: Options, problem: Problem, seed: int, **more: Any) -> SearchResult:
    """Runs one search."""
    key = jax.random.key(seed)
    return search(problem, method(config.searcher, config.episodes), episodes=config.episodes, key=key, **more)


def method(name: str, episodes: int, warmup: int | None = None) -> Searcher:
    """Makes a searcher; in a short search HAQ's 20 episodes of warm-up take at most a fifth of all."""
    if name != "haq":
        return SEARCHERS[name](BATCH)
    usual = HAQ().agent
    shorter = min(usual.warmup, episodes // 5) if warmup is None else warmup
    return make_haq(HAQ(agent=dataclasses.replace(usual, warmup=shorter), parallel=BATCH))


def uniform_policy(problem: Problem) -> np.ndarray:
    """Finds the uniform policy with the most bits within the problem's budget."""
    return np.asarray(best_uniform(problem.table, problem.bounds, problem.budget).policy)


def measure(
    subject: Subject, policies: Sequence[np.ndarray], split: str = "report", evaluator: Evaluator | None = None
) -> Evaluation:
    """Measures accuracies and losses of policies on a split; or by another evaluator, as of a fine-tuned network."""
    if evaluator is None:
        evaluator = subject.search if split == "search" else subject.report
    free = Budget(*[jnp.float32(jnp.inf)] * 5)
    problem = pose(subject, cost_table(machine("edge"), subject.layers), free, evaluator=evaluator)
    rows = [jnp.asarray(policy, jnp.int32) for policy in policies]
    rows += rows[-1:] * (-len(rows) % BATCH)
    found = [evaluate_policies(problem, jnp.stack(rows[at : at + BATCH])) for at in range(0, len(rows), BATCH)]
    accuracy, loss = (np.concatenate(parts)[: len(policies)] for parts in zip(*found, strict=True))
    return Evaluation(accuracy, loss)


def tune(subject: Subject, policy: np.ndarray, tuning: Tuning, seed: int = 0) -> float:
    """Fine-tunes a network under a policy; returns its accuracy on the report split."""
    network, ranges, data = subject.network, subject.ranges, subject.data
    tuned_under = jnp.asarray(policy, jnp.int32)
    if subject.weights_only:
        tuned_under = tuned_under.at[:, ACTIVATION].set(FULL_PRECISION)
    options = dict(key=jax.random.key(seed), apply_train=network.apply_train)
    tuned = finetune_all(network.apply, network.params, tuned_under, ranges, data.train, tuning, **options)
    evaluator = _make_evaluator(network.apply, tuned.params, data.report, tuned.ranges, subject.weights_only)
    return float(measure(subject, [policy], evaluator=evaluator).accuracy[0])


def cost(table: CostTable, policy: np.ndarray) -> Cost:
    """Computes what a policy costs, in 64 bits."""
    return Cost(**exact_cost(table, np.asarray(policy)))


def inner_latency(table: CostTable, policy: np.ndarray) -> float:
    """Adds up the seconds of all layers but the first and the last, as HAQ's published figures count."""
    return float(layer_costs(table.latency, np.asarray(policy))[1:-1].sum())


def differs(subject: Subject, config: Options, more: str = "", of: str = "") -> str:
    """Describes what sets our figures apart from the published ones, for the text under a table."""
    data, network = subject.data, subject.network
    parts = (len(data.train), len(data.search), len(data.report))
    error = 100 * standard_error(float(subject.reference.accuracy), parts[2])
    return (
        f"Accuracies are of {of or network.name} (width {network.width:g}, {network.image_size} px) on {data.name}: "
        f"{parts[0]} images to train on, {parts[1]} to search by, {parts[2]} to report on; published ones are of "
        f"ImageNet, so compare differences, not levels. At the float network's accuracy {parts[2]} images have a "
        f"standard error of {error:.1f} points. Costs are of the network at {_published_size(network.name)[0]} px, "
        f"simulated, not measured. Searcher: {config.searcher}; policies evaluated: {config.episodes}; "
        f"seeds: {config.seeds}.{more}"
    )


def _published_size(model: str) -> tuple[int, int]:
    return PUBLISHED_SIZE.get(model, (224, 1000))


def _open(config: Options, model: str) -> tuple[Network, Dataset]:
    weights = None if config.weights is None else config.weights.format(model=model)
    drawn = {} if config.data == "digits" else {"search_images": config.images}
    source = dict(data=config.data, data_dir=config.data_dir, preprocessing=config.preprocessing)
    asked = SearchConfig.of(model=model, weights=weights, **source, **drawn)
    asked.check_files()
    network, data = _open_small(asked) if config.quick and weights is None else _open_whole(asked)
    data = _divide_report(data) if config.halve_report else data
    if config.quick:
        few = slice(0, QUICK_IMAGES)
        data = dataclasses.replace(data, search=data.search.take(few), report=data.report.take(few))
    return network, data


def _open_whole(asked: SearchConfig) -> tuple[Network, Dataset]:
    network, data = open_network(asked.network, asked.data)
    network = load_network(network, data, asked.network.weights, Console(stderr=True))
    if asked.network.pretrained:  # batch norm may be folded
        params = restore_batchnorm(network, network.params, calibration_batches(data.train))
        network = dataclasses.replace(network, params=params)
    return network, data


def _open_small(asked: SearchConfig) -> tuple[Network, Dataset]:
    """Opens a narrow network, trained for seconds and kept for the other experiments."""
    model, source = asked.network.model, asked.data
    data = load(source.data, data_dir=source.data_dir, image_size=QUICK_PIXELS, preprocessing=source.preprocessing)
    size = {"classes": data.classes, "image_size": QUICK_PIXELS, "width": QUICK_WIDTH}
    folder = cache_folder() / "networks" / f"quick-{model}-{data.name.replace(':', '-').replace('/', '-')}"
    if not folder.is_dir():
        init_key, fit_key = jax.random.split(jax.random.key(0))
        fresh = build(model, **size, key=init_key)
        few = data.train.take(np.arange(min(QUICK_TRAINING, len(data.train))))
        save_params(folder, fit(fresh, few, **RECIPES[model] | {"epochs": QUICK_EPOCHS}, key=fit_key))
    network = outline(model, **size)
    return dataclasses.replace(network, params=load_params(folder, network.params)), data


def _divide_report(data: Dataset) -> Dataset:
    """Takes half of the report split to search by, the other half to report on; the search split stays unused."""
    half = len(data.report) // 2
    parts = [data.report.take(rows) for rows in stratified(data.report.labels, [half, half], seed=0)]
    return dataclasses.replace(data, search=parts[0], report=parts[1])


def _make_evaluator(apply: Callable, params: Any, split: Split, ranges: Ranges, weights_only: bool) -> Evaluator:
    evaluator = make_evaluator(apply, params, split, ranges)
    return only_weights(evaluator) if weights_only else evaluator
