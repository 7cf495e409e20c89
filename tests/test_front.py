"""Fronts and the cheapest accurate policy, against slow loops and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.searchers import search
from haqjax.searchers.accuracy_constrained import choose_cheapest, search_cheapest
from haqjax.searchers.base import Record, SearchResult
from haqjax.searchers.evolution import Evolution, make_evolution
from haqjax.searchers.front import budget_fractions, choose_within, hypervolume, non_dominated, search_front
from haqjax.types import Cost
from search_world import evaluate_additive, every_policy, make_world

EVOLUTION = make_evolution(Evolution(parallel=4, population=12))
ENDS = {0: 8, -1: 3}


def make_records(seed, count=60, levels=8):
    """Accuracies and costs with many ties, some infeasible and some no number."""
    random = np.random.default_rng(seed)
    accuracy, cost = random.integers(0, levels, count) / levels, random.integers(1, levels, count).astype(float)
    accuracy[random.random(count) < 0.1] = np.nan
    feasible = random.random(count) < 0.8
    nothing = np.zeros((count, 1, 2))
    return Record(nothing, nothing, accuracy, accuracy, accuracy, Cost(cost, cost[::-1], cost), feasible)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("resource", ["latency", "energy"])
def test_a_front_is_what_nobody_beats(seed, resource):
    records = make_records(seed)
    cost, accuracy = getattr(records.cost, resource), records.accuracy
    usable = [i for i in range(60) if records.feasible[i] and not np.isnan(accuracy[i])]
    expected = []
    for i in usable:
        beaten = [
            j for j in usable
            if cost[j] <= cost[i] and accuracy[j] >= accuracy[i]
            and (cost[j] < cost[i] or accuracy[j] > accuracy[i] or j < i)
        ]  # fmt: skip
        if not beaten:
            expected.append(i)
    found = non_dominated(records, resource)
    assert sorted(found.tolist()) == expected
    assert (np.diff(cost[found]) > 0).all() and (np.diff(accuracy[found]) > 0).all()


def test_no_policy_makes_an_empty_front():
    records = make_records(0)
    assert non_dominated(records._replace(feasible=np.zeros(60, bool))).tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_is_the_area_below_the_staircase(seed):
    random = np.random.default_rng(seed)
    accuracy, cost = random.random(12), 3 * random.random(12)
    grid = (np.arange(20_000) + 0.5) / 20_000 * 2.0
    height = [max([a - 0.2 for a, c in zip(accuracy, cost, strict=True) if c <= at] + [0]) for at in grid]
    assert hypervolume(accuracy, cost, 0.2, 2.0) == pytest.approx(np.mean(height) * 2, abs=2e-3)


def test_every_budget_gets_the_best_of_all_that_fit_it():
    problem = make_world(pinned=ENDS)
    budgets = [budget(problem.table, latency=share) for share in (0.6, 0.4, 0.5)]
    found = search_front(problem, EVOLUTION, budgets, episodes=22, key=jax.random.key(0))
    assert len(found.records.accuracy) == 66
    for index, one in enumerate(budgets):
        within = np.asarray(fits(found.records.cost, one))
        assert found.records.accuracy[found.chosen[index]] == found.records.accuracy[within].max()
        assert within[found.chosen[index]]
        np.testing.assert_array_equal(found.policy_of(index), found.records.policy[found.chosen[index]])


def test_a_policy_found_for_a_tight_budget_counts_for_a_looser_one():
    def odd(sensitivity, policies):
        """The fewer bits, the better: the loose budget's own search never looks there."""
        return 1 - policies.sum(axis=(-2, -1)) / 64

    problem = make_world(evaluate=odd)
    budgets = [budget(problem.table, latency=share) for share in (0.9, 0.2)]
    found = search_front(problem, EVOLUTION, budgets, episodes=8, key=jax.random.key(0))
    assert found.chosen[0] == found.chosen[1] >= 8


def test_what_was_evaluated_once_is_known_to_all_budgets():
    calls = []

    def counted(sensitivity, policies):
        jax.debug.callback(lambda policies: calls.append(len(policies)), policies)
        return evaluate_additive(sensitivity, policies)

    problem = make_world(evaluate=counted)
    same = [budget(problem.table, latency=0.05 + 0.05)] * 3
    search_front(problem, "uniform", same, episodes=4, key=jax.random.key(0), parallel=4)
    jax.effects_barrier()
    assert calls == [4]


def test_an_interrupted_front_keeps_what_was_found():
    def stop(result):
        if len(result.records.accuracy) == 12:
            raise KeyboardInterrupt

    problem = make_world()
    budgets = [budget(problem.table, latency=share) for share in (0.3, 0.5)]
    whole, stopped = (
        search_front(problem, EVOLUTION, budgets, episodes=8, key=jax.random.key(0), on_round=f) for f in (None, stop)
    )
    assert stopped.interrupted and not whole.interrupted
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:12], b), whole.records, stopped.records)


SEARCHES = ["evolution", "gradient", "greedy", "ilp", "random", "uniform"]  # of the agent: tests/test_front_command.py


def keep(results):
    """Notes the result after each round, as a checkpoint would: leaves without their places, no stages."""
    return lambda now: results.append(SearchResult(now.records, (), now.chosen, jax.tree.map(np.array, now.state)))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_stopped_front_goes_on_to_the_same_records(name):
    problem = make_world()
    budgets = [budget(problem.table, latency=share) for share in (0.5, 0.3, 0.4)]
    results = []
    options = {"episodes": 5, "key": jax.random.key(0), "parallel": 2}  # the last round of each is cut short
    whole = search_front(problem, name, budgets, **options, on_round=keep(results))
    assert len(results) >= 9
    for stopped in results[1:-1:2]:  # within a budget, between two, in the last
        again = search_front(problem, name, budgets, **options | {"key": jax.random.key(0)}, resume=stopped)
        jax.tree.map(np.testing.assert_array_equal, again.records, whole.records)
        assert again.chosen == whole.chosen


@pytest.mark.parametrize("name", SEARCHES)
def test_a_stopped_search_by_drop_goes_on_to_the_same_records(name):
    results = []
    options = {"episodes": 24, "parallel": 3}
    whole = search_cheapest(make_world(), 30.0, name, key=jax.random.key(1), **options, on_round=keep(results))
    for stopped in results[:-1:3]:
        again = search_cheapest(make_world(), 30.0, name, key=jax.random.key(1), **options, resume=stopped)
        jax.tree.map(np.testing.assert_array_equal, again.records, whole.records)
        assert again.best == whole.best


def test_episodes_before_a_stop_are_not_evaluated_again():
    calls, results = [], []

    def counted(sensitivity, policies):
        jax.debug.callback(lambda policies: calls.append(len(policies)), policies)
        return evaluate_additive(sensitivity, policies)

    problem = make_world(evaluate=counted)
    budgets = [budget(problem.table, latency=share) for share in (0.3, 0.5)]
    search_front(problem, "random", budgets, episodes=8, key=jax.random.key(0), parallel=4, on_round=keep(results))
    jax.effects_barrier()
    assert calls == [4] * 4
    search_front(problem, "random", budgets, episodes=8, key=jax.random.key(0), parallel=4, resume=results[2])
    jax.effects_barrier()
    assert calls == [4] * 5


def test_a_result_has_the_limit_of_each_episode():
    problem = make_world()
    budgets = [budget(problem.table, latency=share) for share in (0.3, 0.5)]
    found = search_front(problem, "random", budgets, episodes=3, key=jax.random.key(0))
    limits = [float(one.latency) for one in budgets for _ in range(3)]
    assert found.limits("latency").tolist() == limits
    assert (found.records.cost.latency <= np.array(limits) * (1 + 1e-6)).all()


def test_the_budgets_of_a_front_are_at_equal_ratios_above_the_floor():
    problem = make_world()
    found = budget_fractions(problem.table, problem.bounds, "size", 5)
    spent, full = (
        float(policy_cost(problem.table, jnp.asarray(bits)).size) for bits in (problem.bounds.low, jnp.full((4, 2), 8))
    )
    assert found[-1] == 1.0 and len(found) == 5
    expected = [(spent / full) ** share for share in (0.8, 0.6, 0.4, 0.2, 0)]
    np.testing.assert_allclose(found, expected, atol=1.1e-3)
    assert all(fraction >= exact - 1e-9 for fraction, exact in zip(found, expected, strict=True))
    for resource, message in (("energy", "the table has no energy"), ("area", "unknown resource 'area'")):
        with pytest.raises(ValueError, match=message):
            budget_fractions(problem.table, problem.bounds, resource)
    with pytest.raises(ValueError, match="a front of size has no room"):
        eight = problem.bounds._replace(low=problem.bounds.high)
        budget_fractions(problem.table, eight, "size")


def test_a_budget_that_nothing_was_found_for_has_no_policy():
    problem = make_world()
    tight, loose = (budget(problem.table, latency=share) for share in (0.1, 0.9))
    records = search(problem, "random", episodes=4, key=jax.random.key(0)).records
    assert choose_within(records, tight) is None or fits(records.cost, tight).any()
    assert choose_within(records, loose) is not None


@pytest.mark.parametrize("drop", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("resource", ["latency", "size"])
def test_a_search_by_drop_comes_near_the_cheapest_of_all_policies(drop, resource):
    problem = make_world(pinned=ENDS, limits={"latency": 1.0}, low=2)
    policies, judged = every_policy(problem)
    costs = np.asarray(getattr(policy_cost(problem.table, jnp.asarray(policies)), resource))
    reference = float(judged.accuracy.max())
    problem = make_world(pinned=ENDS, limits={"latency": 1.0}, reference=reference)
    accurate = np.asarray(judged.accuracy) >= reference - drop / 100
    found = search_cheapest(problem, drop, EVOLUTION, resource=resource, episodes=160, key=jax.random.key(0))
    assert len(found.records.accuracy) <= 160
    assert found.accuracy >= reference - drop / 100 - 1e-6
    assert getattr(found.cost, resource) <= 1.06 * costs[accurate].min()


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_accurate_policy_is_that_of_a_loop(seed):
    records = make_records(seed)
    best = None
    for i in range(60):
        if records.feasible[i] and records.accuracy[i] >= 0.5:
            row = (records.cost.latency[i], -records.accuracy[i], i)
            best = row if best is None or row < best else best
    assert choose_cheapest(records, 0.5) == best[2]
    assert choose_cheapest(records, 2.0) is None


def test_a_drop_that_no_policy_meets_says_so():
    def poor(sensitivity, policies):
        return jnp.full(len(policies), 0.25)

    with pytest.raises(
        RuntimeError, match="no policy of the search is within 1 points .* 0.8900 was asked, 0.2500 found"
    ):
        search_cheapest(make_world(evaluate=poor), 1.0, "random", episodes=8, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": -1.0}, "max_drop is -1.0"),
        ({"max_drop": float("nan")}, "max_drop is nan"),
        ({"max_drop": 1.0, "resource": "area"}, "unknown resource 'area': there are latency"),
        ({"max_drop": 1.0, "resource": "energy"}, "the table has no energy"),
        ({"max_drop": 1.0, "episodes": 1}, "a search of 1 episodes cannot compare costs"),
    ],
)
def test_a_search_by_drop_that_cannot_be_run_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        search_cheapest(make_world(), **({"episodes": 10, "key": jax.random.key(0)} | arguments))


def test_fronts_that_cannot_be_searched_are_refused():
    problem = make_world()
    with pytest.raises(ValueError, match="a front of 0 budgets"):
        search_front(problem, "random", [], episodes=4, key=jax.random.key(0))
    with pytest.raises(ValueError, match="latency budget .* is below the floor"):
        search_front(problem, "random", [budget(problem.table, latency=0.01)], episodes=4, key=jax.random.key(0))
