"""Names from outside in a report: text, whatever letters they have, in figures, pages and tables."""

import html
from collections.abc import Sequence

from rich.text import Text

from haqjax.text import escape, shorten

MOST = 100  # bytes of a name in a file's


def as_label(name: object, most: int = 120) -> str:
    r"""Writes a name as a label of matplotlib, which reads text between two `$` as mathematics.

    >>> as_label("$x^2$"), as_label("_hidden")
    ('\\$x^2\\$', ' _hidden')
    """
    text = escape(name, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # which legends would leave out


def as_plotly(name: object, most: int = 200) -> str:
    """Writes a name as text of plotly, which knows tags, entities by number, and mathematics between two `$`.

    >>> as_plotly("<b>$x$")
    '&lt;b&gt;&#36;x&#36;'
    """
    return html.escape(escape(name, most), quote=False).replace("$", "&#36;")


def as_html(name: object, most: int = 2000) -> str:
    """Writes a name as text of a page, in an attribute as between tags.

    >>> as_html('<a href="x">')
    '&lt;a href=&quot;x&quot;&gt;'
    """
    return html.escape(escape(name, most))


def as_cell(name: object, most: int = 200, style: str = "") -> Text:
    """Writes a name as a cell of a table by Rich, which reads text in brackets as a style.

    >>> as_cell("[bold]").plain
    '[bold]'
    """
    return Text(escape(name, most), style)


def name_apart(names: Sequence[str]) -> list[str]:
    r"""Makes parts of file names, each another one: short enough for 255 bytes, and without slashes.

    >>> name_apart(["edge", "a/b\n", "edge"])
    ['edge-1', 'a-b-n', 'edge-3']
    """
    letters = [escape(name, MOST).replace("/", "-").replace("\\", "-") for name in names]
    short = [text if text.isascii() else shorten(text, MOST // 4) for text in letters]  # a letter has 4 bytes at most
    return [f"{text}-{at}" if short.count(text) > 1 else text for at, text in enumerate(short, start=1)]
