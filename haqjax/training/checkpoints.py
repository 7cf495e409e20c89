"""Checkpoints on disk of a training or a search, for bit-identical resume after a stop."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from haqjax.reading import one_line, quote

KEPT = 2  # checkpoints: the newest, and one to fall back on
CONFIGURATION, STATE = "configuration", "state"
DIGEST, SEAL = "fingerprint of the state", "seal"  # in the configuration on disk: what is garbled is not gone on from
WEIGHTS = "fingerprint of the weights"  # in a configuration; compared where both have one, as older ones have none


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """An open folder of checkpoints of one training, numbered by the steps done; see `open_checkpoints`."""

    folder: Path
    every: int  # steps
    configuration: Mapping[str, Any]
    manager: Any  # orbax.checkpoint.CheckpointManager
    unreadable: list[int] = dataclasses.field(default_factory=list)  # numbers of those that could not be read

    def save(self, state: PyTree, number: int, last: bool = False) -> None:
        """Saves the state after so many steps, if it is due; returns before it is on disk.

        Raises:
          OSError: this state, or the one before it, cannot be written; those before that are kept.
        """
        if number % self.every and not last:
            return
        import orbax.checkpoint as ocp

        leaves = dict(_pack(i, np.array(leaf)) for i, leaf in enumerate(jax.tree.leaves(state)))  # steps overwrite them
        about = dict(self.configuration) | {DIGEST: fingerprint(leaves)}
        about[SEAL] = _seal(about)
        items = {STATE: ocp.args.StandardSave(leaves), CONFIGURATION: ocp.args.JsonSave(about)}
        with shorten_disk_errors(self.folder, Exception):
            self._discard_unreadable(number)
            self.manager.save(number, args=ocp.args.Composite(**items))

    def restore(self, state: PyTree) -> tuple[PyTree, int]:
        """Reads the newest state that can be read and the number of its steps; `state` and 0 where none was saved.

        Raises:
          ValueError: as `newest`, or a state of other shapes.
        """
        found = self.newest()
        if found is None:
            return state, 0
        like, tree = jax.tree.flatten(state)
        if [leaf.shape for leaf in found[0]] != [leaf.shape for leaf in like]:
            raise ValueError(f"the checkpoints in '{self.folder}' are of other shapes: remove the folder to begin anew")
        return jax.tree.unflatten(tree, found[0]), found[1]

    def newest(self) -> tuple[list[np.ndarray], int] | None:
        """Reads the leaves of the newest state that can be read, and its number; None where none was saved.

        Raises:
          ValueError: it belongs to another configuration, naming what differs; or none of several can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        reasons = []
        for step in steps:
            try:
                stored = self._read_configuration(step)
                digest = stored.pop(DIGEST, None)
                same = not self._differing(stored)
                found = self._read_leaves(step, digest) if same else []
            except Exception as error:  # Orbax and what is below it raise many kinds
                reasons.append(_reason(error))
                self.unreadable.append(step)
                continue
            if not same:
                name = min(self._differing(stored))
                raise ValueError(
                    f"the checkpoints in '{self.folder}' are of another run: {name} was {quote(stored.get(name))} and "
                    f"is {quote(self.configuration.get(name))} now; remove the folder or choose another"
                )
            return found, step
        if reasons:
            raise ValueError(
                f"none of the {len(steps)} checkpoints in '{self.folder}' can be read: remove it to begin anew "
                f"({reasons[0]})"
            )
        return None

    def _discard_unreadable(self, number: int) -> None:
        """Deletes what stands in the way of a state that comes up again: Orbax saves none below the newest."""
        for step in [step for step in self.unreadable if step >= number]:
            self.manager.delete(step)
            self.unreadable.remove(step)

    def _read_configuration(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        found = self.manager.restore(step, args=ocp.args.Composite(configuration=ocp.args.JsonRestore())).configuration
        if (DIGEST in found or SEAL in found) and found.pop(SEAL, None) != _seal(found):  # older ones have neither
            raise ValueError("its configuration is not what was written")
        return found

    def _read_leaves(self, step: int, digest: str | None) -> list[np.ndarray]:
        import orbax.checkpoint as ocp

        found = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
        if digest is not None and fingerprint(found) != digest:
            raise ValueError("what was read is not what was written")
        return [leaf for _, leaf in sorted((_unpack(*item) for item in found.items()), key=lambda pair: pair[0])]

    def _differing(self, stored: Mapping[str, Any]) -> list[str]:
        """Lists the names of values that differ; a missing one is None."""
        names = {*stored, *self.configuration}
        if stored.get(WEIGHTS) is None or self.configuration.get(WEIGHTS) is None:
            names -= {WEIGHTS}
        return [name for name in names if stored.get(name) != self.configuration.get(name)]


def _seal(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def _pack(place: int, leaf: np.ndarray) -> tuple[str, np.ndarray]:
    """Names a leaf; Orbax keeps no array without elements, so that the shape of such a one stands for it."""
    return (str(place), leaf) if leaf.size else (f"{place}_{leaf.dtype}", np.array(leaf.shape))


def _unpack(name: str, leaf: np.ndarray) -> tuple[int, np.ndarray]:
    place, _, kind = name.partition("_")
    return int(place), np.zeros(tuple(leaf), kind) if kind else np.asarray(leaf)


@contextlib.contextmanager
def open_checkpoints(folder: str | Path, configuration: Mapping[str, Any], every: int) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints, and waits at the end until all is on disk.

    A process may be killed at any time: a checkpoint is written beside the others and takes its name when it is whole.

    Args:
      folder: made where it is not there.
      configuration: what a training follows from, values of JSON; another one's checkpoints are refused.
      every: steps between two checkpoints.

    Raises:
      ValueError: `every` is not positive.
      OSError: the folder cannot be written, such as on a full disk; what was saved whole before is kept.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_checkpoints(folder, {"seed": 0}, every=10) as checkpoints:
    ...         checkpoints.save({"w": np.ones(2)}, 10)
    ...     with open_checkpoints(folder, {"seed": 0}, every=10) as checkpoints:
    ...         checkpoints.restore({"w": np.zeros(2)})
    ({'w': array([1., 1.])}, 10)
    """
    import orbax.checkpoint as ocp  # slow to import, hence not above

    if every < 1:
        raise ValueError(f"a checkpoint every {every} steps cannot be: give at least 1")
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    others = {} if jax.process_count() == 1 else {"multiprocessing_options": alone, "create": False}
    options = ocp.CheckpointManagerOptions(**{"max_to_keep": KEPT, "create": True} | others)
    folder = Path(folder)
    with _silence_orbax():
        with shorten_disk_errors(folder, Exception):
            folder.mkdir(parents=True, exist_ok=True)
            manager = ocp.CheckpointManager(folder.absolute(), options=options)
        try:
            yield Checkpoints(folder, every, configuration, manager)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to raise
                manager.close()
            raise
        with shorten_disk_errors(folder, Exception):
            manager.close()


def has_checkpoint(folder: str | Path) -> bool:
    """Tells whether a folder holds a checkpoint, whole or not, without opening it.

    >>> has_checkpoint("nowhere")
    False
    """
    return any(path.name.isdecimal() for path in Path(folder).glob("[0-9]*"))


@contextlib.contextmanager
def shorten_disk_errors(folder: Path, kinds: type[Exception] = OSError) -> Iterator[None]:
    """Turns errors of a full or read-only disk into an OSError of one line: Orbax raises many `kinds`, of many lines.

    >>> with shorten_disk_errors(Path("runs/mine")):
    ...     raise OSError(28, "No space left on device", "runs/mine/checkpoints/4")
    Traceback (most recent call last):
    OSError: 'runs/mine' cannot be written (No space left on device): what was saved there before is kept; ...
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, OSError) and error.errno is None:  # short already
            raise
        raise OSError(
            f"'{folder}' cannot be written ({_reason(error)}): what was saved there before is kept; mend that and go on"
        ) from error


def _reason(error: Exception) -> str:
    """Describes an error in a few words: those of the system where it has an error number."""
    code = getattr(error, "errno", None) or re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code if isinstance(code, int) else code[1]))
    return one_line(str(error).strip().partition("\n")[0], 200) or type(error).__name__


@contextlib.contextmanager
def _silence_orbax() -> Iterator[None]:
    """Keeps off the screen what Orbax logs of an error that it raises, and its event loop's last words after it."""
    log, hook = logging.getLogger("absl"), sys.unraisablehook

    def keep(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def report(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and "loop is closed" in str(error)):
            hook(unraisable)

    log.addFilter(keep)
    sys.unraisablehook = report
    try:
        yield
        sys.unraisablehook = hook  # not after an error: the words come late
    finally:
        log.removeFilter(keep)


def fingerprint(tree: PyTree) -> str:
    """Computes a short hash of arrays, which is the same for two trees that hold the same to the last bit.

    >>> fingerprint({"w": np.ones(2)}) == fingerprint({"w": np.ones(2)}) != fingerprint({"w": np.zeros(2)})
    True
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
