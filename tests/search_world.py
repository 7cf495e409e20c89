"""A search problem whose losses add up, small enough to try every policy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.policies.bounds import ladder, make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.searchers import make_problem
from haqjax.searchers.base import as_evaluator
from haqjax.types import Cost, CostTable, Evaluation, LayerTable

BITS = np.arange(1.0, 9.0)


def make_layers(count):
    ones = np.ones(count, int)
    return LayerTable(
        names=tuple(f"layer{i}" for i in range(count)),
        kernel=np.ones((count, 2), int),
        stride=np.ones((count, 2), int),
        in_channels=8 * ones,
        out_channels=8 * ones,
        groups=ones,
        in_size=np.ones((count, 2), int),
        out_size=np.ones((count, 2), int),
        dense=ones > 0,
        other_parameters=np.int64(0),
    )


def make_table(count, seed=0):
    """Latency goes with the product of both widths, size with the weights' alone; energy is not known."""
    work = np.exp(np.random.default_rng(seed).normal(size=(count, 1, 1)))
    latency = work * BITS[:, None] * BITS
    size = np.broadcast_to(work * BITS[:, None], latency.shape)
    return CostTable(latency, np.full_like(latency, np.nan), size, Cost(0.5, np.nan, 0.0))


def lost(sensitivity, policies):
    return (sensitivity * 4.0 ** (2 - policies.astype(jnp.float32))).sum(axis=(-2, -1))


def evaluate_additive(sensitivity, policies):
    loss = lost(sensitivity[None], policies)
    return Evaluation(0.9 * jnp.exp(-loss), loss)


def soft(sensitivity, bits, index):
    """The same loss, on a line between whole widths."""
    below = jnp.floor(jax.lax.stop_gradient(bits))
    part = bits - below
    return ((1 - part) * sensitivity * 4.0 ** (2 - below) + part * sensitivity * 4.0 ** (1 - below)).sum()


def make_world(count=4, seed=0, evaluate=evaluate_additive, limits=None, reference=0.9, **kinds):
    """A problem of `count` layers; `kinds` go to `haqjax.policies.bounds.make_bounds`."""
    random, layers, table = np.random.default_rng(seed + 100), make_layers(count), make_table(count, seed)
    sensitivity = np.exp(random.normal(size=(count, 2)))
    sensitivity = jnp.asarray(sensitivity / sensitivity.sum(), jnp.float32)
    evaluator = as_evaluator(jax.tree_util.Partial(evaluate, sensitivity))
    return make_problem(
        layers,
        table,
        make_bounds(layers, **{"pinned": {}, **kinds}),
        budget(table, **(limits or {"latency": 0.35})),
        dataclasses.replace(evaluator, soft_loss=jax.tree_util.Partial(soft, sensitivity)),
        reference,
        reference_loss=0.0,
    )


def every_policy(problem, within=True):
    """All policies of the bounds, those within the budget unless told otherwise, with their evaluation."""
    widths, count = (np.asarray(x) for x in ladder(problem.bounds))
    choices = [row[:n] for row, n in zip(widths.reshape(-1, 8), count.ravel(), strict=True)]
    policies = np.array(list(itertools.product(*choices)), np.int32).reshape(-1, len(count), 2)
    if problem.bounds.tied is not None:
        policies = policies[(policies == policies[:, np.asarray(problem.bounds.tied)]).all((1, 2))]
    if within:
        policies = policies[np.asarray(fits(policy_cost(problem.table, jnp.asarray(policies)), problem.budget))]
    return policies, problem.evaluator(jnp.asarray(policies))
