import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references_search as references
from haqjax.policies.actions import to_bits, uniform
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.feasibility import check_reachable, floor
from haqjax.policies.projection import best_uniform, project
from haqjax.types import Bounds, Budget, Cost, CostTable, Lifetimes

LAYERS = 5
FREE = np.inf


def make_table(seed: int, layers: int = LAYERS, monotone: bool = True) -> CostTable:
    """Whole numbers: their float32 sums are exact, so that a tie is a tie on both sides of a comparison."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 9, (4, layers, 8, 8))  # 0: some steps change nothing
    if monotone:
        values = values.cumsum(-1).cumsum(-2)
    *sums, bops = values.astype(float)
    alive, readers = random.random((4, 6)) < 0.5, random.random((6, layers)) < 1 / 5
    readers[np.arange(5), 1 % layers + np.arange(5) % max(1, layers - 1)] = True
    alive[0] = True
    lifetimes = Lifetimes(8.0 * np.append(random.integers(1, 9, 5), 0), alive, readers)
    return CostTable(*sums, Cost(*random.integers(0, 9, 5).astype(float)), bops, lifetimes)


def random_bounds(seed: int, layers: int = LAYERS) -> Bounds:
    low, high = np.sort(np.random.default_rng(seed).integers(1, 9, (2, layers, 2)), axis=0)
    low[0] = high[0] = 8
    return Bounds(jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32))


def random_policies(seed: int, count: int, limits: Bounds) -> np.ndarray:
    shape = (count, *limits.low.shape)
    return np.random.default_rng(seed).integers(limits.low, np.asarray(limits.high) + 1, shape, dtype=np.int32)


def random_limits(seed: int, count: int, table: CostTable, limits: Bounds, limited: tuple[bool, ...]) -> np.ndarray:
    """From below the floor to above what the dearest policy costs."""
    least, most = (references.total(table, np.asarray(bits)) for bits in limits[:2])
    share = np.random.default_rng(seed).uniform(-0.1, 1.1, (count, 5))
    return np.where(limited, np.round(np.add(least, share * np.subtract(most, least))), FREE)


def as_budget(limits: np.ndarray) -> Budget:
    return Budget(*jnp.asarray(limits.T, jnp.float32))


# Pricing


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_the_price_of_whole_bits_is_a_sum_of_entries(dtype):
    table = make_table(0, monotone=False)
    policies = random_policies(1, 40, make_bounds(LAYERS, 1, 8, pinned={}))
    cost = jax.jit(policy_cost)(table, jnp.asarray(policies, dtype).reshape(4, 10, LAYERS, 2))
    expected = [references.total(table, policy) for policy in policies]
    np.testing.assert_array_equal(np.stack(cost, -1).reshape(40, 5), expected)


def test_the_price_of_fractional_bits_is_bilinear():
    table = make_table(2, layers=1, monotone=False)
    for w, a in [(1.25, 7.5), (4.0, 4.75), (7.9, 1.0)]:
        low_w, low_a = min(int(w), 7), min(int(a), 7)
        corners = table.energy[0, low_w - 1 : low_w + 1, low_a - 1 : low_a + 1]
        expected = np.array([1 - (w - low_w), w - low_w]) @ corners @ np.array([1 - (a - low_a), a - low_a])
        assert policy_cost(table, jnp.asarray([[w, a]])).energy == pytest.approx(
            expected + table.fixed.energy, rel=1e-5
        )


def test_a_table_is_differentiable_in_the_bits_even_where_another_resource_has_none():
    table = make_table(3, monotone=False)
    table = CostTable(table.latency, np.full_like(table.energy, np.nan), table.size, Cost(1.0, np.nan, 1.0))
    bits = np.random.default_rng(4).uniform(1.1, 7.9, (LAYERS, 2)).astype(np.float32)
    gradient = jax.grad(lambda bits: policy_cost(table, bits).latency)(bits)
    for layer, (w, a) in enumerate(bits):
        i, j = int(w), int(a)
        cell = table.latency[layer, i - 1 : i + 1, j - 1 : j + 1]
        expected = [np.diff(cell, axis=0)[0] @ [1 - (a - j), a - j], np.diff(cell, axis=1)[:, 0] @ [1 - (w - i), w - i]]
        np.testing.assert_allclose(gradient[layer], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [0, 9, -1, 32, 0.99, 8.01, np.nan])
def test_bits_without_an_entry_cost_nan(bits):
    policies = np.full((2, LAYERS, 2), 4, np.asarray(bits).dtype)
    policies[1, 2, 1] = bits
    cost = policy_cost(make_table(0), jnp.asarray(policies))
    assert np.isfinite(cost.latency[0])
    assert all(np.isnan(resource[1]) for name, resource in cost._asdict().items() if (name, bits) != ("memory", 32))


@pytest.mark.parametrize("shape", [(LAYERS - 1, 2), (LAYERS, 3), (2,), (3, LAYERS + 1, 2)])
@pytest.mark.parametrize("function", [policy_cost, lambda t, p: project(p, t, make_bounds(LAYERS), budget(t))])
def test_a_policy_of_another_shape_is_refused(function, shape):
    with pytest.raises(ValueError, match="one row a layer of the table"):
        function(make_table(0), jnp.full(shape, 8))


# Budgets


def test_fractions_count_from_the_all_8_bit_cost_and_absolute_limits_do_not():
    table = make_table(1)
    full = references.total(table, np.full((LAYERS, 2), 8))
    limits = budget(table, latency=0.6, energy_j=7.0, size=1.0)
    np.testing.assert_allclose(limits, [0.6 * full[0], 7.0, full[2], np.inf, np.inf], rtol=1e-6)
    assert np.isposinf(budget(table)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latency": 0}, "latency budget 0 is not above zero"),
        ({"energy": -0.5}, "energy budget -0.5"),
        ({"size": np.nan}, "size budget nan"),
        ({"latency_s": -1e-3}, "latency budget -0.001"),
        ({"latency": 0.5, "latency_s": 0.1}, "latency budget given twice, as the fraction 0.5 and as 0.1"),
        ({"size": 0.5, "size_bytes": 0}, "size budget given twice"),
    ],
)
def test_impossible_limits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget(make_table(0), **arguments)


def test_a_limit_needs_a_table_that_has_the_resource():
    table = make_table(0)
    table = CostTable(table.latency, np.full_like(table.energy, np.nan), table.size, Cost(0.0, np.nan, 0.0))
    with pytest.raises(ValueError, match="energy budget 0.5: the table has no energy"):
        budget(table, energy=0.5)
    assert fits(policy_cost(table, uniform(8, make_bounds(LAYERS))), budget(table, latency=1.0))


@pytest.mark.parametrize("resource", range(5))
def test_every_resource_is_held_to_its_limit(resource):
    limits = Budget(*(jnp.float32(10.0) for _ in range(5)))
    spent = np.full((5, 5), 10.0, np.float32)
    spent[:, resource] = [10.0, 10.0 * (1 + 5e-7), 10.0 * (1 + 4e-6), np.nan, np.inf]
    assert fits(Cost(*jnp.asarray(spent.T)), limits).tolist() == [True, True, False, False, False]


def test_the_floor_is_the_price_of_the_lowest_bits():
    table, limits = make_table(5), random_bounds(5)
    np.testing.assert_array_equal(floor(table, limits), references.total(table, np.asarray(limits.low)))


def test_a_budget_below_the_floor_is_refused_with_its_largest_contributors():
    latency = np.zeros((4, 8, 8))
    latency[:, 1, 1] = [4e-3, 1e-3, 3e-3, 2e-3]
    latency[:, 7, 7] = 1.0
    table = CostTable(latency, latency, latency, Cost(0.0, 0.0, 0.0))
    limits = make_bounds(4, pinned={})
    names = ["stem", "first", "second", "head"]
    expected = (
        r"latency budget 9 ms is below the floor 10 ms \(all layers at their lowest bits\), "
        r"most of it in stem 40 %, second 30 %, head 20 %"
    )
    with pytest.raises(ValueError, match=expected):
        check_reachable(table, limits, budget(table, latency_s=9e-3), names)
    with pytest.raises(ValueError, match="energy budget 5 mJ is below the floor 10 mJ .* layer 0 40 %"):
        check_reachable(table, limits, budget(table, latency_s=1.0, energy_j=5e-3))
    check_reachable(table, limits, budget(table, latency_s=10e-3, energy=0.9))


def test_a_memory_budget_below_the_floor_names_the_tensors_that_are_held():
    lifetimes = Lifetimes(
        elements=np.array([4096.0, 1024.0, 8.0]),
        alive=np.array([[True, True, False], [False, True, True]]),
        readers=np.array([[True, False], [False, True], [False, False]]),
    )
    table = CostTable(*(np.ones((2, 8, 8)) for _ in range(3)), Cost(0.0, 0.0, 0.0), lifetimes=lifetimes)
    told = "memory budget 1 KiB is below the floor 1.25 KiB .* the input of layer 0 80 %"
    with pytest.raises(ValueError, match=told):
        check_reachable(table, make_bounds(2, pinned={}), budget(table, memory_bytes=1024))
    check_reachable(table, make_bounds(2, pinned={}), budget(table, memory_bytes=1280))


def test_what_no_policy_changes_can_hold_the_floor():
    table = CostTable(*(np.full((2, 8, 8), 512.0) for _ in range(3)), fixed=Cost(0.0, 0.0, 3072.0))
    with pytest.raises(ValueError, match="size budget 2 KiB is below the floor 4 KiB .* what no policy changes 75 %"):
        check_reachable(table, make_bounds(2), budget(table, size_bytes=2048))


# Projection


@pytest.mark.parametrize(
    "limited",
    [
        (True, False, False, False, False),
        (False, True, False, False, False),
        (False, False, True, False, False),
        (False, False, False, True, False),
        (False, False, False, False, True),
        (True, True, True, True, True),
        (True, False, True, False, True),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_projection_equals_the_loop(seed, limited):
    table, limits, count = make_table(seed), random_bounds(seed), 300
    policies = random_policies(seed + 10, count, limits)
    budgets = random_limits(seed + 20, count, table, limits, limited)
    result = jax.jit(jax.vmap(project, (0, None, None, 0)))(policies, table, limits, as_budget(budgets))
    expected = [
        references.lower_onto_budget(policy, table, np.asarray(limits.low), limit)
        for policy, limit in zip(policies, budgets, strict=True)
    ]
    np.testing.assert_array_equal(result.policy, [policy for policy, _ in expected])
    np.testing.assert_array_equal(result.feasible, [feasible for _, feasible in expected])
    np.testing.assert_array_equal(np.stack(result.cost, -1), [references.total(table, p) for p, _ in expected])
    assert 0 < result.feasible.sum() < count, "the cases must hold both outcomes"


@pytest.mark.parametrize("seed", range(3))
def test_projection_onto_some_widths_steps_from_one_to_the_next(seed):
    """HAQ's loop over ranks, in a table whose rows are those of the widths."""
    table, count = make_table(seed), 200
    limits = make_bounds(
        LAYERS, pinned={0: 8}, allowed=np.isin(np.arange(1, 9), (2, 4, 8)) & np.ones((LAYERS, 2, 1), bool)
    )
    policies = to_bits(jax.random.uniform(jax.random.key(seed), (count, LAYERS, 2)), limits)
    assert set(np.unique(policies)) == {2, 4, 8}
    budgets = random_limits(seed, count, table, limits, (True, False, True, False, True))
    result = jax.jit(jax.vmap(project, (0, None, None, 0)))(policies, table, limits, as_budget(budgets))
    expected = [
        references.lower_over_widths(policy, table, [(8,)] + [(2, 4, 8)] * (LAYERS - 1), limit)
        for policy, limit in zip(np.asarray(policies), budgets, strict=True)
    ]
    np.testing.assert_array_equal(result.policy, [policy for policy, _ in expected])
    np.testing.assert_array_equal(result.feasible, [feasible for _, feasible in expected])
    assert 0 < result.feasible.sum() < count, "the cases must hold both outcomes"


def test_tied_layers_fall_together():
    table = make_table(2)
    limits = make_bounds(LAYERS, pinned={}, tied=[(1, 3)])
    start = jax.random.randint(jax.random.key(0), (100, LAYERS, 2), 2, 9)
    result = project(start, table, limits, budget(table, latency=0.5))
    np.testing.assert_array_equal(result.policy[:, 1], result.policy[:, 3])
    assert result.feasible.all()
    apart = project(start.at[:, 3].set(start[:, 1]), table, make_bounds(LAYERS, pinned={}), budget(table, latency=0.5))
    assert np.any(np.asarray(apart.policy[:, 1] != apart.policy[:, 3]))


def test_one_budget_serves_any_leading_axes():
    table, limits = make_table(1), random_bounds(1)
    policies = random_policies(2, 60, limits)
    most = budget(table, latency=0.5)
    together = project(jnp.asarray(policies.reshape(3, 20, LAYERS, 2)), table, limits, most)
    apart = jax.lax.map(lambda policy: project(policy, table, limits, most), policies)
    np.testing.assert_array_equal(together.policy.reshape(60, LAYERS, 2), apart.policy)
    np.testing.assert_array_equal(together.feasible.reshape(60), apart.feasible)


def test_a_policy_that_fits_is_left_alone_and_one_outside_its_bounds_is_not():
    """HAQ protects pinned layers only while a policy is over budget; here they always hold."""
    table, limits = make_table(0), make_bounds(LAYERS, low=3, high=6)
    for bits in (1, 4, 8):
        result = project(jnp.full((LAYERS, 2), bits), table, limits, budget(table))
        assert result.policy.tolist() == uniform(bits, limits).tolist()


def test_a_budget_below_the_floor_gives_the_lowest_policy_and_says_so():
    table, limits = make_table(0), make_bounds(LAYERS)
    within = budget(table, latency_s=1e-3)
    with pytest.warns(UserWarning, match="no policy fits this budget"):
        result = project(uniform(8, limits), table, limits, within)
    assert not result.feasible and not jax.jit(project)(uniform(8, limits), table, limits, within).feasible
    assert result.policy.tolist() == limits.low.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_where_fewer_bits_may_cost_more_the_result_fits_and_one_step_less_does_not(seed):
    table, limits, count = make_table(seed, monotone=False), random_bounds(seed + 5), 300
    policies = random_policies(seed, count, limits)
    least = np.array(references.total(table, np.asarray(limits.low)))
    room = np.random.default_rng(seed).uniform(0, 40, (count, 5))
    budgets = np.where((True, True, False, False, False), np.round(least + room), FREE)  # the lowest policy always fits
    result = jax.jit(jax.vmap(project, (0, None, None, 0)))(policies, table, limits, as_budget(budgets))
    assert result.feasible.all()
    lowered = 0
    for policy, limit, final in zip(policies, budgets, np.asarray(result.policy), strict=True):
        assert all(np.array(references.total(table, final)) <= limit)
        steps = np.asarray(policy - final)
        if steps.any():
            layer = np.argwhere(steps == steps.max())[0, 0]  # the last sweep's last step: the first layer it reached,
            column = 0 if steps[layer, 0] == steps.max() else 1  # and there weights come after activations
            before = final.copy()
            before[layer, column] += 1
            assert not all(np.array(references.total(table, before)) <= limit)
            lowered += 1
    assert lowered > 20


def test_no_budget_compiles_again():
    traces = []

    def counted(*arguments):
        traces.append(1)
        return project(*arguments)

    run, limits = jax.jit(counted), make_bounds(LAYERS)
    for seed in range(3):
        table = make_table(seed)
        run(uniform(8 - seed, limits), table, limits, budget(table, latency=0.5 + 0.1 * seed))
    assert len(traces) == 1


# The uniform policy to beat


@pytest.mark.parametrize("seed", range(5))
def test_best_uniform_has_the_most_bits_that_fit(seed):
    table, limits = make_table(seed), make_bounds(LAYERS, low=2, high=7)
    for fraction in (0.3, 0.6, 0.9, 2.0):
        most = budget(table, latency=fraction, size=fraction)
        fitting = [bits for bits in range(2, 8) if fits(policy_cost(table, uniform(bits, limits)), most)]  # ascending
        best = best_uniform(table, limits, most)
        assert best.feasible == bool(fitting)
        assert best.policy.tolist() == uniform(max(fitting, default=2), limits).tolist()
        np.testing.assert_array_equal(best.cost, policy_cost(table, best.policy))
