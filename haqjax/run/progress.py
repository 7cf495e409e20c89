"""Progress of a command: a bar on a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from haqjax.run.terminal import say
from haqjax.text import escape

TENTHS = 10  # lines of a log from start to end

Advance = Callable[[int, str], None]  # how many are complete, and a note


@contextlib.contextmanager
def show_phase(console: Console, title: str) -> Iterator[None]:
    """Shows that a phase of unknown length has begun."""
    if console.is_terminal:
        with console.status(Text(escape(title))):
            yield
    else:
        say(console, f"{title} ...")
        yield


@contextlib.contextmanager
def show_progress(
    console: Console, title: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Advance]:
    """Shows how far a phase of `total` steps has come, with a count, the time left, and a note.

    A log gets a line at the start and one for each tenth of the way.

    >>> import sys
    >>> with show_progress(Console(file=sys.stdout, width=99), "searching", 20, iter([0.0, 60.0]).__next__) as advance:
    ...     advance(1, "best so far 90.0 %")
    ...     advance(10, "best so far 91.0 %")
    searching, 20 in all ...
    searching: 10 of 20, about 1 min left, best so far 91.0 %
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(escape(title), total=total, note="compiling")
            yield lambda completed, note: progress.update(bar, completed=completed, note=note)
        return
    started, lines = clock(), 0
    say(console, f"{title}, {total} in all ...")

    def advance(completed: int, note: str) -> None:
        nonlocal lines
        if completed * TENTHS // total <= lines:
            return
        lines = completed * TENTHS // total
        seconds = (clock() - started) * (total - completed) / completed
        left = f"about {seconds / 60:.0f} min" if seconds >= 59.5 else f"about {seconds:.0f} s"
        say(console, f"{title}: {completed} of {total}, {left} left, {note}")

    yield advance
