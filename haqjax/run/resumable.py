"""Resumable search: the stages of a question, with a journal in the run folder."""

import dataclasses
import shlex
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import jax
from jaxtyping import PRNGKeyArray
from rich.console import Console

from haqjax.files import new_folder
from haqjax.run.config.aim import CheapestAim, FrontAim
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import from_first, is_first
from haqjax.run.folder.documents import EPISODES, open_folder
from haqjax.run.folder.files import write_config
from haqjax.run.folder.journal import CHECKPOINTS, open_journal, read_back, read_warm_start
from haqjax.run.folder.lock import lock_folder
from haqjax.run.progress import show_progress
from haqjax.run.setup import PreparedSearch
from haqjax.run.terminal import say
from haqjax.searchers import Problem, Searcher, SearchResult
from haqjax.searchers.accuracy_constrained import PROBES, Cheapest
from haqjax.searchers.base import Question
from haqjax.searchers.front import make_front
from haqjax.searchers.haq import HAQ, extend, make_haq
from haqjax.searchers.loop import Within, answer, find_searcher
from haqjax.training.checkpoints import has_checkpoint, shorten_disk_errors


def run_resumable(
    config: SearchConfig,
    prepared: PreparedSearch,
    problem: Problem,
    out: Path,
    console: Console,
    weights: str | None = None,
) -> SearchResult:
    """Searches for what the configuration asks, shows progress, and keeps a journal to go on from.

    Args:
      weights: fingerprint of the float network, which a search that goes on must have, too.

    Raises:
      OSError: the run folder cannot be written; what it holds of the search can be resumed.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    started = config if config.run.resume is None else from_first(lambda: open_folder(out))
    searcher = make_searcher(started, len(prepared.budgets), problem)
    key = jax.random.key(config.method.seed)
    with open_journal(out, config, weights=weights) as journal:
        before = None if config.run.resume is None else read_back(journal, searcher, problem)
        if before is None and config.method.warm_start is not None:
            before = read_warm_start(config.method.warm_start, searcher, problem, jax.random.clone(key))
        for line in journal.complaints():
            say(console, line)
        question, total = _make_question(config, prepared, problem, before, key)
        with show_progress(console, f"searching ({config.method.search})", total) as advance:

            def on_round(result: SearchResult) -> None:
                advance(len(result.records.accuracy), _describe_progress(result, prepared, config))
                journal.write(result)

            patience = config.method.patience
            result = answer(problem, searcher, question, patience=patience, on_round=on_round, resume=before)
            journal.write(result, last=True)
    return result


def _make_question(
    config: SearchConfig, prepared: PreparedSearch, problem: Problem, before: SearchResult | None, key: PRNGKeyArray
) -> tuple[Question, int]:
    """Makes the question, and counts its episodes."""
    aim, episodes = config.aim, config.method.episodes
    if isinstance(aim, FrontAim):
        return make_front(problem, config.method.search, prepared.budgets, episodes, key), episodes
    if isinstance(aim, CheapestAim):
        return Cheapest(aim.max_drop, aim.resource, episodes, jax.random.split(key, PROBES)), episodes
    return Within(episodes, key, before), episodes


def _describe_progress(result: SearchResult, prepared: PreparedSearch, config: SearchConfig) -> str:
    """Says beside the bar how far the search has come."""
    if config.aim.resource is not None:
        most = f"of {len(prepared.budgets)}" if prepared.budgets else f"of at most {PROBES}"
        return f"budget {len(result.stages)} {most}"
    return "none fits yet" if result.best is None else f"best so far {100 * result.accuracy:.1f} %"


@contextmanager
def hold_folder(out: Path, console: Console, checkpoints: str = "", how: str = "") -> Iterator[None]:
    """Holds the lock of a run folder; an error on the way notes how to go on, where there is something to go on from.

    Args:
      checkpoints: name of the folder of checkpoints within it.
      how: for people.

    Raises:
      ValueError: another process writes there.
    """
    with ExitStack() as held:

        def lock() -> str:
            return held.enter_context(lock_folder(out)) if is_first() else ""

        if note := from_first(lock):
            say(console, note)
        try:
            yield
        except ValueError:  # says itself what to do
            raise
        except BaseException as error:
            if checkpoints and has_checkpoint(out / checkpoints):
                error.add_note(how)
            raise


def hold_search(out: Path, console: Console) -> AbstractContextManager[None]:
    """Holds the folder of a search; see `hold_folder`."""
    return hold_folder(out, console, CHECKPOINTS, f"go on with `make search RESUME={shlex.quote(str(out))}`")


@contextmanager
def make_run_folder(out: Path, config: SearchConfig, console: Console) -> Iterator[None]:
    """Makes and holds the folder of a new run; one that stops before its first round is over leaves nothing."""
    if is_first():
        new_folder(out)
    try:
        with hold_search(out, console):
            if is_first():
                with shorten_disk_errors(out):
                    write_config(out, config)
            yield
    finally:
        if is_first() and not (out / EPISODES).is_file():
            shutil.rmtree(out)


def make_searcher(config: SearchConfig, budgets: int = 0, problem: Problem | None = None) -> Searcher:
    """Makes the method by name; in a short search HAQ's 20 episodes of warm-up take at most a fifth of all.

    An agent that starts with what another learned needs none. Where an agent is trained for each of some budgets, its
    part of the episodes counts. The extension "start" needs the problem.
    """
    method = config.method
    if method.search != "haq":
        return find_searcher(method.search, method.parallel)
    usual = HAQ().agent
    agents = PROBES if isinstance(config.aim, CheapestAim) else max(1, budgets)
    episodes = method.episodes // agents
    warmup = 0 if method.warm_start is not None else min(usual.warmup, episodes // 5)
    haq = HAQ(agent=dataclasses.replace(usual, warmup=warmup), parallel=method.parallel)
    return make_haq(extend(haq, method.extension_names, problem, episodes))
