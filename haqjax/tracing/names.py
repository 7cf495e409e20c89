"""Names of parameters, made from their paths."""

from collections.abc import Sequence
from typing import Any

WEIGHT_NAMES = ("kernel", "weight", "w")  # a last path component that only says "this is the weight"
# Of batch normalisation: not learned.
STATISTICS = ("mean", "var", "running_mean", "running_var", "num_batches_tracked")


def is_statistic(path: Sequence[Any]) -> bool:
    """Returns True for the path of a leaf that is a running statistic of batch normalisation, by its name.

    >>> from jax.tree_util import DictKey
    >>> is_statistic((DictKey("norm"), DictKey("mean"))), is_statistic((DictKey("norm"), DictKey("scale")))
    (True, False)
    """
    parts = parts_of(path)
    return bool(parts) and (parts[-1] in STATISTICS or parts[0] == "batch_stats")


def parts_of(path: Sequence[Any]) -> list[str]:
    """Returns path components as plain text, without the wrappers that Flax puts around them."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    while len(parts) > 1 and parts[-1] in ("value", "raw_value") and not hasattr(path[len(parts) - 1], "key"):
        parts.pop()
    return parts[1:] if len(parts) > 1 and parts[0] == "params" else parts


def make_names(paths: Sequence[Sequence[Any]]) -> list[str]:
    """Makes a readable, unique name for each leaf: `stem.conv` for `params["stem"]["conv"]["kernel"]`."""
    parts = [parts_of(path) for path in paths]
    full = [".".join(each) or "weight" for each in parts]
    short = [".".join(each[:-1]) if each and each[-1] in WEIGHT_NAMES else "" for each in parts]
    return [s if s and short.count(s) == 1 and s not in full else f for s, f in zip(short, full, strict=True)]
