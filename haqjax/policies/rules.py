"""Rules on the names of layers: widths that some of them may have, and layers that are tied."""

import fnmatch
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from haqjax.policies.bounds import find_outer, make_bounds
from haqjax.reading import quote
from haqjax.types import WIDTHS, Bounds

WIDTH = re.compile(r"([1-8])(?:\s*-\s*([1-8]))?", re.ASCII)


def bounds_by_rules(
    names: Sequence[str],
    rules: str = "",
    tied: str = "",
    *,
    low: tuple[int, int] = (2, 2),
    high: tuple[int, int] = (WIDTHS, WIDTHS),
    available: Bool[np.ndarray, "L 2 8"] | None = None,
    outer: Sequence[int] | None = None,
) -> Bounds:
    """Makes the bounds of a search from rules that people write.

    Args:
      names: of the layers.
      rules: `PATTERN=WIDTHS`, with semicolons between; `*` and `?` stand for any letters, as in file names. Widths are
        `8`, `2,4,8` or `3-6`, and `8/4-6` for weights and activations apart. Of two rules on a layer the later one
        counts. A layer without a rule has `low` to `high`; those of `outer` keep 8 bits.
      tied: groups of patterns, joined by `+`, with semicolons between groups: all layers of a group have the same bits.
      low, high: bits of (weights, activations) of layers without a rule.
      available: the widths that the machine has, see `haqjax.hardware.available_widths`.
      outer: layers that keep 8 bits without a rule, see `haqjax.policies.bounds.find_outer`; None: first and last.

    Raises:
      ValueError: a rule that cannot be read, that matches no layer, or that leaves a layer no width.

    >>> limits = bounds_by_rules(["stem", "a.depthwise", "a.project", "head"], "*.depthwise=4-8/8; stem=6")
    >>> limits.low.tolist(), limits.high.tolist()
    ([[6, 6], [4, 8], [2, 2], [8, 8]], [[6, 6], [8, 8], [8, 8], [8, 8]])
    """
    count = len(names)
    there = np.ones((count, 2, WIDTHS), bool) if available is None else np.asarray(available)
    width = np.arange(1, WIDTHS + 1)
    allowed = there & (np.array(low)[:, None] <= width) & (width <= np.array(high)[:, None])
    outer = find_outer(count) if outer is None else outer
    for index in outer:
        allowed[index] = width == WIDTHS - there[index][:, ::-1].argmax(axis=-1)[:, None]
    for rule in _parts(rules, ";"):
        pattern, equals, text = rule.partition("=")
        if not equals:
            raise ValueError(f"rule {quote(rule)} has no '=': write PATTERN=WIDTHS, such as '*.depthwise=4-8'")
        matched = _match(pattern.strip(), names)
        allowed[matched] = there[matched] & _read_widths(rule, text)
    _check_left(names, allowed)
    groups = [_find_group(group, names) for group in _parts(tied, ";")]
    if not (rules or groups or available is not None):
        return make_bounds(count, low=low, high=high, pinned=dict.fromkeys(outer, WIDTHS))
    return make_bounds(count, low=1, pinned={}, allowed=allowed, tied=groups)


def _parts(text: str, mark: str) -> list[str]:
    return [part.strip() for part in text.split(mark) if part.strip()]


def _match(pattern: str, names: Sequence[str]) -> list[int]:
    found = [index for index, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(
            f"{quote(pattern)} matches none of the {len(names)} layers: {names[0]}, {names[-1]} are the outer ones"
        )
    return found


def _find_group(group: str, names: Sequence[str]) -> list[int]:
    if not all(part.strip() for part in group.split("+")):
        raise ValueError(f"group {quote(group)} has nothing beside a '+': write PATTERN+PATTERN, such as 'a.*+b.*'")
    found = sorted({index for pattern in _parts(group, "+") for index in _match(pattern, names)})
    if len(found) < 2:
        raise ValueError(f"group {quote(group)} ties {names[found[0]]} to nothing: it needs two layers")
    return found


def _read_widths(rule: str, text: str) -> Bool[np.ndarray, "2 8"]:
    kinds = text.split("/")
    columns = [_read_column(kind) for kind in (kinds * 2 if len(kinds) == 1 else kinds)]
    if len(columns) != 2 or not all(column.any() for column in columns):
        raise ValueError(
            f"rule {quote(rule)}: widths are 8, or 2,4,8, or 3-6 between 1 and {WIDTHS}, or two of these with / between"
        )
    return np.stack(columns)


def _read_column(text: str) -> Bool[np.ndarray, "8"]:
    """Reads the widths that a text names; none where it cannot be read."""
    mask = np.zeros(WIDTHS, bool)
    for part in text.split(","):
        found = WIDTH.fullmatch(part.strip())
        if found is None:
            return np.zeros(WIDTHS, bool)
        mask[int(found[1]) - 1 : int(found[2] or found[1])] = True
    return mask


def _check_left(names: Sequence[str], allowed: Bool[np.ndarray, "L 2 8"]) -> None:
    empty = np.argwhere(~allowed.any(axis=-1))
    if len(empty):
        layer, column = empty[0]
        kind = ("weights", "activations")[column]
        raise ValueError(f"the rules leave no width that the machine has for the {kind} of layer {names[layer]}")
