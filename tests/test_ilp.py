"""The searches by allocation and the extensions to HAQ, where the answer is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.agent import DDPG, make_agent
from haqjax.agent.replay import make_replay
from haqjax.allocation import allocate
from haqjax.allocation.bayes import SCALES, draw, find_scale, fit, mean
from haqjax.allocation.local_search import as_policy, lay_out, make_space, solve_by_prices, swaps
from haqjax.policies.actions import to_bits
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.searchers import HAQ, ILP, Evaluation, make_greedy, make_haq, make_ilp, make_problem, search
from haqjax.searchers.haq_extensions import LOWEST, Best, empty_kept, keep, swap, update_best, with_kept
from haqjax.searchers.probes import estimate_sensitivity, list_probes
from haqjax.types import Transition
from test_search import make_layers, make_table

LAYERS = 5
SOME = np.isin(np.arange(1, 9), (2, 4)) & np.ones((LAYERS, 2, 1), bool)


def interacting(parameters, policies):
    """Errors add up, neighbouring layers' multiply, and the loss grows faster than their sum."""
    sensitivity, pairs = parameters
    error = sensitivity * 4.0 ** (2 - policies.astype(jnp.float32))
    total = error.sum(axis=(-2, -1)) + (pairs * error[:, 1:].sum(-1) * error[:, :-1].sum(-1)).sum(axis=-1)
    loss = jnp.expm1(total)
    return Evaluation(1 / (1 + loss), loss)


def make_toy(seed: int = 0, share: float = 0.35, limits=None, judge=interacting):
    layers, random = make_layers(LAYERS), np.random.default_rng(seed)
    table, limits = make_table(layers), limits or make_bounds(LAYERS, pinned={}, allowed=SOME)
    sensitivity = jnp.asarray(random.exponential(0.2, (1, LAYERS, 2)), jnp.float32)
    pairs = jnp.asarray(random.exponential(3.0, (1, LAYERS - 1)), jnp.float32)
    evaluate = jax.tree_util.Partial(judge, (sensitivity, pairs))
    ends = [float(policy_cost(table, end).latency) for end in (limits.low, limits.high)]
    allowance = budget(table, latency_s=ends[0] + share * (ends[1] - ends[0]))
    return make_problem(layers, table, limits, allowance, evaluate, 1.0, reference_loss=0.0)


def every_fitting(problem):
    policies = np.array(list(itertools.product((2, 4), repeat=2 * LAYERS))).reshape(-1, LAYERS, 2)
    return policies[np.asarray(fits(policy_cost(problem.table, jnp.asarray(policies)), problem.budget))]


@pytest.mark.parametrize("seed", range(3))
def test_allocation_finds_the_optimum_though_losses_do_not_add_up(seed):
    problem = make_toy(seed)
    optimum = float(problem.evaluator(jnp.asarray(every_fitting(problem))).loss.min())
    found = search(problem, make_ilp(ILP(parallel=4)), episodes=100, key=jax.random.key(seed))
    assert found.loss == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("episodes", [1, 2, 7])
def test_few_episodes_give_a_policy_within_the_budget(episodes):
    problem = make_toy(0, limits=make_bounds(LAYERS))
    for searcher in (make_ilp(ILP(parallel=1)), make_greedy(1)):
        assert search(problem, searcher, episodes=episodes, key=jax.random.key(0)).records.feasible[0]


def test_no_policy_is_evaluated_twice_while_there_are_others():
    problem = make_toy(0, limits=make_bounds(LAYERS))
    policies = search(problem, make_ilp(ILP(parallel=4)), episodes=120, key=jax.random.key(0)).records.policy
    assert len({policy.tobytes() for policy in policies}) == 120


@pytest.mark.parametrize("name", ["ilp", "greedy", "haq", "random"])
@pytest.mark.parametrize("tied", [(), [(1, 3)]])
def test_widths_that_are_not_there_are_not_used_and_tied_layers_agree(name, tied):
    limits = make_bounds(LAYERS, pinned={}, allowed=SOME, tied=tied)
    policies = search(make_toy(0, 0.5, limits), name, episodes=24, parallel=4, key=jax.random.key(0)).records.policy
    assert set(np.unique(policies)) <= {2, 4}
    if tied:
        np.testing.assert_array_equal(policies[:, 1], policies[:, 3])


def test_greedy_ends_within_the_budget_and_better_than_it_began():
    problem = make_toy(1, limits=make_bounds(LAYERS))
    records = search(problem, make_greedy(4), episodes=200, key=jax.random.key(0)).records
    assert records.feasible[-1] and records.loss[-1] <= records.loss[0]


def test_losses_that_are_no_numbers_are_avoided():
    def broken(parameters, policies):
        accuracy, loss = interacting(parameters, policies)
        return Evaluation(accuracy, jnp.where(policies[:, 2, 0] == 2, jnp.nan, loss))

    found = search(make_toy(0, 0.6, judge=broken), make_ilp(ILP(parallel=4)), episodes=60, key=jax.random.key(0))
    assert np.isfinite(found.loss) and found.policy[2, 0] == 4
    assert np.isposinf(found.records.loss).any() and found.records.reward.min() == -100.0


def test_probes_tell_what_single_entries_lose():
    limits, layers = make_bounds(4, tied=[(1, 2)]), 4
    true = np.random.default_rng(0).exponential(size=(layers, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0)
    true -= true[..., -1:]
    probes = np.array(list_probes(limits, 6))
    assert len(probes) == 1 + 2 * 6  # one free group, at 2 to 7 bits
    lost = np.take_along_axis(np.broadcast_to(true, (13, 4, 2, 8)), probes[..., None] - 1, -1)[..., 0].sum((1, 2))
    found = estimate_sensitivity(probes, 0.5 - lost, limits)
    np.testing.assert_allclose(found[1, :, 1:7], (true[1] + true[2])[:, 1:7], rtol=0.02, atol=0.01)
    np.testing.assert_array_equal(found[[0, 3]], 0.0)


def random_sensitivities(count):
    random = np.random.default_rng(0)
    return [random.exponential(size=(12, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0) for _ in range(count)]


def test_a_price_and_exchanges_come_close_to_the_optimum():
    table, limits = make_table(make_layers(12)), make_bounds(12)
    allowance = budget(table, latency=0.35)
    space = make_space(table, limits, allowance)
    for sensitivity in random_sensitivities(5):
        losses = lay_out(space, sensitivity)
        taken = solve_by_prices(space, losses)
        least = allocate(sensitivity, table, limits, allowance).loss
        assert losses[np.arange(12), taken].sum() <= 1.05 * least


def test_under_several_limits_no_exchange_is_left_that_helps():
    table, limits = make_table(make_layers(12)), make_bounds(12)
    allowance = budget(table, latency=0.5, size=0.45)
    space = make_space(table, limits, allowance)
    for sensitivity in random_sensitivities(5):
        losses = lay_out(space, sensitivity)
        taken = solve_by_prices(space, losses, steps=50)
        assert fits(policy_cost(table, jnp.asarray(as_policy(space, taken))), allowance)
        assert next(swaps(space, losses, taken))[0] >= -1e-9


def test_exchanges_are_every_small_change_that_fits_in_order():
    problem = make_toy(0, 0.5, make_bounds(LAYERS, low=3, high=5, pinned={}))
    space = make_space(problem.table, problem.bounds, problem.budget)
    losses = lay_out(space, np.random.default_rng(0).exponential(size=(LAYERS, 2, 8)))
    taken = solve_by_prices(space, losses)
    start, found = as_policy(space, taken), list(swaps(space, losses, taken))
    every = np.array(list(itertools.product((3, 4, 5), repeat=2 * LAYERS))).reshape(-1, LAYERS, 2)
    moved = np.abs(every - start).sum(axis=-1)
    small = every[(moved <= 2).all(axis=1) & ((moved > 0).sum(axis=1) <= 2) & moved.any(axis=1)]
    fitting = small[np.asarray(fits(policy_cost(problem.table, jnp.asarray(small)), problem.budget))]
    assert {as_policy(space, t).tobytes() for _, t in found} == {p.astype(np.int32).tobytes() for p in fitting}
    changes = [change for change, _ in found]
    assert changes == sorted(changes)


def test_the_regression_finds_sensitivities_from_whole_policies():
    random = np.random.default_rng(0)
    true = random.exponential(size=(3, 2, 1)) * 4.0 ** -np.arange(1.0, 9.0)
    start = true * random.uniform(0.6, 1.5, size=(3, 2, 1))
    policies = random.integers(2, 5, (150, 3, 2))
    losses = np.take_along_axis(np.broadcast_to(true, (150, 3, 2, 8)), policies[..., None] - 1, -1).sum((1, 2, 3))
    posterior = fit(start, policies, losses + 7.0)
    slopes = lambda s: np.diff(s, axis=-1)[..., 1:3]
    before, after = (np.abs(slopes(s) - slopes(true)).max() for s in (start, mean(posterior)))
    assert after < 0.3 * before
    draws = np.array([slopes(draw(posterior, random)) for _ in range(400)])
    np.testing.assert_allclose(draws.mean(0), slopes(mean(posterior)), atol=4 * draws.std(0).max() / 20)


# Additions to HAQ


def test_twin_critics_start_apart_and_learn():
    config = DDPG(observation_size=2, hidden=(8, 6), twin=True)
    agent = make_agent(config)
    state = jax.jit(agent.init)(jax.random.key(0))
    assert not np.array_equal(state.critic.second.weight[0], state.critic.second.weight[1])
    batch = Transition(*(jnp.ones(shape) for shape in ((4, 2), (4,), (4,), (4, 2), (4,))))
    after = jax.jit(agent.update)(state, batch)
    for twin in (0, 1):
        assert not np.array_equal(after.critic.second.weight[twin], state.critic.second.weight[twin])


def test_the_best_episodes_stay_in_memory():
    memory = make_replay(100, 10)
    kept = empty_kept(memory.storage, 2, 4)
    for rewards in ([1.0, 5.0, 3.0], [2.0, 4.0, 0.0]):
        rows = jax.tree.map(lambda x: jnp.zeros((12, *x.shape[1:])), memory.storage)
        rows = rows._replace(reward=jnp.repeat(jnp.asarray(rewards), 4))
        kept = keep(kept, rows, jnp.asarray(rewards))
    assert kept.rewards.tolist() == [5.0, 4.0]
    np.testing.assert_array_equal(with_kept(memory, kept).storage.reward[:8], [5.0] * 4 + [4.0] * 4)
    assert with_kept(memory, kept).size == 8


def test_an_exchange_moves_one_width_up_and_one_down():
    limits = make_bounds(4, allowed=np.isin(np.arange(1, 9), (2, 4, 8)) & np.ones((4, 2, 1), bool))
    best = Best(jnp.full((4, 2), 4).at[jnp.asarray([0, 3])].set(8), jnp.float32(0))
    changed = np.asarray(to_bits(swap(best, limits, jax.random.key(0), 50), limits)) - np.asarray(best.policy)
    assert set(np.unique(changed)) <= {-2, 0, 4}
    assert ((changed != 0).sum(axis=(1, 2)) <= 2).all() and (changed != 0).any(axis=(1, 2)).sum() > 25
    better = update_best(best, jnp.full((2, 4, 2), 2), jnp.asarray([-1.0, 3.0]))
    assert better.reward == 3 and update_best(better, jnp.full((1, 4, 2), 8), jnp.zeros(1)).reward == 3
    assert LOWEST < -1e6


def test_extensions_need_sense_and_run_together():
    with pytest.raises(ValueError, match="retain is 9: expected 0 to the 2 episodes"):
        HAQ(DDPG(warmup=2), retain=9)
    problem = make_toy(0, limits=make_bounds(LAYERS))
    start = tuple((3, 3) for _ in range(LAYERS))
    tiny = DDPG(hidden=(16, 12), batch=8, warmup=4, twin=True)
    whole = dataclasses.replace(HAQ(tiny, parallel=2), start=start, retain=2, swap=12)
    records = search(problem, make_haq(whole), episodes=24, key=jax.random.key(0)).records
    np.testing.assert_array_equal(records.policy[0, 1:-1], 3)
    assert records.feasible.all() and records.reward[12:].max() >= records.reward[:12].max() - 1e-6


def test_policies_of_equal_losses_do_not_stop_a_regression():
    """Their rows are so large that a Cholesky factor of the Gram matrix is none."""
    start = 1e4 * 4.0 ** -np.arange(8.0) * np.ones((5, 2, 1))
    policies = np.random.default_rng(0).integers(2, 9, (12, 5, 2)).repeat(4, axis=0)
    losses = np.full(len(policies), 1e-7)
    assert find_scale(start, policies, losses) in SCALES
    posterior = fit(start, policies, losses)
    gram = posterior.rows @ posterior.rows.T + np.eye(len(losses))
    np.testing.assert_allclose(posterior.factor[0].T @ posterior.factor[0], gram, rtol=1e-6)
    assert np.isfinite(mean(posterior)).all()
    assert np.isfinite(draw(posterior, np.random.default_rng(1))).all()
