"""HAQ with extensions: what each one sets, and that a search with them keeps what a search keeps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.agent import DDPG
from haqjax.run import SearchConfig
from haqjax.searchers import HAQ, make_haq, search
from haqjax.searchers.haq import EXTENSIONS, extend
from haqjax.searchers.haq_features import describe_costs
from haqjax.searchers.warm_start import start_warm
from haqjax.types import Budget, Cost, CostTable
from search_world import BITS, every_policy, make_world


def test_each_extension_is_had_alone():
    problem, plain = make_world(), HAQ(DDPG(warmup=12))
    assert extend(plain, [], problem, 40) == plain
    for one in EXTENSIONS:
        found = extend(plain, [one], problem, 40)
        changed = {
            "costs": found.costs,
            "loss": found.loss,
            "swap": found.swap == 20,
            "retain": found.retain == 8,
            "start": found.start is not None,
            "twin": found.agent.twin,
        }
        assert [name for name, there in changed.items() if there] == [one]


def test_the_start_loses_least_by_the_law_of_squared_errors():
    problem = make_world(count=2)
    policies, _ = every_policy(problem)
    losses = (4.0**-policies).sum((1, 2))
    start = np.array(extend(HAQ(), ["start"], problem, 40).start)
    assert (4.0**-start).sum() == pytest.approx(losses.min(), rel=1e-5)
    assert start.shape == (2, 2) and set(start.ravel()) <= set(BITS.astype(int))


def test_costs_that_are_not_known_count_as_nothing():
    """A measured table has no entry for what the machine does not compute."""
    each = np.where(np.arange(1, 9) <= 4, 1.0, np.inf) * np.ones((3, 8, 8))
    table = CostTable(each, np.ones((3, 8, 8)), each, Cost(0, 0, 0))
    told = describe_costs(table, Budget(jnp.float32(1), jnp.float32(1), jnp.float32(jnp.inf)))
    np.testing.assert_array_equal(told, np.tile([0.5, 0.0], (6, 1)))  # of two resources, one is the same everywhere


def test_rewards_of_the_loss_are_ratios_of_likelihoods_within_the_same_bounds_as_those_of_accuracy():
    problem = make_world(reference=0.9)  # whose float network has no loss
    searcher = make_haq(extend(HAQ(DDPG(warmup=4, hidden=(16, 16)), parallel=4), ["loss"], problem, 4))
    found = search(problem, searcher, episodes=4, key=jax.random.key(0))
    remembered = np.asarray(found.state.memory.storage.reward)[:32].reshape(4, 8)
    np.testing.assert_allclose(found.records.reward, -found.records.loss, rtol=1e-5)
    expected = 10 * (np.exp(-found.records.loss) - 1)
    np.testing.assert_allclose(remembered, np.broadcast_to(expected[:, None], (4, 8)), rtol=1e-4)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found.state.best.reward, -found.records.loss.min(), rtol=1e-5)


def test_a_race_that_goes_by_accuracy_is_refused_with_rewards_of_the_loss():
    SearchConfig.of(search="haq", race=0.01, extensions="swap", budget="0.6")
    with pytest.raises(ValueError, match="race 0.01 is for haq.* without fine-tuning and the extension 'loss'"):
        SearchConfig.of(search="haq", race=0.01, extensions="swap,loss", budget="0.6")


def test_an_agent_of_another_size_is_refused():
    problem = make_world()
    small = HAQ(DDPG(warmup=4, hidden=(16, 16)), parallel=4)
    learned = search(problem, make_haq(small), episodes=4, key=jax.random.key(0)).state.agent
    for extension, part in (("costs", "actor"), ("twin", "critic")):
        other = make_haq(extend(small, [extension], problem, 40))
        with pytest.raises(ValueError, match=f"the {part} that was learned is of another size: give both searches"):
            start_warm(learned, other, problem, jax.random.key(1))


def test_an_unknown_extension_is_named():
    with pytest.raises(ValueError, match="unknown extension 'wings': there are costs, loss, retain, start, swap, twin"):
        extend(HAQ(), ["twin", "wings"], make_world(), 40)


def test_a_search_with_all_of_them_keeps_the_budget_and_finds_no_less_than_its_start():
    problem = make_world()
    config = extend(HAQ(DDPG(warmup=8, hidden=(16, 16)), parallel=4), EXTENSIONS, problem, 40)
    found = search(problem, make_haq(config), episodes=40, key=jax.random.key(0))
    assert found.records.feasible.all()
    rows = [tuple(map(tuple, policy)) for policy in found.records.policy.tolist()]
    assert rows[0] == extend(HAQ(), ["start"], problem, 40).start
    assert found.accuracy == max(found.records.accuracy) >= found.records.accuracy[0]
    assert sum(a != b for a, b in itertools.pairwise(rows)) > 20
