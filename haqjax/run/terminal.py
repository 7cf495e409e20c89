"""Lines on a terminal: text, whatever names they hold."""

from rich.console import Console
from rich.text import Text

from haqjax.text import escape

LINE = 2000  # characters of a line, at most


def say(console: Console, *lines: str) -> None:
    r"""Prints lines as they are: no markup, no codes for emoji, and control characters as escapes.

    >>> import sys
    >>> say(Console(file=sys.stdout), "[bold]runs/a\x1b[2J[/bold] :smile:")
    [bold]runs/a\x1b[2J[/bold] :smile:
    """
    for line in lines:
        console.print(Text(escape(line, LINE)), soft_wrap=True)
