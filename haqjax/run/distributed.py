"""Several processes, on one host or on many, that run one search together."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.extend.backend
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from haqjax.data import Split
from haqjax.evaluation.batches import balance_batch_size
from haqjax.reading import one_line
from haqjax.run.hosts import HOW, WAIT, Meeting, Place, meet, read_hosts
from haqjax.run.messages import pack, pack_error, unpack
from haqjax.run.terminal import say
from haqjax.sharding import make_mesh, suggest_policy_devices

CONNECT = 60  # s for JAX to connect processes that have met
T = TypeVar("T")


def join(hosts: str | None, console: Console | None = None) -> None:
    """Waits for the other processes; before anything is computed. Nothing is done where they have met already.

    The first process listens at the address that was given, and no other; so do the collectives of CPUs, at the address
    by which each process reached the first. Ctrl-C then ends a process at once: were one to go on to the end without
    the others, it would wait for them.

    Args:
      hosts: as `read_hosts` reads it.
      console: says that the process waits.

    Raises:
      ValueError: `hosts` cannot be read, no launcher says who the others are, or as `meet`.
    """
    if hosts is None or jax.distributed.is_initialized():
        return
    place = read_hosts(hosts)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # others' devices are not looked at
    if place is None:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(f"hosts is {hosts!r} and no launcher tells of other processes: {HOW}") from error
    else:
        if console is not None:
            about = f"process {place.process} of {place.processes} waits for the others at {place.coordinator}"
            say(console, f"{about}, {WAIT:.0f} s at most")
        _connect(place, meet(place))
    if jax.process_count() > 1:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _connect(place: Place, meeting: Meeting) -> None:
    """Connects processes that have met, by JAX."""
    try:
        jax.distributed.initialize(
            meeting.coordinator,
            place.processes,
            place.process,
            initialization_timeout=CONNECT,
            coordinator_bind_address=meeting.coordinator,  # read by the first process alone
        )
    except RuntimeError as error:  # of JAX; where it waits in vain, it ends the process
        raise ValueError(f"the processes cannot be connected at {place.coordinator}: {one_line(error, 200)}") from error
    _bind_collectives(meeting.own)


def _bind_collectives(address: str) -> None:
    """Has the collectives of CPUs listen at an address; JAX takes that of the host's name, whatever network it is in.

    JAX has no option for it, so that its factory of CPU clients is replaced, where it is as it was in JAX 0.8 to 0.11.
    """
    try:
        from jax._src import distributed, xla_bridge
        from jaxlib import _jax

        make_collectives, make_client = _jax.make_gloo_tcp_collectives, xla_bridge.make_cpu_client
        client = distributed.global_state.client
    except (ImportError, AttributeError):  # pragma: no cover, of another version
        return

    def make() -> Any:
        return make_client(collectives=make_collectives(distributed_client=client, hostname=address))

    jax.extend.backend.register_backend_factory("cpu", make, priority=0, fail_quietly=False)


def is_first() -> bool:
    """Tells whether this process writes the run folder and prints."""
    return jax.process_index() == 0


def make_speaker(console: Console) -> Console:
    """Makes a console that prints in the first process alone."""
    return console if is_first() else Console(quiet=True)


def from_first(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process, in all of them; it is called there alone.

    Args:
      make: its answer is one that `haqjax.run.messages` packs: arrays, plain values and a few records.

    Raises:
      Exception: what `make` raises, in all of them; of a kind that `haqjax.run.messages` knows.

    >>> from_first(lambda: {"bits": 8})
    {'bits': 8}
    """
    if jax.process_count() == 1:
        return make()
    data, error = _try(make) if is_first() else (b"", None)
    answer = unpack(_broadcast(data))
    if error is not None:
        raise error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _try(make: Callable[[], Any]) -> tuple[bytes, Exception | None]:
    """Calls a function; packs its answer or its error, which the others wait for."""
    try:
        return pack(make()), None
    except Exception as error:
        return pack_error(error), error


def _broadcast(data: bytes) -> bytes:
    """Sends bytes from the first process to all, as an array."""
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(data))))
    mine = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes()


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
