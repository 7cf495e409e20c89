import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax import budget, cost_table, layers, machine
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import fits
from haqjax.policies.cost import exact_cost, policy_cost
from haqjax.policies.projection import project
from haqjax.searchers import make_problem
from haqjax.searchers.codesign import codesign, cost_on_machines, fit_machines, stack_tables
from haqjax.types import Evaluation

WIDTHS = (64, 96, 32, 10)


def network(params, x):
    for weight in params:
        x = x @ weight
    return x


@pytest.fixture(scope="module")
def world():
    """Three dense layers on twelve BISMO variants."""
    params = [np.ones(shape, np.float32) for shape in itertools.pairwise(WIDTHS)]
    table_of = layers(network, params, np.ones((1, 4, WIDTHS[0]), np.float32))
    edge = machine("edge")
    sizes = itertools.product((2, 4, 8), (16, 64), (64, 256))
    family = [dataclasses.replace(edge, spec=edge.spec._replace(array=d, port_bits=p, dot_bits=k)) for d, p, k in sizes]
    return table_of, [cost_table(one, table_of) for one in family]


def test_one_call_prices_as_each_table_does(world):
    table_of, tables = world
    policies = np.random.default_rng(0).integers(1, 9, (5, len(table_of), 2))
    found = cost_on_machines(stack_tables(tables), jnp.asarray(policies))
    wanted = np.array([[[*exact_cost(table, policy).values()] for policy in policies] for table in tables])
    for column, name in enumerate(("latency", "energy", "size")):
        np.testing.assert_allclose(getattr(found, name), wanted[..., column], rtol=1e-6)


def test_thousand_variants_do_not_compile_again_for_other_policies(world):
    table_of, tables = world
    many = jax.tree.map(lambda leaf: np.repeat(leaf, 84, axis=0), stack_tables(tables))
    assert cost_on_machines(many, jnp.full((len(table_of), 2), 3)).latency.shape == (1008,)
    programs = cost_on_machines._cache_size()
    cost_on_machines(many, jnp.full((len(table_of), 2), 5))
    assert cost_on_machines._cache_size() == programs


def test_machine_is_the_one_that_leaves_most_bits(world):
    table_of, tables = world
    limits = make_bounds(table_of, pinned={})
    allowance = budget(tables[5], latency=0.5)
    policies = np.random.default_rng(1).integers(2, 9, (6, len(table_of), 2))
    lowered, chosen = fit_machines(jnp.asarray(policies), stack_tables(tables), limits, allowance)
    lower = jax.jit(project)
    for policy, kept, index in zip(policies, lowered.policy, chosen, strict=True):
        each = [lower(jnp.asarray(policy), table, limits, allowance) for table in tables]
        bits = [int(one.policy.sum()) if one.feasible else -1 for one in each]
        times = [float(one.cost.latency) for one in each]
        wanted = min(range(len(tables)), key=lambda m: (-bits[m], times[m], m))
        assert int(index) == wanted
        np.testing.assert_array_equal(kept, each[wanted].policy)


def test_search_finds_a_fitting_pair_and_says_its_cost(world):
    table_of, tables = world
    limits = make_bounds(table_of, pinned={})
    allowance = budget(tables[0], latency_s=1.2 * min(exact_cost(t, np.asarray(limits.low))["latency"] for t in tables))
    evaluate = jax.tree_util.Partial(_bits_as_accuracy)
    problem = make_problem(table_of, tables[0], limits, allowance, evaluate, 1.0)
    found = codesign(problem, stack_tables(tables), "random", episodes=30, key=jax.random.key(0), parallel=4)
    table = tables[found.machine]
    assert found.machines.shape == (30,) and bool(fits(policy_cost(table, jnp.asarray(found.result.policy)), allowance))
    np.testing.assert_allclose(found.result.cost.latency, exact_cost(table, found.result.policy)["latency"], rtol=1e-6)
    records = found.result.records
    assert found.result.accuracy == max(records.accuracy[np.asarray(records.feasible)])
    # Only the largest arrays and widest ports reach a budget this near to the least latency of all.
    assert all(
        exact_cost(tables[m], np.asarray(limits.low))["latency"] <= float(allowance.latency) * 1.000001
        for m in found.machines
    )


def test_what_cannot_be_done_is_said(world):
    table_of, tables = world
    evaluate = jax.tree_util.Partial(_bits_as_accuracy)
    allowance = budget(tables[0], latency_s=1e-9)
    problem = make_problem(table_of, tables[0], make_bounds(table_of, pinned={}), allowance, evaluate, 1.0)
    with pytest.raises(RuntimeError, match="on any of 12 machines; latency 1e-09 s was asked"):
        codesign(problem, stack_tables(tables), "random", episodes=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="give haq, random or evolution"):
        codesign(problem, stack_tables(tables), "ilp", episodes=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least one"):
        stack_tables([])


def _bits_as_accuracy(policies):
    share = policies.mean(axis=(1, 2)) / 8
    return Evaluation(share, 1 - share)
