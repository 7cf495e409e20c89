import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references_search as references
from haqjax.agent import DDPG
from haqjax.agent.networks import Dense, choose
from haqjax.policies.actions import to_actions, to_bits
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget, fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import best_uniform
from haqjax.searchers import HAQ, SEARCHERS, Searcher, make_haq, make_problem, make_random, search
from haqjax.searchers.base import Problem, as_evaluator
from haqjax.searchers.greedy import GreedyState
from haqjax.searchers.haq_features import describe, observe
from haqjax.searchers.ilp import ILPState
from haqjax.types import Cost, CostTable, LayerTable

TINY = HAQ(DDPG(hidden=(16, 12), batch=8, warmup=2))


def make_layers(count: int) -> LayerTable:
    """A chain of 3x3, depthwise and 1x1 convolutions, and a dense layer at the end."""
    index = np.arange(count)
    depthwise, dense = (index % 3 == 1) & (index < count - 1), index == count - 1
    width = np.minimum(16 * 2 ** (np.arange(count + 1) // 4), 256)
    kernel = np.where(dense | (index % 3 == 2), 1, 3)
    size = np.maximum(32 // 2 ** (index // 5), 4)
    return LayerTable(
        names=tuple(f"layer{i}" for i in index),
        kernel=np.stack([kernel, kernel], axis=-1),
        stride=np.stack([1 + (index % 5 == 0)] * 2, axis=-1),
        in_channels=width[:-1],
        out_channels=np.where(depthwise, width[:-1], width[1:]),
        groups=np.where(depthwise, width[:-1], 1),
        in_size=np.stack([size, size], axis=-1),
        out_size=np.stack([size, size], axis=-1),
        dense=dense,
        other_parameters=np.int64(100),
    )


def make_table(layers: LayerTable) -> CostTable:
    bits, free = np.arange(1.0, 9.0), np.ones((len(layers), 1, 1))
    free[[0, -1]] = 0.01  # the pinned layers cost little, or there would be no budget to share out
    latency = free * layers.macs[:, None, None] * bits[:, None] * bits[None, :] * 1e-12
    size = np.broadcast_to(free * layers.weights[:, None, None] * bits[:, None] / 8, latency.shape)
    return CostTable(latency, np.full_like(latency, np.nan), size, Cost(0.0, np.nan, 400.0, np.nan, np.nan))


def accuracy(sensitivity, policies):
    """Falls with each entry on its own, four times as fast for one bit less."""
    return 0.95 * jnp.exp(-3 * jnp.sum(sensitivity * 4.0 ** (2 - policies.astype(jnp.float32)), axis=(-2, -1)))


def error(sensitivity, bits, index):
    """The same of one policy of fractional bits, as a loss."""
    return 1 - accuracy(sensitivity, bits[None])[0]


def make_toy(count: int = 5, seed: int = 0, evaluate=accuracy, **limits) -> Problem:
    layers, random = make_layers(count), np.random.default_rng(seed)
    table, sensitivity = make_table(layers), np.exp(random.normal(size=(1, count, 2)))
    sensitivity = jnp.asarray(sensitivity / sensitivity.sum(), jnp.float32)
    evaluator = as_evaluator(jax.tree_util.Partial(evaluate, sensitivity))
    evaluator = dataclasses.replace(evaluator, soft_loss=jax.tree_util.Partial(error, sensitivity))
    limit = budget(table, **(limits or {"latency": 0.5}))
    return make_problem(layers, table, make_bounds(layers), limit, evaluator, 0.95)


def named(name: str, parallel: int = 1) -> Searcher:
    """A searcher small enough for a test."""
    return make_haq(dataclasses.replace(TINY, parallel=parallel)) if name == "haq" else SEARCHERS[name](parallel)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.records, other.records)
    assert one.best == other.best


UNPROJECTED = {name for name in SEARCHERS if not SEARCHERS[name](1).projected}
each_search = pytest.mark.parametrize("name", sorted(SEARCHERS))


# Observations


@pytest.mark.parametrize("count", [1, 2, 7])
def test_observations_are_the_ten_numbers_scaled_to_the_layers(count):
    layers = make_layers(count)
    policies = np.random.default_rng(0).integers(2, 9, (3, 4, count, 2))
    seen = observe(describe(layers), jnp.asarray(policies))
    assert seen.shape == (3, 4, 2 * count, 10)
    for at in np.ndindex(3, 4):
        np.testing.assert_allclose(seen[at], references.observations(layers, policies[at]), rtol=1e-5)


@pytest.mark.parametrize(("kernel", "size", "expected"), [(1, 7, [1, 1]), (0, 1, [0, 1])])
def test_a_number_that_is_the_same_everywhere_is_left_alone_but_stays_small(kernel, size, expected):
    layers = make_layers(4)
    layers = dataclasses.replace(
        layers, kernel=np.full((4, 2), kernel), in_size=np.full((4, 2), size), dense=np.full(4, False)
    )
    np.testing.assert_array_equal(describe(layers)[:, [3, 5]], [expected] * 8)


def test_the_flag_tells_weights_from_activations_and_an_episode_starts_at_the_8_bit_image():
    seen = observe(describe(make_layers(3)), jnp.full((2, 3, 2), 4))
    np.testing.assert_array_equal(seen[..., 8], [[1, 0] * 3] * 2)
    np.testing.assert_array_equal(seen[..., 9], [[1.0] + [0.5] * 5] * 2)


# HAQ's agent on its walk


def test_an_agent_without_noise_walks_as_a_loop_does():
    problem = make_toy()
    searcher = make_haq(HAQ(DDPG(hidden=(16, 12), sigma=0.0, warmup=0), parallel=2))
    state = searcher.init(problem, jax.random.key(0))
    loud = state.agent.actor  # a fresh actor's actions are all near 0.5
    loud = loud._replace(last=Dense(10 * (-1.0) ** jnp.arange(12)[:, None], jnp.full(1, 5.0)))
    state = state._replace(agent=state.agent._replace(actor=loud))
    actions = jax.jit(searcher.ask)(state, jax.random.key(1))

    policy, before, expected = np.full((5, 2), 8), 1.0, []
    for decision, (low, high) in enumerate(zip(*(np.ravel(b) for b in problem.bounds[:2]), strict=True)):
        row = references.observations(make_layers(5), policy)[decision]
        row[9] = before
        action = float(choose(loud, jnp.asarray(row, jnp.float32)))
        bits = np.clip(np.round(low - 0.5 + action * (high - low + 1)), low, high)
        before = bits / 8
        expected.append(action)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(actions, np.broadcast_to(np.reshape(expected, (5, 2)), (2, 5, 2)), atol=1e-4)


def test_the_memory_holds_what_was_proposed_and_every_step_gets_the_reward():
    problem, searcher = make_toy(), make_haq(dataclasses.replace(TINY, parallel=2))
    state = searcher.init(problem, jax.random.key(0))
    actions = jax.random.uniform(jax.random.key(1), (2, 5, 2))
    lowered = jnp.full((2, 5, 2), 2)
    state = searcher.tell(state, actions, lowered, jnp.asarray([-0.5, 0.25]))
    rows = jax.tree.map(lambda x: np.asarray(x)[:20].reshape(2, 10, *x.shape[1:]), state.memory.storage)
    assert state.memory.size == 20
    np.testing.assert_array_equal(rows.action, actions.reshape(2, 10))
    np.testing.assert_array_equal(rows.reward, [[-5.0] * 10, [2.5] * 10])  # 0.1 a point of accuracy
    np.testing.assert_array_equal(rows.discount, [[1.0] * 9 + [0.0]] * 2)
    for row, proposed in zip(rows.observation, to_bits(actions, problem.bounds), strict=True):
        np.testing.assert_allclose(row, references.observations(make_layers(5), proposed), rtol=1e-5)
    np.testing.assert_array_equal(rows.next_observation[:, :-1], rows.observation[:, 1:])


@pytest.mark.parametrize(("parallel", "updates"), [(1, 1.0), (2, 1.0), (2, 0.5)])
def test_the_agent_learns_once_a_decision_after_warm_up(parallel, updates):
    problem, searcher = make_toy(), make_haq(dataclasses.replace(TINY, parallel=parallel, updates=updates))
    state, done = searcher.init(problem, jax.random.key(0)), []
    actions = jax.random.uniform(jax.random.key(1), (parallel, 5, 2))
    tell = jax.jit(searcher.tell)
    for _ in range(4):
        state = tell(state, actions, actions, jnp.zeros(parallel))
        done.append(int(state.agent.updates))
    a_round = int(parallel * 10 * updates)
    warm = 2 // parallel  # rounds of warm-up
    assert done == [0] * warm + [a_round * i for i in range(1, 5 - warm)]


def test_each_round_learns_from_other_batches():
    problem, searcher = make_toy(), make_haq(TINY)
    tell, actions = jax.jit(searcher.tell), jax.random.uniform(jax.random.key(1), (1, 5, 2))
    state = searcher.init(problem, jax.random.key(0))
    state = tell(state, actions, actions, jnp.zeros(1))
    early, late = (tell(state._replace(episode=jnp.int32(e)), actions, actions, jnp.ones(1)).agent for e in (5, 6))
    assert not np.array_equal(early.critic.second.weight, late.critic.second.weight)


def test_explorers_of_one_round_are_successive_episodes():
    """Warm-up ends within the round: the first two explorers act at random, the others as the actor says."""
    searcher = make_haq(HAQ(DDPG(hidden=(16, 12), sigma=0.0, warmup=2), parallel=4))
    actions = searcher.ask(searcher.init(make_toy(), jax.random.key(0)), jax.random.key(1))
    np.testing.assert_allclose(actions[2], actions[3], atol=1e-4)
    assert (abs(actions[0] - actions[1]) > 1e-3).all() and (abs(actions[1] - actions[2]) > 1e-3).all()


def test_numbers_that_no_search_can_run_with_are_refused():
    with pytest.raises(ValueError, match="parallel 0"):
        HAQ(parallel=0)
    with pytest.raises(ValueError, match="updates -1"):
        HAQ(updates=-1)


# The loop


@each_search
@pytest.mark.parametrize("limits", [{"latency": 0.4}, {"size": 0.5}, {"latency": 0.6, "size_bytes": 9000.0}])
def test_every_policy_keeps_the_budget_and_the_pins_and_is_what_was_evaluated(name, limits):
    problem = make_toy(**limits)
    result = search(problem, named(name, 3), episodes=12, key=jax.random.key(0))
    records = result.records
    np.testing.assert_array_equal(records.feasible, fits(records.cost, problem.budget))
    assert records.feasible.all() or name in UNPROJECTED
    np.testing.assert_array_equal(records.policy[:, [0, -1]], 8)
    assert (records.policy >= 2).all()
    expected = [references.total(problem.table, policy) for policy in records.policy]
    np.testing.assert_allclose(np.stack(records.cost, -1), expected, rtol=1e-5)
    np.testing.assert_allclose(records.accuracy, problem.evaluator(records.policy).accuracy, rtol=1e-6)
    np.testing.assert_allclose(records.reward, records.accuracy - 0.95, rtol=1e-5, atol=1e-6)
    inside = np.where(records.feasible, records.accuracy, -1)
    assert result.best == inside.argmax() and result.accuracy == inside.max()
    np.testing.assert_array_equal(result.policy, records.policy[result.best])
    np.testing.assert_allclose(result.cost, expected[result.best], rtol=1e-5)


def test_random_search_finds_the_optimum_of_a_problem_small_enough_to_exhaust():
    problem = make_toy(3)
    policies = np.array([[[8, 8], middle, [8, 8]] for middle in itertools.product(range(2, 9), repeat=2)])
    fitting = policies[np.asarray(fits(policy_cost(problem.table, jnp.asarray(policies)), problem.budget))]
    optimum = fitting[np.argmax(problem.evaluator(fitting).accuracy)]
    assert 5 < len(fitting) < 45
    result = search(problem, "random", parallel=50, episodes=1000, key=jax.random.key(0))
    np.testing.assert_array_equal(result.policy, optimum)


@pytest.mark.slow
def test_haq_beats_random_search_and_the_best_uniform_policy():
    """At the same number of evaluations, on 20 layers; with smaller networks than the paper's, for speed."""
    problem, episodes = make_toy(20, latency=0.35), 120
    haq = make_haq(HAQ(DDPG(hidden=(64, 48)), parallel=4))
    found, by_chance = (
        [search(problem, s, episodes=episodes, key=jax.random.key(seed)).accuracy for seed in range(3)]
        for s in (haq, make_random(4))
    )
    uniform = best_uniform(problem.table, problem.bounds, problem.budget).policy
    uniform = problem.evaluator(uniform[None]).accuracy[0]
    assert np.mean(found) > np.mean(by_chance) + 0.05
    assert np.mean(found) > uniform + 0.02


@each_search
def test_the_same_key_gives_the_same_result(name):
    problem, searcher = make_toy(), named(name, 2)
    one, again, other = (search(problem, searcher, episodes=10, key=jax.random.key(seed)) for seed in (3, 3, 4))
    assert_same(one, again)
    if name in ("haq", "random"):  # others begin alike whatever the key
        assert not np.array_equal(one.records.actions, other.records.actions)


@each_search
def test_episodes_need_not_fill_the_last_round(name):
    problem, searcher = make_toy(), named(name, 4)
    some, more = (search(problem, searcher, episodes=count, key=jax.random.key(0)) for count in (10, 12))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:10]), some.records, more.records)
    assert len(some.records.accuracy) == 10 and some.best < 10


@each_search
def test_a_resumed_search_ends_as_if_it_had_never_stopped(name):
    problem, searcher = make_toy(), named(name, 2)
    whole = search(problem, searcher, episodes=12, key=jax.random.key(0))
    half = search(problem, searcher, episodes=6, key=jax.random.key(0))
    rest = search(problem, searcher, episodes=12, key=jax.random.key(0), resume=half)
    assert_same(whole, rest)
    jax.tree.map(np.testing.assert_array_equal, bare(whole.state), bare(rest.state))


def bare(state):
    """The state with keys as numbers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


@each_search
def test_no_policy_budget_seed_machine_or_network_of_the_same_size_compiles_again(name):
    traces = []

    def counted(sensitivity, policies):
        traces.append(1)
        return accuracy(sensitivity, policies)

    for seed, limit in enumerate([0.4, 0.5, 0.7]):
        problem = make_toy(seed=seed, evaluate=counted, latency=limit)
        search(problem, named(name, 2), episodes=6, key=jax.random.key(seed))
    assert len(traces) == 1


def test_results_so_far_arrive_after_each_round():
    seen = []
    result = search(make_toy(), "random", parallel=2, episodes=5, key=jax.random.key(0), on_round=seen.append)
    assert [len(so_far.records.accuracy) for so_far in seen] == [2, 4, 5]
    assert_same(seen[-1], result)
    assert not result.interrupted


@each_search
def test_an_interrupted_search_ends_with_what_was_found(name):
    def stop(so_far):
        if len(so_far.records.accuracy) == 4:
            raise KeyboardInterrupt

    problem, searcher = make_toy(), named(name, 2)
    stopped = search(problem, searcher, episodes=12, key=jax.random.key(0), on_round=stop)
    assert stopped.interrupted
    assert_same(stopped, search(problem, searcher, episodes=4, key=jax.random.key(0)))


def test_a_search_interrupted_before_its_first_round_has_nothing_to_give():
    def interrupt(sensitivity, policies):
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="interrupted before the first round"):
        search(make_toy(evaluate=interrupt), "random", episodes=4, key=jax.random.key(0))


@each_search
def test_an_accuracy_that_is_no_number_never_wins_and_counts_as_zero(name):
    def broken(sensitivity, policies):
        even = policies[:, 1, 0] % 2 == 0
        return jnp.where(even, jnp.where(policies[:, 1, 1] % 2 == 0, jnp.nan, jnp.inf), accuracy(sensitivity, policies))

    result = search(make_toy(evaluate=broken), named(name, 4), episodes=80, key=jax.random.key(0))
    wrong = ~np.isfinite(result.records.accuracy)
    assert 0 < wrong.sum() < 80
    np.testing.assert_allclose(result.records.reward[wrong], -0.95)
    assert result.accuracy == result.records.accuracy[~wrong & result.records.feasible].max()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(bare(learned(result.state))))


def learned(state):
    """The state without the parts of the problem, where NaN means that there is no such cost."""
    if not isinstance(state, (ILPState, GreedyState)):
        return state
    return [x for name, x in state._asdict().items() if name not in ("table", "budget", "gain")]


def test_a_search_without_one_finite_accuracy_says_so():
    problem = make_toy(evaluate=lambda sensitivity, policies: jnp.full(len(policies), jnp.nan))
    with pytest.raises(RuntimeError, match="no policy of the search fits the budget and has a finite accuracy"):
        search(problem, "random", episodes=3, key=jax.random.key(0))


@pytest.mark.parametrize(("limits", "resource"), [({"latency": 0.8}, "latency"), ({"size": 0.8}, "size")])
def test_among_equally_accurate_policies_the_cheapest_wins(limits, resource):
    problem = make_toy(evaluate=lambda sensitivity, policies: jnp.full(len(policies), 0.5), **limits)
    result = search(problem, "random", parallel=4, episodes=40, key=jax.random.key(0))
    assert getattr(result.cost, resource) == getattr(result.records.cost, resource).min()


def test_an_evaluator_must_give_one_accuracy_a_policy():
    problem = make_toy(evaluate=lambda sensitivity, policies: jnp.float32(0.5))
    with pytest.raises(ValueError, match=r"gave accuracy \(\) for 2 policies"):
        search(problem, make_random(2), episodes=2, key=jax.random.key(0))


def test_an_impossible_budget_stops_before_anything_runs():
    def fail(sensitivity, policies):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match="latency budget .* is below the floor .* layer0"):
        search(make_toy(evaluate=fail, latency=0.01), "random", episodes=3, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"searcher": "annealing", "episodes": 3}, "unknown search 'annealing': there are .*haq, .*random"),
        ({"searcher": "random", "episodes": 0}, "a search of 0 episodes"),
        ({"searcher": "random", "episodes": 3, "parallel": 0}, "parallel is 0"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(make_toy(), key=jax.random.key(0), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": make_table(make_layers(4))}, "the cost table has 4 layers, the network 5"),
        ({"bounds": make_bounds(6)}, "the bounds have 6 layers, the network 5"),
        ({"reference": 71.8}, "reference accuracy 71.8"),
        ({"reference": float("nan")}, "reference accuracy nan"),
    ],
)
def test_a_problem_of_parts_that_do_not_belong_together_is_refused(change, message):
    layers = make_layers(5)
    table = make_table(layers)
    parts = {"table": table, "bounds": make_bounds(layers), "reference": 0.95}
    with pytest.raises(ValueError, match=message):
        make_problem(layers, budget=budget(table), evaluator=lambda p: p[:, 0, 0] / 8, **(parts | change))


def test_a_searcher_of_ones_own_is_three_functions():
    """Climbs a hill: keeps the best actions it was told of, and tries others near them."""

    def init(problem, key):
        return to_actions(problem.bounds.high, problem.bounds), jnp.float32(-1)

    def ask(state, key):
        return jnp.clip(state[0][None] + 0.1 * jax.random.normal(key, (4, *state[0].shape)), 0, 1)

    def tell(state, actions, policies, rewards):
        best = jnp.argmax(rewards)
        better = rewards[best] > state[1]
        return jnp.where(better, actions[best], state[0]), jnp.where(better, rewards[best], state[1])

    problem = make_toy(latency=0.4)
    climbed = search(problem, Searcher(init, ask, tell), episodes=80, key=jax.random.key(0))
    assert climbed.accuracy > climbed.records.accuracy[:4].max()
    assert climbed.accuracy == pytest.approx(0.95 + float(climbed.state[1]), abs=1e-6)


def with_latency(problem, factor):
    """The same problem on a machine that is slower by a factor."""
    table = dataclasses.replace(problem.table, latency=problem.table.latency * factor)
    return dataclasses.replace(problem, table=table)


@pytest.mark.parametrize(
    "problem, searcher, key, message",
    [
        (make_toy, ("uniform", 2), 0, r"result of the searcher random.make_random, not of uniform.make_uniform"),
        (make_toy, ("random", 4), 0, r"result of random.make_random with other numbers"),
        (make_toy, ("random", 2), 1, "result of a search with another key"),
        (lambda: make_toy(latency=0.7), ("random", 2), 0, "result within another budget"),
        (lambda: with_latency(make_toy(), 0.5), ("random", 2), 0, "the latency of its first policy was .*, and is"),
        (lambda: make_toy(6), ("random", 2), 0, "resume is a result for 5 layers, the network has 6"),
    ],
    ids=["searcher", "numbers", "key", "budget", "machine", "network"],
)
def test_a_result_of_another_search_is_no_result_to_go_on_from(problem, searcher, key, message):
    half = search(make_toy(), named("random", 2), episodes=4, key=jax.random.key(0))
    with pytest.raises(ValueError, match=message) as refused:
        search(problem(), named(*searcher), episodes=8, key=jax.random.key(key), resume=half)
    assert len(str(refused.value)) < 500
