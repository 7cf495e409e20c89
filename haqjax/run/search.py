"""The search command: from a configuration to a run folder."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console

from haqjax.budget import best_uniform, budget, check_reachable
from haqjax.capture import layers
from haqjax.data import Dataset, Split, load
from haqjax.files import new_folder
from haqjax.hardware import cost_table
from haqjax.models import Network
from haqjax.policy import bounds
from haqjax.quantize import calibrate
from haqjax.run.config import SearchConfig, free_folder
from haqjax.run.folder import Outcome, show_result, write_config, write_episodes, write_result
from haqjax.run.network import empty_network, fingerprint, load_network, make_progress
from haqjax.search import Problem, SearchResult, make_problem, search
from haqjax.search.base import Searcher
from haqjax.search.haq import HAQ, make_haq
from haqjax.search.loop import find_searcher
from haqjax.train import make_evaluate
from haqjax.types import FULL_PRECISION, WIDTHS, Bounds, Budget, CostTable, LayerTable

CALIBRATION_IMAGES = 256  # of the training split
CALIBRATION_BATCH = 64
WRITE_EVERY = 2.0  # s between two writings of episodes.csv


class Task(NamedTuple):
    """What is known before anything is trained."""

    machine: str
    data: Dataset
    network: Network
    layers: LayerTable
    table: CostTable
    bounds: Bounds
    budget: Budget


def run_search(config: SearchConfig, console: Console) -> Path:
    """Searches a policy and writes a run folder; the last lines printed are the result.

    Returns:
      The run folder.

    Raises:
      ValueError: bad input, also a budget below the floor; nothing has been trained or written.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    task = prepare(config)
    name = f"runs/{config.model}-{task.machine}-{config.metric}{config.budget:g}-{config.search}-seed{config.seed}"
    out = Path(config.out) if config.out is not None else free_folder(name)
    network = load_network(task.network, task.data, config.weights, console)
    ranges = calibrate(network.apply, network.params, calibration_batches(task.data.train), config.calibration)
    judge = make_evaluate(network.apply, network.params, task.data.search, ranges)
    uniform = best_uniform(task.table, task.bounds, task.budget).policy
    fixed = {
        "float": jnp.full_like(uniform, FULL_PRECISION),
        "8_bits": jnp.full_like(uniform, WIDTHS),
        "uniform": uniform,
    }
    selected = measure(judge, fixed)
    problem = make_problem(task.layers, task.table, task.bounds, task.budget, judge, selected["float"])
    result = _search(config, problem, out, console)
    policies = fixed | {"policy": jnp.asarray(result.policy)}
    unseen = make_evaluate(network.apply, network.params, task.data.report, ranges)
    outcome = Outcome(
        policies={name: np.asarray(policy) for name, policy in policies.items()},
        searched=selected | {"policy": result.accuracy},
        reported=measure(unseen, policies),
        images=(len(task.data.search), len(task.data.report)),
        machine=task.machine,
        weights=fingerprint(network.params),
    )
    write_result(out, config, task.layers, task.table, task.bounds, task.budget, result, outcome)
    show_result(config, task.table, result, outcome, out, console)
    return out


def prepare(config: SearchConfig) -> Task:
    """Reads the data, prices the network's layers, and makes sure that the budget can be met."""
    config.check()
    accelerator = config.machine
    data = load(config.data, data_dir=config.data_dir)
    network = empty_network(config.model, data)
    table_of = layers(network.apply, network.params, network.example)
    table = cost_table(accelerator, table_of)
    low, high = config.widths
    limits = bounds(table_of, low=low, high=high)
    spendable = budget(table, **{config.metric: config.budget})
    check_reachable(table, limits, spendable, table_of.names)
    return Task(accelerator.name, data, network, table_of, table, limits, spendable)


def _search(config: SearchConfig, problem: Problem, out: Path, console: Console) -> SearchResult:
    written: float | None = None
    with make_progress(console) as progress:
        bar = progress.add_task(f"searching ({config.search})", total=config.episodes, note="compiling")

        def on_round(result: SearchResult) -> None:
            nonlocal written
            best = "none fits yet" if result.best is None else f"best so far {100 * result.accuracy:.1f} %"
            progress.update(bar, completed=len(result.records.accuracy), note=best)
            if result.best is None:  # a search that finds nothing leaves no folder
                return
            if written is None:
                write_config(new_folder(out), config)
            if written is None or time.monotonic() - written > WRITE_EVERY:
                write_episodes(out, result)
                written = time.monotonic()

        return search(
            problem,
            make_searcher(config),
            episodes=config.episodes,
            key=jax.random.key(config.seed),
            on_round=on_round,
        )


def make_searcher(config: SearchConfig) -> Searcher:
    """The method by name; in a short search HAQ's 20 episodes of warm-up take at most a fifth of all."""
    if config.search == "haq":
        usual = HAQ().agent
        agent = dataclasses.replace(usual, warmup=min(usual.warmup, config.episodes // 5))
        return make_haq(HAQ(agent=agent, parallel=config.parallel))
    return find_searcher(config.search, config.parallel)


def calibration_batches(split: Split) -> list[Float[np.ndarray, "B H W C"]]:
    """The images that clip values are chosen by."""
    images = split.images[:CALIBRATION_IMAGES]
    return [images[at : at + CALIBRATION_BATCH] for at in range(0, len(images), CALIBRATION_BATCH)]


@jax.jit
def _judge_all(judge: jax.tree_util.Partial, policies: Int[Array, "N L 2"]) -> Float[Array, "N"]:
    return judge(policies)


def measure(judge: jax.tree_util.Partial, policies: dict[str, Int[Array, "L 2"]]) -> dict[str, float]:
    """Accuracies by name; always of four policies, so that both splits share one compiled program."""
    rows = list(policies.values())
    rows += rows[-1:] * (4 - len(rows))
    return dict(zip(policies, np.asarray(_judge_all(judge, jnp.stack(rows))).tolist(), strict=False))
