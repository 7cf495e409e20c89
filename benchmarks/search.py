"""Is the policy that HAQ finds at least as accurate as the best uniform one and as random search's?

    make bench        # or: python benchmarks/search.py --seeds 3 --model mobilenet_v2

The default task at 0.6 of the 8-bit latency. Policies are selected on the search split, as `make search` does; the
report split, which nothing was selected on, is shown beside it. HAQ and random search evaluate equally many policies.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import records
from rich.console import Console

from haqjax import calibrate, search
from haqjax.cli import keep_compiled_programs
from haqjax.evaluation import make_evaluator
from haqjax.policies.projection import best_uniform
from haqjax.run import SearchConfig
from haqjax.run.float_network import load_network
from haqjax.run.resumable import make_searcher
from haqjax.run.setup import calibration_batches, prepare
from haqjax.searchers import make_problem

CASES = (("mobilenet_v2", "edge", 400), ("resnet50", "cloud", 100))  # with the episodes of each search


def bench(model, hw, episodes, seeds, budget):
    """Measures one network on one machine."""
    base = SearchConfig.of(model=model, hw=hw, budget=f"{budget:g}", episodes=episodes)
    prepared = prepare(base)
    network = load_network(prepared.network, prepared.data, None, Console())
    ranges = calibrate(network.apply, network.params, calibration_batches(prepared.data.train))
    evaluators = {
        name: make_evaluator(network.apply, network.params, split, ranges)
        for name, split in (("search", prepared.data.search), ("report", prepared.data.report))
    }
    evaluate = jax.jit(lambda evaluator, policies: evaluator(policies).accuracy)

    def accuracies(policy):
        return {name: float(evaluate(evaluator, policy[None])[0]) for name, evaluator in evaluators.items()}

    unquantised = jnp.full((len(prepared.layers), 2), 32)
    uniform = best_uniform(prepared.table, prepared.bounds, prepared.budget)
    limit = float(prepared.budget.latency)
    result = {"model": model, "hw": hw, "budget": budget, "episodes": episodes} | {
        "images": {"search": len(prepared.data.search), "report": len(prepared.data.report)},
        "float": accuracies(unquantised),
        "8_bits": accuracies(jnp.full_like(unquantised, 8)),
        "uniform": accuracies(uniform.policy) | {"latency_of_budget": float(uniform.cost.latency) / limit},
    }
    problem = make_problem(
        prepared.layers,
        prepared.table,
        prepared.bounds,
        prepared.budget,
        evaluators["search"],
        result["float"]["search"],
    )
    for name in ("haq", "random"):
        rows = []
        for seed in range(seeds):
            config = SearchConfig.of(
                model=model, hw=hw, budget=f"{budget:g}", episodes=episodes, search=name, seed=seed
            )
            start = time.perf_counter()
            found = search(problem, make_searcher(config), episodes=episodes, key=jax.random.key(seed))
            half = len(found.records.accuracy) // 2
            rows.append(
                {
                    "seed": seed,
                    "seconds": time.perf_counter() - start,
                    "latency_of_budget": float(found.cost.latency) / limit,
                    "mean_accuracy_of_the_second_half": float(np.mean(found.records.accuracy[half:])),
                    **accuracies(jnp.asarray(found.policy)),
                }
            )
        result[name] = rows
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--model", choices=[model for model, *_ in CASES], default=None)
    asked = parser.parse_args()
    keep_compiled_programs()
    for case in CASES:
        if asked.model in (None, case[0]):
            records.write(f"search-{case[0]}", bench(*case, asked.seeds, asked.budget))
