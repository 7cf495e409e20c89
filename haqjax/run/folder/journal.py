"""Journal of a search while it runs: its state, its episodes, its curves."""

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from haqjax.run.config.options import to_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import from_first, is_first
from haqjax.run.folder.documents import open_folder
from haqjax.run.folder.files import write_episodes
from haqjax.searchers import Problem, Record, Searcher, SearchResult
from haqjax.searchers.base import choose_best
from haqjax.searchers.warm_start import start_warm
from haqjax.training.checkpoints import WEIGHTS, Checkpoints, has_checkpoint, open_checkpoints, shorten_disk_errors
from haqjax.types import Cost

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"  # folders within the run folder
EVERY = 2.0  # s between two writings, at least; what is lost with a process is searched again, to the same bits
RECORD: Any = Record(**dict.fromkeys(Record._fields, 0) | {"cost": Cost(0, 0, 0, 0, 0)})  # type: ignore  # structure
NOT_OF_THE_SEARCH = ("out", "resume", "episodes", "patience", "hosts")  # may differ when a search goes on


@dataclasses.dataclass
class Journal:
    """Writes down a search; see `open_journal`."""

    out: Path
    checkpoints: Checkpoints | None  # None where another process writes
    curves: Any = None  # tensorboardX.SummaryWriter
    resource: str | None = None  # whose limit changes from stage to stage
    written: float = -EVERY  # when, by the monotonic clock
    drawn: int = 0  # episodes in the curves

    def write(self, result: SearchResult, last: bool = False) -> None:
        """Keeps the state and the episodes, unless it has just done so.

        Args:
          result: the state is not kept where there is none yet.
          last: whether to write even so.

        Raises:
          OSError: the folder cannot be written, such as on a full disk.
        """
        if self.checkpoints is None or (not last and time.monotonic() - self.written < EVERY):
            return
        with shorten_disk_errors(self.out):
            self._write(result)
        self.written = time.monotonic()

    def _write(self, result: SearchResult) -> None:
        assert self.checkpoints is not None
        if result.state is not None:
            state = {"state": _without_keys(result.state), "records": result.records}
            self.checkpoints.save(state, len(result.records.accuracy), last=True)
        limits = result.limits(self.resource) if self.resource else None
        write_episodes(self.out, result.records, self.resource, limits)
        self._draw(result.records)

    def newest(self) -> tuple[list[np.ndarray], int] | None:
        """Returns the newest checkpoint; see `haqjax.training.checkpoints.Checkpoints.newest`."""
        return None if self.checkpoints is None else self.checkpoints.newest()

    def complaints(self) -> list[str]:
        """Lists what was not whole in the folder, a line each."""
        cut = [] if self.checkpoints is None else self.checkpoints.unreadable
        return [
            f"checkpoint {n} in {self.out / CHECKPOINTS} cannot be read: an earlier one is gone on from" for n in cut
        ]

    def _draw(self, records: Record) -> None:
        best = np.maximum.accumulate(np.where(records.feasible, np.nan_to_num(records.accuracy), 0.0))
        for episode in range(self.drawn, len(best)):
            costs = {f"cost/{name}": np.asarray(cost)[episode] for name, cost in records.cost._asdict().items()}
            values = {"accuracy": records.accuracy[episode], "best_accuracy": best[episode]} | costs
            for name, value in values.items():
                if np.isfinite(value):
                    self.curves.add_scalar(name, float(value), episode)
        self.drawn = len(best)
        self.curves.flush()


@contextlib.contextmanager
def open_journal(out: Path, config: SearchConfig, episodes: int = 0, weights: str | None = None) -> Iterator[Journal]:
    """Opens the journal of a run, and waits at the end until all is on disk; of several hosts the first writes.

    Args:
      out: the run folder, which is there.
      config: of the search: its checkpoints serve no other.
      episodes: that were searched before.
      weights: fingerprint of the float network; checkpoints of a search of another one are refused.
    """
    if not is_first():
        yield Journal(out, None)
        return
    from tensorboardX import SummaryWriter  # slow to import, hence not above

    with shorten_disk_errors(out):
        # A queue without end: one that is full waits for its thread, which a full disk has ended.
        curves = SummaryWriter(str(out / TENSORBOARD), purge_step=episodes or None, max_queue=0)
    about = identity(config) | ({} if weights is None else {WEIGHTS: weights})
    with _silence_curves(), open_checkpoints(out / CHECKPOINTS, about, every=1) as checkpoints:
        try:
            yield Journal(out, checkpoints, curves, config.aim.resource, drawn=episodes)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                curves.close()
            raise
        with shorten_disk_errors(out):
            curves.close()


@contextlib.contextmanager
def _silence_curves() -> Iterator[None]:
    """Keeps off the screen why the thread that writes curves has ended: writing on raises the same."""
    hook = threading.excepthook

    def silenced(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboardX"):
            hook(error)

    threading.excepthook = silenced
    try:
        yield
    finally:
        threading.excepthook = hook


def identity(config: SearchConfig) -> dict[str, Any]:
    """Returns the options that a search follows from, as JSON gives them back."""
    options = {name: value for name, value in to_options(config).items() if name not in NOT_OF_THE_SEARCH}
    return json.loads(json.dumps(options))


def read_back(journal: Journal, searcher: Searcher, problem: Problem) -> SearchResult | None:
    """Reads the newest state of a search that was stopped; None where it stopped before it kept one.

    Raises:
      ValueError: no checkpoint can be read, or it is of another search; names what differs.
    """
    leaves = from_first(journal.newest)
    if leaves is None:
        return None
    found = _restore(leaves[0], _blank_state(searcher, problem), journal.out / CHECKPOINTS)
    records = found["records"]
    return SearchResult(records, (), (choose_best(records, problem.budget),), found["state"])


def read_warm_start(folder: str | Path, searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> SearchResult:
    """Makes a result without episodes, whose agent knows what that of another run learned.

    Args:
      folder: run folder of a search by an agent, perhaps on another network.
      key: that of the search.

    Raises:
      ValueError: no such run there.
    """
    before = from_first(lambda: open_folder(folder))
    if before.aim.resource is not None:
        raise ValueError(f"{folder} is a search for {before.aim.text}: give a run within one budget")
    if before.method.search != "haq":
        raise ValueError(f"{folder} is of the search {before.method.search!r}, which has no agent: give a run of 'haq'")
    leaves = from_first(lambda: _read_newest(Path(folder) / CHECKPOINTS, before))
    if leaves is None:
        raise ValueError(f"{folder} has no checkpoint to take an agent from")
    learned = _restore(leaves[0], _blank_state(searcher, problem), Path(folder) / CHECKPOINTS)["state"].agent
    return start_warm(learned, searcher, problem, jax.random.split(key)[0])


def _read_newest(folder: Path, config: SearchConfig) -> tuple[list[np.ndarray], int] | None:
    if not has_checkpoint(folder):
        return None
    with open_checkpoints(folder, identity(config), every=1) as checkpoints:
        return checkpoints.newest()


def _restore(leaves: list[np.ndarray], blank: PyTree, folder: Path) -> dict[str, Any]:
    """Restores records and state from their leaves."""
    names, tree = jax.tree.flatten({"records": RECORD, "state": _without_keys(blank)})
    if len(names) != len(leaves):
        raise ValueError(f"the checkpoints in '{folder}' are of another version of haqjax")
    found = jax.tree.unflatten(tree, leaves)
    return found | {"state": _with_keys(found["state"], blank)}


def _blank_state(searcher: Searcher, problem: Problem) -> PyTree:
    """Makes a state of the same structure, of shapes alone where the searcher is compiled."""
    init, key = functools.partial(searcher.init, problem), jax.random.key(0)
    return init(key) if searcher.on_host else jax.eval_shape(init, key)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _without_keys(state: PyTree) -> PyTree:
    """Replaces random keys by the numbers that they are made of."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) and isinstance(leaf, jax.Array) else leaf, state
    )


def _with_keys(state: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, model: jax.random.wrap_key_data(leaf) if _is_key(model) else leaf, state, like)
