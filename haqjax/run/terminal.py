"""Lines on a terminal: text, whatever names they hold."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from haqjax.reading import one_line
from haqjax.text import escape

LINE = 2000  # characters of a line, at most


def say(console: Console, *lines: str) -> None:
    r"""Prints lines as they are: no markup, no codes for emoji, and control characters as escapes.

    >>> say(Console(file=sys.stdout), "[bold]runs/a\x1b[2J[/bold] :smile:")
    [bold]runs/a\x1b[2J[/bold] :smile:
    """
    for line in lines:
        console.print(Text(escape(line, LINE)), soft_wrap=True)


def make_warner() -> Callable[..., None]:
    """Makes a `warnings.showwarning` for a command: a line on standard error, the same one only once.

    >>> show = make_warner()
    >>> show(UserWarning("latency falls"), UserWarning, "measured.py", 66)  # on standard error
    """
    known: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        line = f"haqjax: warning: {one_line(message)}"
        if line not in known:
            known.add(line)
            print(line, file=sys.stderr)

    return show
