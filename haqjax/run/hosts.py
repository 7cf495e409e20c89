"""Meeting of the processes of a run: each says who it is at the address of the first, before JAX connects them."""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from haqjax.reading import one_line, quote

AUTO = "auto"  # what the launcher's environment says
HOW = "give ADDRESS:PORT,PROCESS/PROCESSES such as 10.0.0.1:8476,0/2, or auto under SLURM, Open MPI or on a TPU pod"
BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's own variable: where the first process listens, if not at the address
MOST = 10_000  # processes
WAIT = 300.0  # s for all to come
RESOLVE, CONNECT = 4.0, 4.0  # s to find the address of a name, and to reach it
ANSWER, GREETING = 2.0, 6.0  # s for one that has connected to say who it is, and for the first process to hear it
LINE = 2000  # bytes of what one process says to another
AGAIN = 0.2  # s between two tries


class Place(NamedTuple):
    """This process among all."""

    coordinator: str  # ADDRESS:PORT of the first process
    process: int
    processes: int


class Meeting(NamedTuple):
    """Where all processes have met."""

    coordinator: str  # ADDRESS:PORT of the first process, as numbers
    own: str  # address by which the others reach this process


def read_hosts(text: str) -> Place | None:
    """Reads where the processes meet and which of them this one is; None leaves it to the launcher's environment.

    Raises:
      ValueError: text of another form, a number out of range, or a process that is not among all.

    >>> read_hosts("10.0.0.1:8476,1/4")
    Place(coordinator='10.0.0.1:8476', process=1, processes=4)
    """
    if text == AUTO:
        return None
    coordinator, _, part = text.partition(",")
    address, _, port = coordinator.rpartition(":")
    process, _, processes = part.partition("/")
    numbers = [number.strip() for number in (port, process, processes)]
    if not (0 < len(address) < 256 and text.isprintable()) or " " in address:
        raise ValueError(f"hosts is {quote(text)}: {HOW}")
    if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
        raise ValueError(f"hosts is {quote(text)}: {HOW}")
    place = Place(f"{address}:{int(port)}", int(process), int(processes))
    if not 0 < int(port) < 2**16:
        raise ValueError(f"hosts is {quote(text)}: a port is from 1 to {2**16 - 1}; {HOW}")
    if not place.process < place.processes <= MOST:
        raise ValueError(f"hosts is {quote(text)}: processes are counted from 0, and at most {MOST}; {HOW}")
    return place


def meet(place: Place, wait: float = WAIT) -> Meeting:
    """Waits until all processes have come, each of them once; for JAX such faults end in an abort, or never.

    The first process listens at the address that was given, and at no other. What it is told is JSON of bounded length.

    Args:
      place: this process.
      wait: seconds for all to come.

    Raises:
      ValueError: a name that is not known, or an address that cannot be reached, within 8 s; another process with the
        same number, or that counts other processes; somebody did not come.
    """
    if place.process == 0:
        return _receive(place, time.monotonic() + wait)
    return _report(place, time.monotonic() + wait)


def _receive(place: Place, end: float) -> Meeting:
    """Listens until all others have said who they are, and tells them to go on; or what is wrong."""
    where = os.environ.get(BIND) or place.coordinator
    with contextlib.ExitStack() as stack:
        server, address = _listen(where)
        stack.enter_context(server)
        others: dict[int, socket.socket] = {}
        while _count(others) < place.processes - 1:
            fault = _take_in(place, server, others, stack)
            if not fault and time.monotonic() > end:
                missing = sorted(set(range(1, place.processes)) - set(others))
                fault = f"process {missing[0]} of {place.processes} did not come to {where} ({len(missing)} missing)"
            if fault:
                _tell(others.values(), {"error": fault})
                raise ValueError(fault)
        server.close()  # JAX listens there next
        _tell(others.values(), {"go": True})
    return Meeting(address, address.rpartition(":")[0].strip("[]"))


def _listen(where: str) -> tuple[socket.socket, str]:
    family, address = resolve(where)[0]
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(128)
    except OSError as error:
        server.close()
        raise ValueError(
            f"cannot listen at {one_line(where)}: {error.strerror}; the first process runs on the host of that "
            f"address, with a port that is free ({BIND} says another address to listen at)"
        ) from None
    server.settimeout(AGAIN)
    return server, join_address(address)


def _take_in(
    place: Place, server: socket.socket, others: dict[int, socket.socket], stack: contextlib.ExitStack
) -> str | None:
    """Takes the next process in, if one has come; returns what is wrong with it."""
    try:
        other, _ = server.accept()
    except TimeoutError:
        return None
    stack.enter_context(other)
    said = _read_line(other, ANSWER)
    _count(others)
    if not isinstance(said, dict) or not all(type(said.get(name)) is int for name in ("process", "processes")):
        other.close()  # a stranger
        return None
    number, count = said["process"], said["processes"]
    if count != place.processes:
        fault = (
            f"process {number} was started as one of {count}, process 0 as one of {place.processes}: start them alike"
        )
    elif number in others or not 0 < number < count:
        fault = f"two processes were started as number {number} of {count}: give each its own"
    else:
        others[number], fault = other, None
    _tell([other], {"error": fault} if fault else {"go": False})
    return fault


def _report(place: Place, end: float) -> Meeting:
    """Says who this process is to the first one, once that listens, and waits for its answer."""
    where, addresses = place.coordinator, resolve(place.coordinator)
    while True:
        first = _reach(where, addresses)
        if first is not None:
            with first:
                meeting = Meeting(join_address(first.getpeername()), first.getsockname()[0])
                _tell([first], {"process": place.process, "processes": place.processes})
                if _is_known(first, where, GREETING) and _is_known(first, where, end - time.monotonic()):
                    return meeting
        if time.monotonic() > end:
            raise ValueError(f"process 0 of {place.processes} did not come to {where}: start it, and this one again")
        time.sleep(AGAIN)


def _is_known(first: socket.socket, where: str, seconds: float) -> bool:
    """Reads an answer of the first process; False where it ended without one."""
    said = _read_line(first, seconds)
    if said is None:
        return False
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        raise ValueError(one_line(said["error"]))
    if not isinstance(said, dict) or type(said.get("go")) is not bool:
        raise ValueError(f"what answers at {where} is no first process of haqjax: choose another port")
    return True


def _reach(where: str, addresses: list[tuple[Any, Any]]) -> socket.socket | None:
    """Connects to the first process; None where its host is there and nobody listens yet."""
    end, refused, reason = time.monotonic() + CONNECT, False, "it does not answer"
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(end - time.monotonic(), AGAIN))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            refused |= isinstance(error, ConnectionRefusedError)
            reason = error.strerror or reason
    if not refused:
        raise ValueError(f"hosts: {where} cannot be reached: {reason}")
    return None


def resolve(where: str) -> list[tuple[Any, Any]]:
    """Looks up the addresses of `ADDRESS:PORT`, each with its family, within 4 s.

    Raises:
      ValueError: the name is not known.
    """
    name, _, port = where.rpartition(":")
    found: queue.Queue[Any] = queue.Queue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(name.strip("[]"), int(port), type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # a name that is none is a UnicodeError
            found.put(error)

    threading.Thread(target=look_up, daemon=True).start()  # the system's own limit may be minutes
    try:
        answer = found.get(timeout=RESOLVE)
    except queue.Empty:
        answer = TimeoutError("nobody who knows names answers")
    if isinstance(answer, Exception):
        reason = getattr(answer, "strerror", None) or str(answer)
        raise ValueError(f"hosts: the address {quote(name)} is not known: {one_line(reason, 200)}")
    return [(family, address) for family, _, _, _, address in answer]


def join_address(address: Any) -> str:
    """Writes an address of the socket library as JAX reads it.

    >>> join_address(("::1", 80, 0, 0)), join_address(("10.0.0.1", 80))
    ('[::1]:80', '10.0.0.1:80')
    """
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _tell(others: Iterable[socket.socket], what: dict[str, Any]) -> None:
    for other in others:
        with contextlib.suppress(OSError):  # gone: it hears from nobody
            other.sendall(json.dumps(what).encode() + b"\n")


def _read_line(other: socket.socket, seconds: float) -> Any:
    """Reads one line of JSON; None where the connection has ended; what was said where it is no JSON, or nothing."""
    said, end = b"", time.monotonic() + seconds
    try:
        while not said.endswith(b"\n") and len(said) < LINE:
            other.settimeout(max(end - time.monotonic(), 0.001))
            more = other.recv(1)
            if not more:
                break
            said += more
        return json.loads(said) if said else None
    except ConnectionError:
        return None
    except (OSError, ValueError, RecursionError):
        return said


def _count(others: dict[int, socket.socket]) -> int:
    """Counts the processes that wait; one that has gone is forgotten, as it may be started again."""
    for number in [number for number, other in others.items() if _is_gone(other)]:
        del others[number]
    return len(others)


def _is_gone(other: socket.socket) -> bool:
    other.setblocking(False)
    try:
        return not other.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
