"""Several processes, on one host or on many, that run one search together."""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from haqjax.data import Split
from haqjax.evaluation.evaluator import balance_batch_size
from haqjax.sharding import make_mesh, suggest_policy_devices

AUTO = "auto"  # what the launcher's environment says
HOW = "give ADDRESS:PORT,PROCESS/PROCESSES such as 10.0.0.1:8476,0/2, or auto under SLURM, Open MPI or on a TPU pod"
T = TypeVar("T")


class Place(NamedTuple):
    """This process among all."""

    coordinator: str  # ADDRESS:PORT of the first process
    process: int
    processes: int


def read_hosts(text: str) -> Place | None:
    """Reads where the processes meet and which of them this one is; None leaves it to the launcher's environment.

    Raises:
      ValueError: text of another form, or a process that is not among all.

    >>> read_hosts("10.0.0.1:8476,1/4")
    Place(coordinator='10.0.0.1:8476', process=1, processes=4)
    """
    if text == AUTO:
        return None
    coordinator, _, part = text.partition(",")
    address, _, port = coordinator.rpartition(":")
    process, _, processes = part.partition("/")
    if not address or not all(number.strip().isdecimal() for number in (port, process, processes)):
        raise ValueError(f"hosts is {text!r}: {HOW}")
    place = Place(coordinator, int(process), int(processes))
    if place.process >= place.processes:
        raise ValueError(f"hosts is {text!r}: the {place.processes} processes are counted from 0; {HOW}")
    return place


def join(hosts: str | None) -> None:
    """Waits for the other processes; before anything is computed. Nothing is done where they have met already.

    Ctrl-C then ends a process at once: were one to go on to the end without the others, it would wait for them.

    Raises:
      ValueError: `hosts` cannot be read, or no launcher says who the others are.
    """
    if hosts is None or jax.distributed.is_initialized():
        return
    place = read_hosts(hosts)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # others' devices are not looked at
    try:
        jax.distributed.initialize(*(() if place is None else place[:1] + (place.processes, place.process)))
    except ValueError as error:
        raise ValueError(f"hosts is {hosts!r} and no launcher tells of other processes: {HOW}") from error
    if jax.process_count() > 1:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_first() -> bool:
    """Tells whether this process writes the run folder and prints."""
    return jax.process_index() == 0


def make_speaker(console: Console) -> Console:
    """Makes a console that prints in the first process alone."""
    return console if is_first() else Console(quiet=True)


def from_first(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process, in all of them; it is called there alone.

    Args:
      make: its answer can be pickled once arrays are on the host; random keys cannot.

    Raises:
      Exception: what `make` raises, in all of them.

    >>> from_first(lambda: {"bits": 8})
    {'bits': 8}
    """
    if jax.process_count() == 1:
        return make()
    data = np.frombuffer(pickle.dumps(_try(make)) if is_first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    sent = multihost_utils.broadcast_one_to_all(data if is_first() else np.zeros(size, np.uint8))
    answer, error = pickle.loads(np.asarray(sent, np.uint8).tobytes())
    if error is not None:
        raise error
    return answer


def make_evaluation_mesh(policies: int, split: Split, batch_size: int | None = None) -> Mesh | None:
    """Makes a mesh of all devices of all processes to evaluate so many policies at once; None on one device."""
    count, batches = jax.device_count(), -(-len(split) // balance_batch_size(split, batch_size))
    return None if count == 1 else make_mesh(policies=suggest_policy_devices(count, policies, batches))


def leave(status: int) -> NoReturn:
    """Ends the process. Where others wait for it, at once: they then hear that it is gone."""
    if jax.distributed.is_initialized() and jax.process_count() > 1 and status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _try(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Calls a function; gives its answer with arrays on the host, or else its error."""
    try:
        return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, make()), None
    except Exception as error:
        return None, error
