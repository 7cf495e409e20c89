"""How near do the updates of HAQ's agent come to the arithmetic of the machine, and what do fewer of them cost?

    python benchmarks/agent.py
    python benchmarks/agent.py --curves a --seeds 10
    python benchmarks/agent.py --curves b --seeds 3

* 106 updates (an episode of MobileNetV2) of an agent of 400 and 300 units, batch 64, beside the ten large products that
  each update consists of: alone, with operands in bfloat16, and at the rate of one large product. Processor time stands
  beside clock time, as the machine may be shared.
* Learning curves (`--curves`): the mean accuracy of what the agent proposes in each fourth of a search, and the best.
  All variants have the same seeds, and share their evaluations. Problems are those of search_problems.py, at 0.5 (a)
  and 0.35 (b).
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import records
import search_quality
import tyro
from search_problems import best_of_all, pose, within

from haqjax.agent import DDPG, make_agent
from haqjax.agent.replay import add, make_replay
from haqjax.cli import keep_compiled_programs
from haqjax.searchers import HAQ, make_haq, search
from haqjax.types import Transition

UPDATES, BATCH = 106, 64
WIDE, NARROW = DDPG().hidden
LIMITS = {"a": 0.5, "b": 0.35}
VARIANTS = {  # of HAQ: batch, updates a decision
    "batch 64, 1 update a decision": (64, 1.0),
    "batch 256, 1/4": (256, 0.25),
    "batch 64, 1/2": (64, 0.5),
    "batch 64, 1/4": (64, 0.25),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    curves: Literal["a", "b"] | None = None
    """Measure learning curves on this problem, instead of times."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 10
    episodes: int = 200
    parallel: int = 4
    repeats: int = 15


def main(config: Config) -> None:
    """Measures and writes the figures."""
    if config.curves is None:
        records.write("agent", time_updates(config.repeats))
    else:
        records.write(f"agent-curves-{config.curves}", measure_curves(config, config.curves))


def time_updates(repeats: int) -> dict[str, Any]:
    """Measures seconds of updates and of their products."""
    operations = UPDATES * 10 * 2 * BATCH * WIDE * NARROW
    rate = records.matmul_limit()
    runs = {
        f"updates: {count} of {batch}": make_learner(count, batch)
        for count, batch in ((UPDATES, 64), (53, 128), (27, 256), (53, 64), (27, 64))
    }
    for kind in (jnp.float32, jnp.bfloat16):
        runs[f"products alone, {kind.__name__}"] = make_products(kind)
    return {
        "gflop": operations / 1e9,
        "gflop_a_second_of_a_product_of_2048": rate / 1e9,
        "seconds_at_that_rate": operations / rate,
        "seconds": measure_both(runs, repeats),
    }


def make_learner(count: int, batch: int) -> Callable[[], Any]:
    """Makes a run of updates on a full memory of random decisions of 53 layers."""
    agent = make_agent(DDPG(batch=batch))
    learn = jax.jit(agent.learn, static_argnums=3)
    rows, random = DDPG().memory * 53, np.random.default_rng(0)
    shapes = ((rows, 10), (rows,), (rows,), (rows, 10), (rows,))
    drawn = Transition(*(jnp.asarray(random.random(shape), jnp.float32) for shape in shapes))
    state, memory = agent.init(jax.random.key(0)), add(make_replay(rows, 10), drawn)
    return lambda: learn(state, memory, jax.random.key(1), count)


def make_products(kind: Any) -> Callable[[], Any]:
    """Makes a run of the products between the hidden layers of as many updates: sums in float32.

    Forward through target actor, target critic, critic, actor and critic again; back to the inputs of critic, actor and
    critic; and the gradients of the weights of critic and actor.
    """
    random = np.random.default_rng(0)
    wide, narrow, weights = (
        [jnp.asarray(random.normal(size=shape), kind) for _ in range(count)]
        for shape, count in (((BATCH, WIDE), 7), ((BATCH, NARROW), 5), ((WIDE, NARROW), 4))
    )

    @jax.jit
    def once(wide: list, narrow: list, weights: list) -> list:
        forward = [(x, weights[at]) for x, at in zip(wide[:5], (0, 1, 2, 3, 2), strict=True)]
        back = [(x, weights[at].T) for x, at in zip(narrow[:3], (2, 3, 2), strict=True)]
        slopes = [(x.T, g) for x, g in zip(wide[5:], narrow[3:], strict=True)]
        return [jnp.matmul(a, b, preferred_element_type=jnp.float32) for a, b in forward + back + slopes]

    return lambda: [once(wide, narrow, weights) for _ in range(UPDATES)]


def measure_both(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Measures the least and the median seconds of each, by the clock and of all cores, in turn in every round."""
    for run in runs.values():
        jax.block_until_ready(run())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            clock, cores = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            taken[name].append((time.perf_counter() - clock, time.process_time() - cores))
    return {
        name: {
            "clock": min(clock),
            "median_clock": float(np.median(clock)),
            "processors": min(cores),
            "median_processors": float(np.median(cores)),
        }
        for name, (clock, cores) in ((name, zip(*times, strict=True)) for name, times in taken.items())
    }


def measure_curves(config: Config, name: str) -> dict[str, Any]:
    """Runs a search of each variant with every seed."""
    asked = search_quality.Config(problem=name, searchers=("haq",), race=0.01 if name == "b" else None)
    problem = within(pose(asked).problem, asked, LIMITS[name])
    known: dict = {}
    figures: dict[str, Any] = {"limit": LIMITS[name], **dataclasses.asdict(config), "runs": []}
    if name == "a":
        figures |= best_of_all(problem)
    for seed, variant in itertools.product(range(config.seeds), config.variants):
        batch, updates = VARIANTS[variant]
        searcher = make_haq(HAQ(DDPG(batch=batch), parallel=config.parallel, updates=updates))
        key = jax.random.key(seed)
        found = search(problem, searcher, episodes=config.episodes, key=key, known=known).records.accuracy
        row = {"variant": variant, "seed": seed, "best": [float(part.max()) for part in running_fourths(found)]}
        row["mean"] = [float(part.mean()) for part in np.array_split(found, 4)]
        print(row, flush=True)
        figures["runs"].append(row)
    return figures | {"summary": summarise(figures["runs"])}


def running_fourths(values: np.ndarray) -> list[np.ndarray]:
    """Cuts off the first fourth, half, three fourths and all."""
    return [values[: len(values) * fourth // 4] for fourth in range(1, 5)]


def summarise(runs: list[dict]) -> dict[str, Any]:
    """Computes means over seeds, and the standard error of the difference to the first variant with the same seeds."""
    names = list(dict.fromkeys(run["variant"] for run in runs))
    found: dict[str, Any] = {}
    for kind in ("mean", "best"):
        of = {name: np.array([run[kind] for run in runs if run["variant"] == name]) for name in names}
        for name in names:
            more = of[name] - of[names[0]]
            error = more.std(axis=0, ddof=1) / len(more) ** 0.5 if len(more) > 1 else np.full(4, np.nan)
            found.setdefault(name, {})[kind] = {
                "mean": of[name].mean(axis=0),
                "more_than_the_first": more.mean(axis=0),
                "standard_error": error,
            }
    return found


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
