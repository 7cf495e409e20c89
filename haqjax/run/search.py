"""The search command: from a configuration to a run folder."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from haqjax.files import new_folder
from haqjax.models import Network
from haqjax.projection import best_uniform
from haqjax.run.config import SearchConfig, free_folder
from haqjax.run.folder import EPISODES, Outcome, open_folder, show_result, write_config, write_result
from haqjax.run.journal import Journal, open_journal, read_back, warm_start
from haqjax.run.network import fingerprint, load_network, make_progress
from haqjax.run.task import Task, find_ranges, leave_activations, make_judge, make_soft, measure, prepare
from haqjax.search import Problem, SearchResult, make_problem, search
from haqjax.search.base import Searcher
from haqjax.search.haq import HAQ, make_haq
from haqjax.search.loop import find_searcher
from haqjax.types import FULL_PRECISION, WIDTHS, Ranges


def run_search(config: SearchConfig, console: Console) -> Path:
    """Searches a policy and writes a run folder; the last lines printed are the result.

    Returns:
      The run folder.

    Raises:
      ValueError: bad input, also a budget below the floor; nothing has been trained or written.
      OSError: the run folder cannot be written; what it holds of the search can be resumed.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    config, out = find_folder(config)
    task = prepare(config)
    out = out or free_folder(_name(config, task))
    for note in task.data.notes:
        console.print(note, highlight=False, soft_wrap=True)
    network = load_network(task.network, task.data, config.weights, console)
    ranges = find_ranges(config, network, task.data)
    problem, fixed, selected = _pose(config, task, network, ranges)
    result = _search(config, problem, out, console)
    policies = fixed | {"policy": leave_activations(config, jnp.asarray(result.policy))}
    unseen = make_judge(config, network, task.data.report, ranges, task.data)
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


def find_folder(config: SearchConfig) -> tuple[SearchConfig, Path | None]:
    """The configuration to run and the folder, where one is given: that of the run to resume, or a new one.

    Raises:
      ValueError: the run to resume is not there, or was started with other options.
    """
    if config.resume is None:
        return config, None if config.out is None else Path(config.out)
    before = open_folder(config.resume)
    usual = SearchConfig()
    for field in dataclasses.fields(SearchConfig):
        asked, was = getattr(config, field.name), getattr(before, field.name)
        if field.name not in ("resume", "out", "episodes") and asked not in (getattr(usual, field.name), was):
            raise ValueError(
                f"{config.resume} was started with {field.name} {was!r}, not {asked!r}: leave it out, or start anew"
            )
    episodes = before.episodes if config.episodes == usual.episodes else config.episodes
    return dataclasses.replace(before, resume=config.resume, episodes=episodes, out=None), Path(config.resume)


def _name(config: SearchConfig, task: Task) -> str:
    aim = f"{'+'.join(config.metrics)}{str(config.budget).replace(',', '+').replace(' ', '')}"
    return f"runs/{config.model}-{task.machine}-{aim}-{config.search}-seed{config.seed}"


def _pose(
    config: SearchConfig, task: Task, network: Network, ranges: Ranges
) -> tuple[Problem, dict[str, jax.Array], dict[str, float]]:
    """The problem, the policies that a search is compared with, and their accuracies on the search split."""
    judge = make_judge(config, network, task.data.search, ranges, task.data)
    uniform = best_uniform(task.table, task.bounds, task.budget).policy
    fixed = {
        "float": jnp.full_like(uniform, FULL_PRECISION),
        "8_bits": leave_activations(config, jnp.full_like(uniform, WIDTHS)),
        "uniform": leave_activations(config, uniform),
    }
    selected = measure(judge, fixed)
    soft_loss = make_soft(config, network, task.data, ranges)
    problem = make_problem(
        task.layers, task.table, task.bounds, task.budget, judge, selected["float"], soft_loss=soft_loss
    )
    return problem, fixed, selected


def _search(config: SearchConfig, problem: Problem, out: Path, console: Console) -> SearchResult:
    searcher = make_searcher(config if config.resume is None else open_folder(out))
    with _open_journal(config, out) as journal, make_progress(console) as progress:
        key = jax.random.key(config.seed)
        before = None if config.resume is None else read_back(journal, searcher, problem)
        if before is None and config.warm_start is not None:
            before = warm_start(config.warm_start, searcher, problem, jax.random.clone(key))
        bar = progress.add_task(f"searching ({config.search})", total=config.episodes, note="compiling")

        def on_round(result: SearchResult) -> None:
            best = "none fits yet" if result.best is None else f"best so far {100 * result.accuracy:.1f} %"
            progress.update(bar, completed=len(result.records.accuracy), note=best)
            journal.write(result)

        result = search(
            problem,
            searcher,
            episodes=config.episodes,
            key=key,
            on_round=on_round,
            resume=before,
        )
        journal.write(result, last=True)
    return result


@contextmanager
def _open_journal(config: SearchConfig, out: Path) -> Iterator[Journal]:
    """A new run that stops before its first round is over leaves nothing."""
    if config.resume is None:
        write_config(new_folder(out), config)
    try:
        with open_journal(out, config) as journal:
            yield journal
    finally:
        if config.resume is None and not (out / EPISODES).is_file():
            shutil.rmtree(out)


def make_searcher(config: SearchConfig) -> Searcher:
    """The method by name; in a short search HAQ's 20 episodes of warm-up take at most a fifth of all.

    An agent that starts with what another learned needs none.
    """
    if config.search == "haq":
        usual = HAQ().agent
        warmup = 0 if config.warm_start is not None else min(usual.warmup, config.episodes // 5)
        agent = dataclasses.replace(usual, warmup=warmup)
        return make_haq(HAQ(agent=agent, parallel=config.parallel))
    return find_searcher(config.search, config.parallel)
