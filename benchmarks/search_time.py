"""How long do the parts of a search take beside the evaluation, and the programmes that are solved on the way?

    python benchmarks/search_time.py

* A round of problem b (ResNet-20 on CIFAR-10, 1,000 images, see search_problems.py): ask, evaluate, tell with all that
  the loop does around them, for each searcher; and what 600 episodes take at that pace.
* An integer programme for ResNet-50 at 224 px with two budgets, over several random sensitivities.
* A front of 16 budgets by gradients, in one call.
* A search that gives up hopeless policies beside one that does not, with the same random numbers.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import records
import search_quality
import tyro
from search_problems import pose, within

from haqjax import budget, cost_table, layers, machine, search
from haqjax.allocation import allocate
from haqjax.cli import keep_compiled_programs
from haqjax.evaluation import make_evaluator
from haqjax.models import outline
from haqjax.policies.bounds import make_bounds
from haqjax.searchers.driver import evaluate_policies, run_round
from haqjax.searchers.loop import find_searcher
from haqjax.searchers.relaxation import optimise_bits
from haqjax.types import Budget

LIMIT = 0.35  # of problem b
EPISODES = 600
FRACTIONS = np.linspace(0.25, 0.95, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    searchers: tuple[str, ...] = ("ilp", "haq", "evolution", "greedy", "random")
    rounds: int = 30
    """Of each searcher, after those that compile."""
    parallel: int = 4
    programmes: int = 5
    race: float = 0.01
    raced: int = 200
    """Episodes of the two searches that are compared; 0 leaves them out."""


def main(config: Config) -> None:
    """Measures and writes the figures."""
    asked = search_quality.Config(problem="b", searchers=(*config.searchers, "gradient"), race=config.race)
    posed = pose(asked)
    raced = within(posed.problem, asked, LIMIT)
    whole = dataclasses.replace(make_evaluator(*posed.world), soft_loss=raced.evaluator.soft_loss)
    problem = dataclasses.replace(raced, evaluator=whole)
    figures = {
        "limit": LIMIT,
        "rounds": {name: time_rounds(problem, name, config) for name in config.searchers},
        "integer_programme": time_programmes(config),
        "front_of_16_by_gradients": time_front(problem),
        "race": time_race(problem, raced, config),
    }
    records.write("search-time", figures)


def time_rounds(problem: Any, name: str, config: Config) -> dict[str, float]:
    """Measures seconds of a round and of its evaluation, medians over rounds."""
    searcher = find_searcher(name, config.parallel)
    key = jax.random.key(0)
    state, known = searcher.init(problem, key), {}
    whole, evaluation, policies = [], [], []
    for number in range(config.rounds + 8):
        begun = time.perf_counter()
        state, record = run_round(searcher, problem, state, jax.random.fold_in(key, number), known)
        jax.block_until_ready(state)
        whole.append(time.perf_counter() - begun)
        policies.append(jnp.asarray(record.policy))
    for some in policies[-config.rounds :]:
        begun = time.perf_counter()
        jax.block_until_ready(evaluate_policies(problem, some))
        evaluation.append(time.perf_counter() - begun)
    total, part = float(np.median(whole[-config.rounds :])), float(np.median(evaluation))
    figures = {
        "seconds_a_round": total,
        "of_which_evaluation": part,
        "share_of_the_rest": max(0.0, 1 - part / total),
        "minutes_of_600_episodes": EPISODES / config.parallel * total / 60,
    }
    print(name, figures, flush=True)
    return figures


def time_programmes(config: Config) -> dict[str, Any]:
    """Measures seconds of the exact allocation of ResNet-50 within latency and size."""
    network = outline("resnet50", classes=1000, image_size=224)
    table_of = layers(network.apply, network.params, network.example)
    table, limits = cost_table(machine("cloud"), table_of), make_bounds(table_of)
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(config.programmes):
        scale = np.exp(random.normal(size=(len(table_of), 2, 1)))
        begun = time.perf_counter()
        allocate(scale * 4.0 ** -np.arange(1.0, 9.0), table, limits, budget(table, latency=0.5, size=0.6))
        seconds.append(time.perf_counter() - begun)
    return {"model": "resnet50", "budgets": {"latency": 0.5, "size": 0.6}, "seconds": seconds}


def time_front(problem: Any) -> dict[str, Any]:
    """Measures seconds of continuous policies for 16 budgets."""
    full = float(budget(problem.table, latency=1.0).latency)
    none = jnp.full(len(FRACTIONS), jnp.inf)
    budgets = Budget(jnp.asarray(full * FRACTIONS, jnp.float32), none, none)
    steps = 100
    arguments = (problem.evaluator.soft_loss, problem.table, problem.bounds, budgets, jax.random.key(0))
    begun = time.perf_counter()
    jax.block_until_ready(optimise_bits(*arguments, 1))
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    found = jax.block_until_ready(optimise_bits(*arguments, steps))
    return {
        "budgets": FRACTIONS,
        "steps": steps,
        "images_a_step": 64,
        "seconds": time.perf_counter() - begun,
        "seconds_to_compile_and_one_step": first,
        "mean_bits": found.mean(axis=(1, 2)),
    }


def time_race(problem: Any, raced: Any, config: Config) -> dict[str, Any]:
    """Measures seconds and results of the same search with and without giving policies up."""
    if not config.raced:
        return {}
    figures: dict[str, Any] = {"error": config.race, "episodes": config.raced}
    for name in ("random", "haq"):
        for kind, one in (("every_image", problem), ("race", raced)):
            searcher = find_searcher(name, config.parallel)
            search(one, searcher, episodes=config.parallel, key=jax.random.key(1))  # compiles
            begun = time.perf_counter()
            found = search(one, searcher, episodes=config.raced, key=jax.random.key(0))
            seconds = time.perf_counter() - begun
            row = {"seconds": seconds, "accuracy": found.accuracy, "best_episode": found.best}
            print(name, kind, row, flush=True)
            figures[f"{name}_{kind}"] = row
    return figures


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
