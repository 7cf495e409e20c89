"""Processes meet at the address they are given; who is not there, or there twice, is told in one line."""

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from haqjax.run import hosts
from haqjax.run.hosts import Meeting, Place, meet, read_hosts, resolve


@pytest.fixture
def port(monkeypatch):
    """A port that nobody listens at."""
    monkeypatch.delenv(hosts.BIND, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def come(port, *places, wait=0.5):
    """What each of some (process, processes) is told when all come at once."""

    def one(place):
        try:
            return meet(Place(f"127.0.0.1:{port}", *place), wait)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(one, places))


def test_processes_meet_at_the_address_that_was_given(port):
    both = Meeting(f"127.0.0.1:{port}", "127.0.0.1")
    assert come(port, (2, 3), (0, 3), (1, 3), wait=20) == [both] * 3
    assert come(port, (0, 1)) == [both]


def test_a_name_is_turned_into_numbers(port):
    coordinator, own = meet(Place(f"localhost:{port}", 0, 1))
    assert coordinator in (f"127.0.0.1:{port}", f"[::1]:{port}") and own in coordinator


def test_the_first_process_can_listen_elsewhere(port, monkeypatch):
    monkeypatch.setenv(hosts.BIND, f"127.0.0.1:{port}")
    assert meet(Place("192.0.2.1:80", 0, 1)).coordinator == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "places, message",
    [
        ([(0, 2)], "process 1 of 2 did not come to 127.0.0.1:.* \\(1 missing"),
        ([(0, 4), (2, 4)], "process 1 of 4 did not come to 127.0.0.1:.* \\(2 missing"),
        ([(1, 2)], "process 0 of 2 did not come to 127.0.0.1:.*: start it"),
        ([(0, 4), (1, 4), (1, 4)], "two processes were started as number 1 of 4: give each its own"),
        ([(0, 3), (1, 4)], "process 1 was started as one of 4, process 0 as one of 3: start them alike"),
    ],
)
def test_all_are_told_what_is_wrong(port, places, message):
    said = come(port, *places)
    assert any(re.search(message, line) for line in said), said
    assert all(isinstance(line, str) and "\n" not in line for line in said)


def test_two_first_processes_are_told(port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"):
            meet(Place(f"127.0.0.1:{port}", 0, 2), 0.5)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b"[" * 3000, b"\x00\x00\x12\x04", b"\xff\n"]
)
def test_another_service_at_the_address_is_told(port, said):
    with socket.socket() as other, ThreadPoolExecutor(1) as thread:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()

        def serve():
            with other.accept()[0] as connection:
                connection.sendall(said)
                with contextlib.suppress(OSError):  # the other side may be gone already
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(100):
                        pass

        serving = thread.submit(serve)
        with pytest.raises(ValueError, match="is no first process of haqjax: choose another port"):
            meet(Place(f"127.0.0.1:{port}", 1, 2), 5)
        serving.result()


STRANGERS = (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": true, "processes": 2}\n', b"", b"[" * 3000)


@pytest.mark.parametrize("said", [*STRANGERS, b'{"process": 1, "processes": 3}\n'])
def test_strangers_and_those_that_have_gone_do_not_count(port, said):
    def disturb():
        while True:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
                return

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(meet, Place(f"127.0.0.1:{port}", 0, 3), 20)
        disturb()
        both = [threads.submit(meet, Place(f"127.0.0.1:{port}", 1, 3), 20), first]
        assert meet(Place(f"127.0.0.1:{port}", 2, 3), 20) == both[0].result() == both[1].result()


def test_a_service_that_says_nothing_is_told(port, monkeypatch):
    monkeypatch.setattr(hosts, "GREETING", 0.1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ValueError, match="is no first process of haqjax"):
            meet(Place(f"127.0.0.1:{port}", 1, 2), 5)


@pytest.mark.parametrize("name", ["nowhere.invalid", "a" * 70 + ".example", "a..b"])
def test_a_name_that_is_not_known_is_told(name):
    with pytest.raises(ValueError, match=f"hosts: the address '{name[:20]}.* is not known: "):
        meet(Place(f"{name}:80", 1, 2))


def test_a_look_up_that_does_not_end_is_given_up(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(hosts, "RESOLVE", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asked.wait(10))
    with pytest.raises(ValueError, match="'slow.example' is not known: nobody who knows names answers"):
        resolve("slow.example:80")
    asked.set()


def test_an_address_that_does_not_answer_is_told(monkeypatch):
    def refuse(*_):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ValueError, match="127.0.0.1:80 cannot be reached: it does not answer"):
        meet(Place("127.0.0.1:80", 1, 2))


def test_one_process_is_auto_or_a_place():
    assert read_hosts("auto") is None and read_hosts("[::1]:80,1/2").coordinator == "[::1]:80"


WORDS = (
    "",
    "here",
    "here:1",
    "here:1,0",
    "here,0/2",
    "here:x,0/2",
    ":1,0/2",
    "here:1,2/2",
    "here:1,0/0",
    "here:1,-1/2",
)
OUT_OF_RANGE = ("here:0,0/2", "here:65536,0/2", "here:1,0/10001", "here:1,0/" + "9" * 5000, "a b:1,0/2", "here:²,0/2")


@pytest.mark.parametrize("text", [*WORDS, *OUT_OF_RANGE, "here:1\n,0/2", "a\x1b[2J:1,0/2", "a" * 256 + ":1,0/2"])
def test_hosts_that_cannot_be_read_are_told(text):
    with pytest.raises(ValueError, match="^hosts is .*such as 10.0.0.1:8476,0/2") as told:
        read_hosts(text)
    assert str(told.value).isprintable() and len(str(told.value)) < 500
