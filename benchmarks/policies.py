"""How many policies are costed and projected a second, and how long do an episode's updates of the agent take?

    make bench        # or: python benchmarks/policies.py

MobileNetV2's 53 layers on the BISMO edge machine. A slow loop in NumPy computes the same costs in the same run.
"""

import jax
import numpy as np
import records

from haqjax import budget, cost_table, layers, machine, project, total_cost
from haqjax.agent import make_agent
from haqjax.agent.ddpg import DDPG
from haqjax.agent.replay import add, make_replay
from haqjax.models import outline
from haqjax.policies.bounds import make_bounds
from haqjax.types import Transition

PRICED, PROJECTED, DECISIONS = 1 << 20, 1 << 16, 106


def loop_in_numpy(table, policies):
    """Adds up one policy and one layer at a time, as HAQ's released code computes costs."""
    return [sum(table.latency[i, w - 1, a - 1] for i, (w, a) in enumerate(policy)) for policy in policies]


def updates():
    """Measures seconds of one episode's 106 updates of the agent, and the floating-point limit to them."""
    config = DDPG()
    agent = make_agent(config)
    state = agent.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    rows = 4096
    shape = (rows, config.observation_size)
    memory = add(
        make_replay(rows, config.observation_size),
        Transition(
            observation=jax.random.uniform(keys[0], shape),
            action=jax.random.uniform(keys[1], (rows,)),
            reward=jax.random.normal(keys[2], (rows,)),
            next_observation=jax.random.uniform(keys[3], shape),
            discount=np.ones(rows, np.float32),
        ),
    )
    learn = jax.jit(agent.learn, static_argnums=3)
    return records.measure(lambda: learn(state, memory, jax.random.key(2), DECISIONS), repeats=10)


def main():
    """Measures and writes."""
    network = outline("mobilenet_v2")
    table_of = layers(network.apply, network.params, network.example)
    table = cost_table(machine("edge"), table_of)
    limits, spendable = make_bounds(table_of), budget(table, latency=0.6)
    draw = jax.jit(lambda key, n: jax.random.randint(key, (n, len(table_of), 2), 2, 9), static_argnums=1)
    policies = draw(jax.random.key(0), PRICED)
    project_all = jax.jit(jax.vmap(project, (0, None, None, None)))
    priced = PRICED / records.measure(lambda: total_cost(table, policies))
    projected = PROJECTED / records.measure(lambda: project_all(policies[:PROJECTED], table, limits, spendable))
    few = np.asarray(policies[:200])
    looped = len(few) / records.measure(lambda: loop_in_numpy(table, few))
    # The widest product is 400 x 300, ten times an update: both targets, critic and its two gradients, actor likewise.
    flops = DECISIONS * 10 * 2 * 64 * 400 * 300
    seconds, limit = updates(), flops / records.matmul_limit()
    figures = {
        "layers": len(table_of),
        "priced_per_second": priced,
        "priced_per_second_numpy_loop": looped,
        "projected_per_second": projected,
        "seconds_per_106_updates": seconds,
        "updates_limit_seconds": limit,
        "updates_over_limit": seconds / limit,
    }
    records.write("policies", figures)


if __name__ == "__main__":
    main()
