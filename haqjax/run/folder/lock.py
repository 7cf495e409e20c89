"""Lock of a run folder: one process writes there at a time, and others are told which."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from haqjax.reading import one_line

LOCK = ".lock"  # within the run folder, while something is written there
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # where a file system has no locks
NOTE = 500  # bytes of the holder's note that are read


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[str]:
    """Holds the lock of a folder that is there; nobody else can while this process lives.

    The lock is the system's (flock), on a file `.lock` that says who holds it: it ends with the process, however that
    ends, and a file that a killed process left is no lock. At the end the file is removed.

    Yields:
      A line for people where the file system has no locks, such as some network ones; else nothing.

    Raises:
      ValueError: another process holds it, or nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock_folder(folder), lock_folder(folder):
    ...     pass
    Traceback (most recent call last):
    ValueError: /tmp/... is being written by process ... since ...: wait for it or stop it
    """
    folder = Path(folder)
    file, locked = _take(folder)
    try:
        yield "" if locked else f"{folder} is where no file can be locked: see to it that no other process writes there"
    finally:
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)  # while it is held, so that it is nobody else's
        os.close(file)


def _take(folder: Path) -> tuple[int, bool]:
    """Opens and locks the file, and writes down who holds it; False where files cannot be locked."""
    while True:
        file = _open(folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNKNOWN:
                return file, False
            holder = one_line(os.pread(file, NOTE, 0).decode(errors="replace"), 120) or "another process"
            os.close(file)
            raise ValueError(f"{folder} is being written by {holder}: wait for it or stop it") from None
        if _is_at(file, folder / LOCK):
            break
        os.close(file)  # its holder has removed it since it was opened
    note = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.suppress(OSError):  # a full disk: it is for people only
        os.ftruncate(file, 0)
        os.pwrite(file, note.encode(), 0)
    return file, True


def _is_at(file: int, path: Path) -> bool:
    """Tells whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _open(folder: Path) -> int:
    """Opens the file of the lock, whatever stands there under its name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(folder / LOCK, flags, 0o644)
    except OSError as error:
        reason = "it is no regular file" if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR) else error.strerror
        raise ValueError(
            f"{folder} cannot be written to ({reason}: {LOCK}), and the lock of the run is kept there: make it writable"
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(f"{folder / LOCK} is no regular file: remove it")
    return file
