"""Plays a search and keeps a journal of it, so that it can be taken up again."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from rich.console import Console

from haqjax.files import new_folder
from haqjax.run.config.commands import SearchConfig
from haqjax.run.distributed import from_first, is_first
from haqjax.run.float_network import make_progress
from haqjax.run.folder.files import EPISODES, open_folder, write_config
from haqjax.run.folder.journal import Journal, open_journal, read_back, warm_start
from haqjax.run.setup import Task
from haqjax.searchers import Problem, SearchResult, search
from haqjax.searchers.accuracy_constrained import PROBES, Drop, search_drop
from haqjax.searchers.base import Searcher
from haqjax.searchers.front import Front, FrontState, search_front
from haqjax.searchers.haq import HAQ, make_haq
from haqjax.searchers.improve import extend
from haqjax.searchers.loop import find_searcher
from haqjax.searchers.stages import Course
from haqjax.training.checkpoints import telling

Found = SearchResult | Drop | Front
OnRound = Callable[[Any], None]  # given a SearchResult, or the Course of several searches


def play(config: SearchConfig, task: Task, problem: Problem, out: Path, console: Console) -> Found:
    """Searches for what the configuration asks, with a progress bar, and writes down how it goes.

    Raises:
      OSError: the run folder cannot be written; what it holds of the search can be resumed.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    started = config if config.resume is None else from_first(lambda: open_folder(out))
    searcher = make_searcher(started, len(task.budgets), problem)
    with _open_journal(config, out) as journal, make_progress(console) as progress:
        key = jax.random.key(config.seed)
        before = None if config.resume is None else read_back(journal, searcher, problem, _make_state(config, task))
        if before is None and config.warm_start is not None:
            before = warm_start(config.warm_start, searcher, problem, jax.random.clone(key))
        for line in journal.complaints():
            console.print(line, highlight=False, soft_wrap=True)
        total = _share(config, task) * max(1, len(task.budgets))
        bar = progress.add_task(f"searching ({config.search})", total=total, note="compiling")

        def on_round(played: SearchResult | Course) -> None:
            progress.update(bar, completed=len(played.records.accuracy), note=_note(played, task))
            journal.write(played)

        found = _search(config, task, problem, searcher, key, before, on_round)
        journal.write(found.course if isinstance(found, Drop | Front) else found, last=True)
    return found


def _search(
    config: SearchConfig, task: Task, problem: Problem, searcher: Searcher, key: PRNGKeyArray,
    before: SearchResult | None, on_round: OnRound,
) -> Found:  # fmt: skip
    """What the configuration asks: a policy within a budget, the cheapest one, or a front."""
    if config.front is not None:
        by_name = config.search == "gradient"  # it descends for all budgets in one call
        return search_front(
            problem, config.search if by_name else searcher, task.budgets, episodes=_share(config, task), key=key,
            parallel=config.parallel, on_round=on_round, resume=before,
        )  # fmt: skip
    if config.max_drop is not None:
        return search_drop(
            problem, config.max_drop, searcher, resource=config.metrics[0], episodes=config.episodes, key=key,
            on_round=on_round, resume=before,
        )  # fmt: skip
    return search(problem, searcher, episodes=config.episodes, key=key, on_round=on_round, resume=before)


def _share(config: SearchConfig, task: Task) -> int:
    """Policies for each budget of a front; all of them in another search."""
    return config.episodes // max(1, len(task.budgets))


def _make_state(config: SearchConfig, task: Task) -> Callable[[Any], Any]:
    """What a checkpoint holds, given the state of a searcher."""
    if config.front is None:
        return lambda state: state
    shape = (len(task.budgets), len(task.layers), 2)
    solutions: Any = np.zeros(shape, np.float32) if config.search == "gradient" else None
    return lambda state: FrontState(state, solutions)


def _note(played: SearchResult | Course, task: Task) -> str:
    """What stands beside the progress bar."""
    if isinstance(played, Course):
        most = f"of {len(task.budgets)}" if task.budgets else f"of at most {PROBES}"
        return f"budget {len(played.legs)} {most}"
    return "none fits yet" if played.best is None else f"best so far {100 * played.accuracy:.1f} %"


@contextmanager
def _open_journal(config: SearchConfig, out: Path) -> Iterator[Journal]:
    """A new run that stops before its first round is over leaves nothing."""
    new = config.resume is None and is_first()
    if new:
        new_folder(out)
    try:
        if new:
            with telling(out):
                write_config(out, config)
        with open_journal(out, config) as journal:
            yield journal
    finally:
        if new and not (out / EPISODES).is_file():
            shutil.rmtree(out)


def make_searcher(config: SearchConfig, budgets: int = 0, problem: Problem | None = None) -> Searcher:
    """The method by name; in a short search HAQ's 20 episodes of warm-up take at most a fifth of all.

    An agent that starts with what another learned needs none. Where an agent is trained for each of some budgets, its
    part of the episodes counts. The addition "start" needs the problem.
    """
    if config.search == "haq":
        usual = HAQ().agent
        agents = PROBES if config.max_drop is not None else max(1, budgets)
        warmup = 0 if config.warm_start is not None else min(usual.warmup, config.episodes // agents // 5)
        agent = dataclasses.replace(usual, warmup=warmup)
        episodes = config.episodes // agents
        return make_haq(extend(HAQ(agent=agent, parallel=config.parallel), config.extension_names, problem, episodes))
    return find_searcher(config.search, config.parallel)
