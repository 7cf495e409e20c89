"""Keeps what a solver in C prints by mistake off the standard output."""

import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT = 1  # file descriptor
CHATTER = re.compile(rb"^Highs\w*::.*\n?", re.MULTILINE)  # the HiGHS of SciPy 1.17 has no option against it

_alone = threading.Lock()


@contextmanager
def hide_highs_output() -> Iterator[None]:
    """Drops lines that HiGHS leaves on the standard output; what anything else writes meanwhile comes a little later.

    >>> with hide_highs_output():
    ...     answer = 6 * 7
    >>> answer
    42
    """
    with _alone:
        try:
            _flush()
            there = os.dup(STDOUT)
        except OSError:  # a process without standard output
            there = None
        if there is None:
            yield
            return
        with tempfile.TemporaryFile(buffering=0) as held:
            os.dup2(held.fileno(), STDOUT)
            try:
                yield
            finally:
                _flush()
                os.dup2(there, STDOUT)
                os.close(there)
                held.seek(0)
                _write(CHATTER.sub(b"", held.read()))


def _flush() -> None:
    """Empties the buffers of C's streams; Python's are its own."""
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(STDOUT, data) :]
