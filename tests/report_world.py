"""Run folders for the tests of reports, written by hand: nothing is trained or searched."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import yaml

from haqjax.hardware import total_cost
from haqjax.policies.projection import project
from haqjax.run import SearchConfig
from haqjax.run.setup import prepare

EPISODES = 9
UNITS = ("latency_s", "energy_j", "size_bytes", "bops", "memory_bytes")


def make_task(**changes):
    config = SearchConfig(model="mobilenet_v1", image_size=32, **changes)
    return config, prepare(config)


def write_run(folder, config, task, seed=0, **told):
    """What a search of random policies leaves in its folder; `told` changes policy.json."""
    draw = np.random.default_rng(seed)
    low, high = np.asarray(task.bounds.low), np.asarray(task.bounds.high)
    drawn = draw.integers(low, high + 1, (EPISODES, *low.shape))
    policies = np.asarray(project(jnp.asarray(drawn, jnp.int32), task.table, task.bounds, task.budget).policy)
    accuracy = np.round(draw.uniform(0.2, 0.9, EPISODES), 4)
    best = int(np.argmax(accuracy))
    priced = total_cost(task.table, jnp.asarray(policies))
    folder.mkdir(parents=True)
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "accuracy", "gain", *UNITS, "feasible", "best_accuracy"])
        for at in range(EPISODES):
            costs = [_number(spent[at]) for spent in priced]
            row = [at, accuracy[at], accuracy[at] - 0.9, *costs, at != 1 or best == 1]
            writer.writerow([*row, accuracy[: at + 1].max()])
    found = policies[best]
    written = np.where([[False, config.by_codebook]], 32, found)
    names = {"8_bits": np.full_like(found, 8), "uniform": np.clip(4, low, high), "policy": found}
    answers = {"float": 0.9, "8_bits": 0.89, "uniform": 0.8, "policy": float(accuracy[best]), "images": 100}
    document = {
        "network": config.model,
        "hardware": task.machine,
        "weights": "0123456789abcdef",
        "budget": dict(zip(UNITS, (_number(limit) for limit in task.budget), strict=True)),
        "search": config.search,
        "seed": config.seed,
        "episodes": EPISODES,
        "best_episode": best,
        "interrupted": False,
        "layers": [
            {"name": name, "weight_bits": int(w), "activation_bits": int(a)}
            for name, (w, a) in zip(task.layers.names, written, strict=True)
        ],
        "uniform_bits": 4,
        "costs": {name: price_of(task, policy) for name, policy in names.items()},
        "accuracies": {"report": answers, "search": answers},
    }
    (folder / "policy.json").write_text(json.dumps(document | told))
    asked = {"model": config.model, "hw": config.hw, "image_size": config.image_size, "metric": config.metric,
             "budget": config.budget, "search": config.search, "seed": config.seed}  # fmt: skip
    asked |= {"versions": {"jax": "0.10.2"}, "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(asked))
    return folder


def price_of(task, policy):
    return dict(zip(UNITS, map(_number, total_cost(task.table, jnp.asarray(policy))), strict=True))


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)
