"""Problems that searches are compared on, each with its evaluators.

a: five layers trained on the digits, two widths an entry, so that every policy can be evaluated.
b: ResNet-20 on CIFAR-10 with published weights, BISMO cloud or size.
c: MobileNetV2 on ImageNet images with published weights, batch norm folded as it came, BISMO cloud.
Policies are chosen on images held out of the training split, which the networks of b and c were trained on; the report
is on the test or validation images.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from haqjax import budget, calibrate, cost_table, layers, machine
from haqjax.data import Split, load
from haqjax.evaluation import (
    estimate_gauss_newton_sensitivity,
    make_evaluator,
    make_racing_evaluator,
    make_soft_loss,
)
from haqjax.evaluation.evaluator import only_weights
from haqjax.models import load_pretrained
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.quantizers.codebook import make_codebook
from haqjax.searchers import make_problem
from haqjax.searchers.base import Problem
from haqjax.searchers.loop import BY_GRADIENT
from haqjax.types import ACTIVATION, FULL_PRECISION, Evaluation, Evaluator, LayerTable, Ranges

SHARED = Path(__file__).parents[2] / "shared" / "data"
CALIBRATION_IMAGES = 256
CASES = {
    "b": ("resnet20", "resnet20_cifar10.safetensors", "tfds:cifar10", "cifar", 64),
    "c": ("mobilenet_v2", "mobilenet_v2_imagenet.safetensors", "folder:{}/imagenet", None, 16),
}


class Posed(NamedTuple):
    """A problem without a budget, and the evaluator of the report split."""

    problem: Problem
    report: Evaluator
    images: dict[str, int]
    references: dict[str, Any]  # the float network's accuracy by split, and what is known besides
    layers: LayerTable
    world: tuple[Any, Any, Split, Ranges]  # function, parameters, images to search by, ranges: of other evaluators


@jax.jit
def evaluate(evaluator: Evaluator, policies: jax.Array) -> Evaluation:
    """Evaluates policies in one compiled program."""
    return evaluator(policies)


def pose(config: Any) -> Posed:
    """Poses the problem of this name."""
    return pose_small(config) if config.problem == "a" else pose_network(config)


def within(problem: Problem, config: Any, limit: float) -> Problem:
    """Puts the problem within a budget: a fraction of the 8-bit latency, or the size of so many bits on average.

    In problem a the limit is a fraction of the way from the floor to the ceiling.
    """
    if config.metric == "size":
        even = jnp.full_like(problem.bounds.low, round(limit))
        return dataclasses.replace(
            problem, budget=budget(problem.table, size_bytes=float(policy_cost(problem.table, even).size))
        )
    if config.problem != "a":
        return dataclasses.replace(problem, budget=budget(problem.table, latency=limit))
    low, high = (float(policy_cost(problem.table, end).latency) for end in (problem.bounds.low, problem.bounds.high))
    return dataclasses.replace(problem, budget=budget(problem.table, latency_s=low + limit * (high - low)))


def best_of_all(problem: Problem) -> dict[str, Any]:
    """Finds the best accuracy that a policy within the budget has, by trying all of them."""
    there = np.asarray(problem.bounds.allowed)
    widths = [np.flatnonzero(row) + 1 for row in there.reshape(-1, there.shape[-1])]
    policies = np.array(list(itertools.product(*widths)), np.int32).reshape(-1, len(there), 2)
    fitting = policies[np.asarray(fits(policy_cost(problem.table, jnp.asarray(policies)), problem.budget))]
    accuracy = np.asarray(evaluate(problem.evaluator, jnp.asarray(fitting)).accuracy)
    best = float(accuracy.max())
    return {"policies": len(policies), "within": len(fitting), "optimum": best, "optima": int((accuracy == best).sum())}


def small_network(params: Any, x: jax.Array) -> jax.Array:
    """Applies four convolutions and a dense layer."""
    for kernel, stride in zip(params["convolutions"], (1, 2, 1, 2), strict=True):
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean(axis=(1, 2)) @ params["dense"]


def train_small(split: Any, seed: int, steps: int = 600) -> Any:
    """Trains the small network by some steps of Adam."""
    sizes = (3, 8, 12, 16, 24)
    keys = jax.random.split(jax.random.key(seed), 6)

    def draw(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5

    params = {
        "convolutions": [draw(k, 3, 3, i, o) for k, i, o in zip(keys, sizes, sizes[1:], strict=False)],
        "dense": draw(keys[4], sizes[-1], 10),
    }
    adam = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, moments: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(small_network(params, images), labels).mean()

        change, moments = adam.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, change), moments

    moments, random = adam.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = random.integers(0, len(split), 64)
        params, moments = step(params, moments, split.images[rows], split.labels[rows])
    return params


def pose_small(config: Any) -> Posed:
    """Poses 2 or 4 bits for each weight and activation, 1,024 policies; `--by-layer`: for each weight, 32."""
    data = load("digits", image_size=8)
    params = train_small(data.train, 0)
    ranges = calibrate(small_network, params, [data.train.images[:256]], rounding=config.rounding)
    table_of = layers(small_network, params, data.train.images[:1])
    there = np.isin(np.arange(1, 9), (2, 4)) & np.ones((len(table_of), 2, 1), bool)
    if config.by_layer:
        there[:, ACTIVATION] = np.arange(1, 9) == 4
    limits = make_bounds(table_of, pinned={}, allowed=there)
    return _put_together(config, table_of, "edge", limits, small_network, params, data, ranges)


def pose_network(config: Any) -> Posed:
    """Poses a network with published weights; with `--metric size`, k-means weights and activations left alone."""
    name, weights, source, scaling, batch = CASES[config.problem]
    network, preprocessing = load_pretrained(str(SHARED / weights), name)
    options = dict(data_dir=str(SHARED / "tfds"), preprocessing=scaling or preprocessing, search_images=config.images)
    data = load(source.format(SHARED), **options)
    rows = np.sort(np.random.default_rng(0).permutation(len(data.train))[:CALIBRATION_IMAGES])
    images = data.train.take(rows).images
    few = [images[at : at + batch] for at in range(0, len(images), batch)]
    ranges = calibrate(network.apply, network.params, few, rounding=config.rounding)
    if config.metric == "size":
        ranges = dataclasses.replace(ranges, codebook=make_codebook(network.apply, network.params, network.example))
    table_of = layers(network.apply, network.params, network.example)
    limits = make_bounds(table_of, low=(1, 8) if config.metric == "size" else 2)
    return _put_together(config, table_of, "cloud", limits, network.apply, network.params, data, ranges)


def _put_together(
    config: Any, table_of: Any, hw: str, limits: Any, apply: Any, params: Any, data: Any, ranges: Any
) -> Posed:
    by_size = config.metric == "size"
    table = cost_table(machine(hw), table_of, "codebook" if by_size else "plain")
    splits = {name: getattr(data, name).take(np.arange(len(getattr(data, name)))) for name in ("search", "report")}
    evaluators = {name: make_evaluator(apply, params, split, ranges) for name, split in splits.items()}
    searched = evaluators["search"]
    if config.race is not None:
        searched = make_racing_evaluator(apply, params, splits["search"], ranges, error=config.race)
    if by_size:
        evaluators = {name: only_weights(evaluator) for name, evaluator in evaluators.items()}
        searched = only_weights(searched)
    elif not BY_GRADIENT.isdisjoint(name.partition("+")[0] for name in config.searchers):
        soft = make_soft_loss(apply, params, data.train.take(np.arange(min(1024, len(data.train)))), ranges)
        searched = dataclasses.replace(searched, soft_loss=soft)
    floating = jnp.full((1, len(table_of), 2), FULL_PRECISION)
    references = {
        name: jax.tree.map(lambda x: float(x[0]), evaluate(evaluator, floating))
        for name, evaluator in evaluators.items()
    }
    free, reference = budget(table, latency=None), references["search"]
    sensitivity = None
    if getattr(config, "estimate", False) and "ilp" in config.searchers:
        key = jax.random.key(0)
        sensitivity = np.nan_to_num(estimate_gauss_newton_sensitivity(apply, params, splits["search"], ranges, key=key))
    known: dict[str, Any] = {
        "reference_loss": reference.loss,
        "images": len(splits["search"]),
        "sensitivity": sensitivity,
    }
    problem = make_problem(table_of, table, limits, free, searched, reference.accuracy, **known)
    accuracies = {"float": {name: found.accuracy for name, found in references.items()}}
    sizes = {name: len(split) for name, split in splits.items()}
    world = (apply, params, splits["search"], ranges)
    return Posed(problem, evaluators["report"], sizes, accuracies, table_of, world)
