"""Exact allocation against every policy there is."""

import itertools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import references_search as references
from haqjax.allocation import allocate, trade_off_curve
from haqjax.allocation.additive import guard, predict
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.types import Bounds, Cost, CostTable, Lifetimes


def make_table(seed: int, layers: int) -> CostTable:
    """Costs that rise with both widths and separate in neither."""
    random = np.random.default_rng(seed)
    sums = random.integers(1, 20, (4, layers, 8, 8)).cumsum(-1).cumsum(-2).astype(float)
    lifetimes = Lifetimes(
        elements=8.0 * random.integers(1, 9, layers + 1),
        alive=random.random((layers, layers + 1)) < 0.6,
        readers=np.eye(layers + 1, layers, dtype=bool) | np.eye(layers + 1, layers, -1, dtype=bool)[:, ::-1],
    )
    scale = np.array([1e-6, 1e-4, 1.0, 1e6])[:, None, None, None]
    *three, bops = sums * scale
    return CostTable(*three, Cost(1e-5, 0.0, 40.0, 0.0, 16.0), bops, lifetimes)


def make_sensitivity(seed: int, layers: int, pairs: bool) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=(layers, 8 if pairs else 2, 8))


def every_policy(limits: Bounds) -> np.ndarray:
    """All that the bounds allow, tied layers with the bits of their first."""
    layers = len(limits.low)
    first = range(layers) if limits.tied is None else np.asarray(limits.tied).tolist()
    there = np.ones((layers, 2, 8), bool) if limits.allowed is None else np.asarray(limits.allowed)
    leaders = sorted(set(first))
    widths = [
        [b for b in range(int(limits.low[g, c]), int(limits.high[g, c]) + 1) if there[g, c, b - 1]]
        for g in leaders
        for c in (0, 1)
    ]
    rows = np.array(list(itertools.product(*widths))).reshape(-1, len(leaders), 2)
    return rows[:, [leaders.index(f) for f in first]]


def losses(sensitivity, policies):
    """Layer by layer, as a loop has it."""
    total = np.zeros(len(policies))
    for layer, values in enumerate(sensitivity):
        w, a = policies[:, layer].T - 1
        total += values[w, a] if values.shape == (8, 8) else values[0, w] + values[1, a]
    return total


def pick_bounds(kind: str) -> Bounds:
    some = np.isin(np.arange(1, 9), (2, 4, 8)) & np.ones((4, 2, 1), bool)
    return {
        "all": make_bounds(3, low=2, high=6, pinned={0: 5}),
        "some": make_bounds(4, allowed=some, pinned={3: 8}),
        "tied": make_bounds(4, low=3, high=6, pinned={}, tied=[(0, 2)]),
    }[kind]


RESOURCES = {
    "latency": "latency_s",
    "energy": "energy_j",
    "size": "size_bytes",
    "bops": "bop_count",
    "memory": "memory_bytes",
}


@pytest.mark.parametrize("kind", ["all", "some", "tied"])
@pytest.mark.parametrize("limited", [["latency"], ["size"], ["latency", "energy", "size"], ["memory"], [*RESOURCES]])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_allocation_is_the_best_of_all_policies_within_the_budget(kind, limited, pairs):
    limits = pick_bounds(kind)
    layers = len(limits.low)
    table, sensitivity = make_table(layers, layers), make_sensitivity(layers + pairs, layers, pairs)
    policies = every_policy(limits)
    spent = np.array([references.total(table, p) for p in policies])
    middling = policies[np.argsort((spent / spent.max(axis=0)).max(axis=1))[len(spent) // 4]]  # just fits
    ends = dict(zip(RESOURCES, references.total(table, middling), strict=True))
    allowance = budget(table, **{RESOURCES[name]: ends[name] for name in limited})
    fitting = policies[(spent <= np.array(allowance) * (1 + 1e-6)).all(axis=1)]
    assert 0 < len(fitting) < len(policies)
    found = allocate(sensitivity, table, limits, allowance)
    assert found.loss == pytest.approx(losses(sensitivity, fitting).min(), rel=1e-5)
    assert found.loss == pytest.approx(losses(sensitivity, found.policy[None])[0])
    assert found.bound <= found.loss + 1e-9 and found.bound == pytest.approx(found.loss, rel=1e-4)
    assert (fitting == found.policy).all(axis=(1, 2)).any()
    assert fits(policy_cost(table, jnp.asarray(found.policy)), allowance)


def test_policies_that_are_ruled_out_leave_the_next_best():
    limits = pick_bounds("all")
    table, sensitivity = make_table(0, 3), make_sensitivity(0, 3, False)
    allowance, policies = budget(table, latency=0.4), every_policy(limits)
    fitting = policies[np.asarray(fits(policy_cost(table, jnp.asarray(policies)), allowance))]
    found = []
    for _ in range(6):
        found.append(allocate(sensitivity, table, limits, allowance, other_than=found).policy)
    np.testing.assert_allclose(losses(sensitivity, np.array(found)), np.sort(losses(sensitivity, fitting))[:6])


@pytest.mark.parametrize("distance", [0, 1, 2])
def test_a_neighbourhood_is_kept_to(distance):
    limits = pick_bounds("some")
    table, sensitivity = make_table(1, 4), make_sensitivity(1, 4, False)
    allowance, policies = budget(table, latency=0.6), every_policy(limits)
    fitting = policies[np.asarray(fits(policy_cost(table, jnp.asarray(policies)), allowance))]
    centre = fitting[len(fitting) // 2]
    close = fitting[(fitting != centre).any(axis=-1).sum(axis=-1) <= distance]
    found = allocate(sensitivity, table, limits, allowance, near=(centre, distance))
    assert found.loss == pytest.approx(losses(sensitivity, close).min())


def test_what_cannot_be_found_is_said():
    table, sensitivity = make_table(0, 3), make_sensitivity(0, 3, False)
    with pytest.raises(ValueError, match="no policy keeps the budget"):
        allocate(sensitivity, table, make_bounds(3), budget(table, latency=0.01))
    with pytest.raises(ValueError, match="sensitivities of 2 layers, but the network has 3"):
        allocate(sensitivity[:2], table, make_bounds(3), budget(table, latency=0.5))
    with pytest.raises(ValueError, match=r"shape \(3, 8\), expected"):
        allocate(sensitivity[:, 0], table, make_bounds(3), budget(table, latency=0.5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sensitivities_that_are_no_numbers_are_named_and_avoided(value):
    table, sensitivity = make_table(0, 3), make_sensitivity(0, 3, False)
    limits, allowance = make_bounds(3, pinned={}), budget(table, latency=0.5)
    usual = allocate(sensitivity, table, limits, allowance).policy
    sensitivity[1, 0, usual[1, 0] - 1] = value
    sensitivity[0, 1, 0] = value  # one bit, which the bounds do not allow
    with pytest.warns(RuntimeWarning, match=f"worst: head, weights at {usual[1, 0]} bits$"):
        found = allocate(sensitivity, table, limits, allowance, names=("stem", "head", "tail"))
    assert found.policy[1, 0] != usual[1, 0] and np.isfinite(found.loss)
    with pytest.warns(RuntimeWarning, match="layer 0, weights at 2 bits, .* and 39 more"):
        assert np.isfinite(allocate(np.full((3, 2, 8), value), table, limits, allowance).loss)


def test_a_worst_sensitivity_outweighs_all_others():
    limits = make_bounds(3, pinned={})
    sensitivity = make_sensitivity(0, 3, True)
    sensitivity[1, 4, 4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guarded = guard(sensitivity, limits)
    assert guarded[1, 4, 4] > np.delete(guarded.ravel(), 8 * 8 + 4 * 8 + 4).sum()


@pytest.mark.parametrize("kind", ["all", "some", "tied"])
@pytest.mark.parametrize("resource", ["latency", "bops"])
def test_the_curve_holds_every_policy_that_some_price_makes_best(kind, resource):
    limits = pick_bounds(kind)
    layers = len(limits.low)
    table, sensitivity = make_table(3, layers), make_sensitivity(3, layers, False)
    policies = every_policy(limits)
    cost = np.asarray(getattr(policy_cost(table, jnp.asarray(policies)), resource), float)
    loss = losses(sensitivity, policies)
    curve = trade_off_curve(sensitivity, table, limits, resource)
    np.testing.assert_allclose(curve.loss, losses(sensitivity, curve.policy))
    np.testing.assert_allclose(curve.cost, getattr(policy_cost(table, jnp.asarray(curve.policy)), resource), rtol=1e-5)
    assert (np.diff(curve.cost) > 0).all() and (np.diff(curve.loss) < 0).all() and (np.diff(curve.price) <= 0).all()
    for factor in np.geomspace(1e-3, 1e3, 200) * loss.mean() / cost.mean():
        least = (loss + factor * cost).min()
        assert (curve.loss + factor * curve.cost).min() == pytest.approx(least, rel=1e-5)


def test_only_sums_have_a_curve():
    with pytest.raises(ValueError, match="no sum 'memory': there are latency, energy, size, bops"):
        trade_off_curve(make_sensitivity(0, 3, False), make_table(0, 3), make_bounds(3), "memory")


def test_predictions_are_sums_over_layers():
    policies = np.random.default_rng(0).integers(1, 9, (2, 5, 3, 2))
    for pairs in (False, True):
        sensitivity = make_sensitivity(0, 3, pairs)
        expected = losses(sensitivity, policies.reshape(-1, 3, 2)).reshape(2, 5)
        np.testing.assert_allclose(predict(sensitivity, policies), expected)
