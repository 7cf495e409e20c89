"""Evolution and uniform policies against enumeration, and sorting against slow loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.policies.bounds import ladder
from haqjax.policies.budget_fill import fill_budget, normalise_costs, normalised_cost
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.searchers import history, search
from haqjax.searchers.evolution import Evolution, make_evolution, make_nsga2
from haqjax.searchers.front import hypervolume, non_dominated
from haqjax.searchers.pareto import crowding, sort_fronts
from haqjax.searchers.uniform import make_uniform
from haqjax.types import Budget
from search_world import evaluate_additive, every_policy, make_world

# Few searchers, and one number of layers, so that little is compiled.
EVOLUTION = make_evolution(Evolution(parallel=4, population=12))
NSGA2 = make_nsga2(4, population=16)
UNIFORM = make_uniform(4)
ENDS = {0: 8, -1: 3}  # pinned: what is between them has 2401 policies


def peel(values):
    """Fronts by the definition: who is beaten by nobody that is left."""
    front, level = [-1] * len(values), 0
    while -1 in front:
        left = [i for i in range(len(values)) if front[i] < 0]
        beats = lambda a, b: all(x <= y for x, y in zip(a, b, strict=True)) and list(a) != list(b)
        free = [i for i in left if not any(beats(values[j], values[i]) for j in left)]
        for i in free:
            front[i] = level
        level += 1
    return front


def crowd(values, front):
    """Deb's crowding distance, one front and one value at a time; infinite at the ends."""
    distance = np.zeros(len(values))
    for level in set(front):
        members = [i for i in range(len(values)) if front[i] == level]
        for k in range(values.shape[1]):
            line = sorted(members, key=lambda i: values[i, k])
            span = values[line[-1], k] - values[line[0], k]
            distance[[line[0], line[-1]]] = np.inf
            for before, at, after in zip(line, line[1:], line[2:], strict=False):
                distance[at] += (values[after, k] - values[before, k]) / (span or 1)
    return distance


@pytest.mark.parametrize("levels", [4, 1000])
def test_fronts_and_crowding_equal_the_slow_definitions(levels):
    """With few levels many rows are equal or tie; with many, hardly any do, and distances are unique."""
    for seed in range(5):
        values = np.random.default_rng(seed).integers(0, levels, (30, 2)).astype(np.float32)
        expected = peel(values.tolist())
        found = sort_fronts(jnp.asarray(values))
        np.testing.assert_array_equal(found, expected)
        if levels > 100:
            distance = np.asarray(crowding(jnp.asarray(values), found))
            slow = crowd(values, expected)
            np.testing.assert_array_equal(distance > 1e8, np.isinf(slow))
            np.testing.assert_allclose(distance[distance < 1e8], slow[np.isfinite(slow)], rtol=1e-5)


def test_rows_that_are_all_equal_make_one_front_and_no_distance_is_nan():
    values = jnp.ones((5, 2))
    assert sort_fronts(values).tolist() == [0] * 5
    assert jnp.isfinite(crowding(values, jnp.zeros(5, int))).all()


def test_a_history_knows_policies_like_a_set_until_they_are_overwritten():
    random = np.random.default_rng(0)
    policies = random.integers(2, 4, (300, 3, 2))
    seen, known = history.empty(3), set()
    for chunk in np.split(policies, 10):
        expected = []
        for policy in chunk:
            expected.append(policy.tobytes() not in known)
            known.add(policy.tobytes())
        assert history.is_new(seen, jnp.asarray(chunk)).tolist() == expected
        seen = history.note(seen, jnp.asarray(chunk), jnp.zeros(len(chunk)))
    others = jnp.asarray(random.integers(4, 9, (history.CAPACITY, 3, 2)))
    assert history.is_new(history.note(seen, others, jnp.zeros(len(others))), jnp.asarray(policies[:1])).all()


@pytest.mark.parametrize(("limits", "allowed"), [({"latency": 0.3}, None), ({"latency": 0.5, "size": 0.6}, (2, 4, 8))])
def test_a_filled_policy_is_the_last_of_its_shifts_that_fits(limits, allowed):
    there = None if allowed is None else np.isin(np.arange(1, 9), allowed) * np.ones((4, 2, 1), bool)
    problem = make_world(limits=limits, allowed=there, tied=[(1, 3)])
    shares = normalise_costs(problem.table, problem.bounds, problem.budget)
    preference = np.random.default_rng(0).uniform(-1, 8, (20, 4, 2))
    preference[:, 3] = preference[:, 1]
    filled = jax.jit(fill_budget)(jnp.asarray(preference, jnp.float32), shares, problem.bounds)
    widths, count = (np.asarray(x) for x in ladder(problem.bounds))
    for wanted, found in zip(preference, filled, strict=True):
        shifts = np.sort((np.arange(8)[:, None] - wanted.ravel()).ravel()) + 1e-4  # just after an entry rises
        rank = np.clip(np.floor(wanted + shifts[:, None, None]), 0, count - 1).astype(int)
        policies = np.take_along_axis(np.broadcast_to(widths, (*rank.shape, 8)), rank[..., None], -1)[..., 0]
        within = np.asarray(fits(policy_cost(problem.table, jnp.asarray(policies)), problem.budget))
        np.testing.assert_array_equal(found, policies[np.flatnonzero(within)[-1]])


def test_shares_are_costs_over_limits_and_nothing_where_there_is_no_limit():
    problem = make_world(limits={"latency": 0.5})
    policies = np.random.default_rng(0).integers(2, 9, (10, 4, 2))
    found = normalised_cost(normalise_costs(problem.table, problem.bounds, problem.budget), jnp.asarray(policies))
    cost = policy_cost(problem.table, jnp.asarray(policies)).latency / problem.budget.latency
    np.testing.assert_allclose(found, np.stack([cost, 0 * cost, 0 * cost], -1), rtol=1e-5)


def test_costs_between_allowed_widths_lie_on_a_line_and_those_that_are_not_allowed_do_not_count():
    there = np.isin(np.arange(1, 9), (2, 4, 8)) * np.ones((4, 2, 1), bool)
    problem = make_world(allowed=there)
    latency = np.array(problem.table.latency)
    latency[:, [0, 2, 4, 5, 6]] = latency[:, :, [0, 2, 4, 5, 6]] = np.nan
    table = dataclasses.replace(problem.table, latency=latency)
    limit = Budget(jnp.float32(1.0), None, None)
    shares = normalise_costs(table, problem.bounds, limit)
    at = lambda w, a: latency[2, w - 1, a - 1]
    np.testing.assert_allclose(shares.latency[2, 2, 7], (at(2, 8) + at(4, 8)) / 2, rtol=1e-6)
    np.testing.assert_allclose(shares.latency[2, 3, 4], 0.75 * at(4, 4) + 0.25 * at(4, 8), rtol=1e-6)
    np.testing.assert_allclose(shares.latency[2, 7, 1], at(8, 2), rtol=1e-6)


def test_evolution_finds_the_best_of_all_policies():
    problem = make_world(pinned=ENDS, limits={"latency": 0.5})
    policies, judged = every_policy(problem)
    assert len(policies) > 500
    for seed in range(3):
        found = search(problem, EVOLUTION, episodes=160, key=jax.random.key(seed))
        assert found.accuracy == float(judged.accuracy.max())


def test_evolution_beats_random_search_at_equal_evaluations():
    problem = make_world(limits={"latency": 0.3})
    found, by_chance = (
        [search(problem, s, parallel=4, episodes=80, key=jax.random.key(k)).loss for k in range(3)]
        for s in (EVOLUTION, "random")
    )
    assert max(found) < min(by_chance)


def test_no_policy_is_proposed_twice():
    for searcher in (EVOLUTION, NSGA2):
        found = search(make_world(), searcher, episodes=80, key=jax.random.key(0))
        assert len(np.unique(found.records.policy, axis=0)) == 80


def test_once_all_policies_were_proposed_the_search_goes_on():
    problem = make_world(limits={"latency": 1.0}, pinned={0: 8, 1: 8, 2: 8}, low=(7, 6))  # 6 policies
    found = search(problem, NSGA2, episodes=24, key=jax.random.key(0))
    assert len(np.unique(found.records.policy, axis=0)) == 6
    assert found.state.living == 6


@pytest.mark.parametrize("resource", ["latency", "size"])
def test_nsga2_finds_the_front_of_all_policies(resource):
    problem = make_world(limits={"latency": 0.9}, pinned=ENDS)
    policies, judged = every_policy(problem)
    costs = np.asarray(getattr(policy_cost(problem.table, jnp.asarray(policies)), resource))
    whole = hypervolume(np.asarray(judged.accuracy), costs, 0.0, costs.max())
    searcher = NSGA2 if resource == "latency" else make_nsga2(4, "size", population=16)
    found = search(problem, searcher, episodes=240, key=jax.random.key(1)).records
    at = non_dominated(found, resource)
    area = hypervolume(found.accuracy[at], getattr(found.cost, resource)[at], 0.0, costs.max())
    assert 0.95 * whole < area <= whole * (1 + 1e-6)
    assert len(at) > 8  # far apart, not one spot


@pytest.mark.parametrize("searcher", [EVOLUTION, UNIFORM])
def test_allowed_widths_and_ties_hold(searcher):
    there = np.isin(np.arange(1, 9), (2, 4, 8)) * np.ones((4, 2, 1), bool)
    problem = make_world(allowed=there, tied=[(0, 2)], limits={"latency": 0.5, "size": 0.8})
    found = search(problem, searcher, episodes=24, key=jax.random.key(0)).records
    assert np.isin(found.policy, (2, 4, 8)).all() and found.feasible.all()
    np.testing.assert_array_equal(found.policy[:, 0], found.policy[:, 2])


def test_a_resumed_front_ends_as_if_it_had_never_stopped():
    problem = make_world()
    whole, half = (search(problem, NSGA2, episodes=n, key=jax.random.key(0)) for n in (16, 8))
    rest = search(problem, NSGA2, episodes=16, key=jax.random.key(0), resume=half)
    jax.tree.map(np.testing.assert_array_equal, whole.records, rest.records)


@pytest.mark.parametrize("searcher", [EVOLUTION, NSGA2, UNIFORM])
def test_no_budget_seed_or_machine_compiles_again(searcher):
    traces = []

    def counted(sensitivity, policies):
        traces.append(1)
        return evaluate_additive(sensitivity, policies)

    for seed, limit in enumerate((0.3, 0.5, 0.7)):
        problem = make_world(seed=seed, evaluate=counted, limits={"latency": limit})
        search(problem, searcher, episodes=8, key=jax.random.key(seed))
    assert len(traces) == 1


def test_uniform_policies_come_in_order_and_fit():
    problem = make_world(limits={"latency": 0.5}, pinned={0: 8})
    found = search(problem, "uniform", parallel=4, episodes=20, key=jax.random.key(0)).records
    pairs = found.policy[:, 1]
    assert (found.policy[:, 0] == 8).all() and found.feasible.all()
    assert (found.policy[:, 1:] == pairs[:, None]).all()
    equal = [pair.tolist() for pair in pairs if pair[0] == pair[1]]
    widest = max(
        b for b in range(2, 9) if fits(policy_cost(problem.table, np.array([[8, 8]] + [[b, b]] * 3)), problem.budget)
    )
    assert equal == pairs[: len(equal)].tolist() == [[b, b] for b in range(widest, 1, -1)]
    unequal = found.cost.latency[len(equal) :]
    assert (np.diff(unequal) <= 1e-6 * unequal[0]).all()
    assert len(np.unique(found.policy, axis=0)) == 20


def test_uniform_policies_begin_again_after_the_last():
    problem = make_world(limits={"latency": 0.09})
    policies = search(problem, UNIFORM, episodes=16, key=jax.random.key(0)).records.policy
    fitting = len(np.unique(policies, axis=0))
    assert 1 <= fitting < 8
    np.testing.assert_array_equal(policies[fitting:], policies[: 16 - fitting])


@pytest.mark.parametrize("numbers", [{"parallel": 0}, {"population": 0}, {"mutations": 0.0}])
def test_an_evolution_that_cannot_be_run_is_refused(numbers):
    with pytest.raises(ValueError, match="every number of an evolution must be positive"):
        Evolution(**numbers)


def test_a_front_of_an_unknown_resource_is_refused():
    with pytest.raises(ValueError, match="unknown resource 'area': there are latency, energy"):
        make_nsga2(4, "area")
