"""Run folders for the tests of reports, written by hand: nothing is trained or searched."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import yaml

from haqjax.hardware import total_cost
from haqjax.policies.projection import project
from haqjax.run import SearchConfig
from haqjax.run.config.options import to_options
from haqjax.run.setup import prepare
from haqjax.types import Cost
from haqjax.units import as_fields

EPISODES = 9


def make_prepared(**options):
    config = SearchConfig.of(**{"model": "mobilenet_v1", "image_size": 32, "budget": "0.6"} | options)
    return config, prepare(config)


def write_run(folder, config, prepared, seed=0, **changes):
    """Writes what a search of random policies leaves in its folder; `changes` are made to policy.json."""
    draw = np.random.default_rng(seed)
    low, high = np.asarray(prepared.bounds.low), np.asarray(prepared.bounds.high)
    drawn = jnp.asarray(draw.integers(low, high + 1, (EPISODES, *low.shape)), jnp.int32)
    policies = np.asarray(project(drawn, prepared.table, prepared.bounds, prepared.budget).policy)
    accuracy = np.round(draw.uniform(0.2, 0.9, EPISODES), 4)
    best = int(np.argmax(accuracy))
    costs = total_cost(prepared.table, jnp.asarray(policies))
    folder.mkdir(parents=True)
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "accuracy", "reward", *as_fields(costs), "feasible", "best_accuracy"])
        for at in range(EPISODES):
            row = [at, accuracy[at], accuracy[at] - 0.9, *(_number(amount[at]) for amount in costs)]
            writer.writerow([*row, at != 1 or best == 1, accuracy[: at + 1].max()])
    found = policies[best]
    written = np.where([[False, config.by_codebook]], 32, found)
    names = {"8_bits": np.full_like(found, 8), "uniform": np.clip(4, low, high), "policy": found}
    accuracies = {"float": 0.9, "8_bits": 0.89, "uniform": 0.8, "policy": float(accuracy[best]), "images": 100}
    document = {
        "network": config.network.model,
        "hardware": prepared.machine,
        "weights": "0123456789abcdef",
        "budget": as_fields(Cost(*map(_number, prepared.budget))),
        "search": config.method.search,
        "seed": config.method.seed,
        "episodes": EPISODES,
        "best_episode": best,
        "interrupted": False,
        "layers": [
            {"name": name, "weight_bits": int(w), "activation_bits": int(a)}
            for name, (w, a) in zip(prepared.layers.names, written, strict=True)
        ],
        "uniform_bits": 4,
        "costs": {name: cost_fields(prepared, policy) for name, policy in names.items()},
        "accuracies": {"report": accuracies, "search": accuracies},
    }
    (folder / "policy.json").write_text(json.dumps(document | changes))
    options = to_options(config)
    kept = ("model", "hw", "image_size", "metric", "budget", "search", "seed")
    about = {"versions": {"jax": "0.10.2"}, "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump({name: options[name] for name in kept} | about))
    return folder


def cost_fields(prepared, policy):
    return as_fields(Cost(*map(_number, total_cost(prepared.table, jnp.asarray(policy)))))


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)
