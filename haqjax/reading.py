"""Reading of files from outside: regular ones, of bounded size, every fault one line that names the file."""

import json
import math
import os
import reprlib
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from haqjax.text import escape, escape_letters

MIB = 1 << 20
YAML_BYTES = 64 << 10  # PyYAML reads about 100 kB/s
JSON_BYTES = 32 * MIB
MESSAGE = 400  # characters of an error that another library words
LONG = 128  # bits; a whole number of more is described, not written out


class _Short(reprlib.Repr):
    """Limited `repr`, whose time and length do not follow what is repeated inside a value."""

    def repr_int(self, x: int, level: int) -> str:
        return (
            repr(x) if x.bit_length() <= LONG else f"a whole number of {int(x.bit_length() * math.log10(2)) + 1} digits"
        )


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 4


def quote(value: Any) -> str:
    r"""Describes a value from outside in an error: short, and without control characters, whatever it holds.

    >>> quote("edge\n"), quote(2**20000), quote([[1, 2], list(range(100))])
    ("'edge\\n'", 'a whole number of 6021 digits', '[[1, 2], [0, 1, 2, 3, ...]]')
    """
    return one_line(_SHORT.repr(value), 120)


def one_line(text: object, most: int = MESSAGE) -> str:
    r"""Puts a text on one line of at most so many characters; control characters become escapes.

    >>> one_line("first line\n  second\x1b[2J", 24)
    'first line second\\x1b[2J'
    """
    line = escape_letters(" ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most - 2]} …"


def check_text(name: str, text: str, most: int = 4096, control: bool = False) -> str:
    r"""Checks a text that people write: a path, a name, a rule.

    Args:
      control: allow control characters, as a path that is there already may have.

    Raises:
      ValueError: it is longer, or has control characters or bytes that are no UTF-8.

    >>> check_text("out", "runs/a\nb")
    Traceback (most recent call last):
    ValueError: out is 'runs/a\nb': leave out the control character '\n'
    """
    if len(text) > most:
        raise ValueError(f"{name} is {quote(text)}, of {len(text)} characters: at most {most} are read")
    for letter in text:
        if unicodedata.category(letter) in (("Cs",) if control else ("Cc", "Cs", "Zl", "Zp")):
            raise ValueError(f"{name} is {quote(text)}: leave out the control character {quote(letter)}")
    return text


def check_regular(path: str | Path, most: int) -> Path:
    """Checks, before a file is opened, that it is a regular one and of at most so many bytes.

    Raises:
      ValueError: it is not there; it is a folder, named pipe, socket or device; it is larger.

    >>> check_regular("/dev/null", 10)
    Traceback (most recent call last):
    ValueError: /dev/null is no regular file
    """
    path, name = Path(path), escape(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{name} cannot be read: {reason}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}")
    if found.st_size > most:
        raise ValueError(f"{name} has {found.st_size / MIB:.1f} MiB, more than the {most / MIB:g} MiB that are read")
    return path


def read_text(path: str | Path, most: int = JSON_BYTES) -> str:
    """Reads a file of UTF-8 text, with or without a byte-order mark.

    Raises:
      ValueError: as `check_regular`, or it is no such text.
    """
    path = check_regular(path, most)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{escape(path)} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{escape(path)} cannot be read: {error.strerror}") from None


def read_json(path: str | Path) -> Any:
    """Reads a JSON file, in which NaN and Infinity, that are no JSON, are refused.

    Raises:
      ValueError: as `read_text`, or it is no JSON.
    """
    return _parse(path, JSON_BYTES, lambda text: json.loads(text, parse_constant=_refuse_constant), "JSON")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file of plain values; aliases, with which a short file becomes a huge value, are not read.

    Raises:
      ValueError: as `read_text`, or it is no YAML, or has an alias.
    """
    return _parse(path, YAML_BYTES, lambda text: yaml.load(text, _Loader), "YAML")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without what says another thing than it seems to."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*): write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                raise ValueError(
                    f"line {key.start_mark.line + 1} has {quote(key.value)} again: YAML keeps the last only"
                )
            known |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        """Refuses 010, which is 8 in YAML 1.1, and 1:30, which is 90."""
        text = self.construct_scalar(node)
        digits = text.lstrip("+-")
        if ":" in text or (digits.isdigit() and digits[0] == "0" and len(digits) > 1):
            raise ValueError(
                f"line {node.start_mark.line + 1} has {quote(text)}, which is another number in YAML: write it in "
                "plain decimals"
            )
        read = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        return read(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _parse(path: str | Path, most: int, parse: Callable[[str], Any], kind: str) -> Any:
    text = read_text(path, most)
    try:
        return parse(text)
    except RecursionError:
        raise ValueError(f"{escape(path)} is not read as {kind}: its values are nested too deep") from None
    except Exception as error:  # PyYAML's constructors raise what comes up: of a list as a key, of `!!int ''`
        raise ValueError(f"{escape(path)} is no {kind} file: {one_line(error, 200)}") from None
