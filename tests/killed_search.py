"""A search in a process of its own, slow enough to be killed; see test_search_killed.py.

python killed_search.py FOLDER MILLISECONDS
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget
from haqjax.run import SearchConfig
from haqjax.run.folder import journal
from haqjax.searchers import HAQ, make_haq, make_problem, search
from haqjax.types import Cost, CostTable, LayerTable

LAYERS, EPISODES, WARMUP = 3, 120, 20


def make_layers() -> LayerTable:
    """Three dense layers."""
    one, two = np.ones(LAYERS, int), np.ones((LAYERS, 2), int)
    names = tuple(f"layer{i}" for i in range(LAYERS))
    return LayerTable(names, two, two, 8 * one, 8 * one, one, two, two, np.ones(LAYERS, bool), np.array(0))


def evaluate(policies: jax.Array) -> jax.Array:
    """More bits are better, the later layers' more so."""
    weight = jnp.asarray([[0.1, 0.05], [0.15, 0.1], [0.2, 0.1]])[None]
    return jnp.sum(weight * (1 - 2.0 ** -policies.astype(jnp.float32)), axis=(1, 2))


def main(folder: Path, pause: float) -> None:
    """Searches on from what the folder holds."""
    journal.EVERY = 0.0
    layers, bits = make_layers(), np.arange(1.0, 9.0)
    cycles = np.broadcast_to(bits[:, None] * bits[None, :], (LAYERS, 8, 8))
    table = CostTable(cycles, cycles, cycles, Cost(0.0, 0.0, 0.0))
    problem = make_problem(layers, table, make_bounds(LAYERS, pinned={}), budget(table, latency=0.5), evaluate, 1.0)
    searcher = make_haq(HAQ(agent=HAQ().agent, parallel=4))
    folder.mkdir(exist_ok=True)
    with journal.open_journal(folder, SearchConfig()) as opened:
        before = journal.read_back(opened, searcher, problem)

        def on_round(result) -> None:
            opened.write(result)
            time.sleep(pause)

        result = search(problem, searcher, episodes=EPISODES, key=jax.random.key(0), on_round=on_round, resume=before)
    np.savez(folder / "records.npz", *jax.tree.leaves(result.records), *jax.tree.leaves(result.state.agent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) / 1000)
