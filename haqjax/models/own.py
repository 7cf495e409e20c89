"""Networks of the user: what a `module:function` returns, as a network with its data."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from haqjax.data import Dataset, Split
from haqjax.data.labels import check_classes
from haqjax.data.splits import stratified
from haqjax.models.network import Network
from haqjax.reading import one_line, quote
from haqjax.tracing.hooks import only_arrays
from haqjax.tracing.names import is_statistic

PARTS = (0.6, 0.2, 0.2)  # of data that come in one piece: to train on, to search by, to report on
SPLITS = ("train", "search", "report")
SPLIT_SEED = 0  # the same for all runs, as the report split must stay what it is


@dataclasses.dataclass(frozen=True, eq=False)
class OwnNetwork:
    """A network of the user, for `MODEL=module:function` where the function returns this; all but two are optional.

    Attributes:
      apply: pure function `apply(params, x)`; to be evaluated, with logits [B, classes].
      params: tree of arrays, or of shapes where only layers are read.
      example: a batch, or its shapes. None takes the inputs of the data.
      data: labelled examples: a mapping of "train", "search" and "report" to pairs (inputs, labels); or one pair, or an
        iterable of pairs (batches), which are cut by class into 60, 20 and 20 %; or a `haqjax.data.Dataset`. Inputs are
        an array, or a tree of arrays, with the examples along the first axis. None takes what DATA says.
      apply_train: for fine-tuning, `(params, x) -> (logits, params with moved statistics)`; None holds them.
      names, is_state, turns: as for `haqjax.layers`.
      classes: None counts the logits.
    """

    apply: Callable
    params: PyTree
    example: PyTree = None
    data: Any = None
    apply_train: Callable | None = None
    names: Any = None
    is_state: Any = is_statistic
    turns: int | None = None
    classes: int | None = None
    name: str = "own"

    @property
    def reading(self) -> dict[str, Any]:
        """Returns what `haqjax.layers` is told besides the example."""
        return {"names": self.names, "is_state": self.is_state, "turns": self.turns}


AnyNetwork = Network | OwnNetwork


def is_own(model: str) -> bool:
    """Returns True for a name of the form `module:function`."""
    module, _, function = model.partition(":")
    return bool(module and function)


def load_own(model: str) -> OwnNetwork:
    """Calls a `module:function` of the user's, without arguments.

    It returns an `OwnNetwork`, a mapping of its fields, or a tuple of its first ones.

    Raises:
      ValueError: there is no such function, it fails, or it returns something else; names the field.
    """
    found = _call(model)
    fields = [field.name for field in dataclasses.fields(OwnNetwork) if field.name != "name"]
    if isinstance(found, tuple) and 2 <= len(found) <= len(fields):
        found = dict(zip(fields, found, strict=False))
    if isinstance(found, Mapping):
        unknown = [key for key in found if key not in fields]
        if unknown or not {"apply", "params"} <= set(found):
            fault = f"unknown {quote(unknown[0])}" if unknown else "no apply or no params"
            raise ValueError(f"{quote(model)} returns {fault}: the fields are {', '.join(fields)}")
        found = OwnNetwork(**found)
    if not isinstance(found, OwnNetwork):
        raise ValueError(
            f"{quote(model)} must return (apply, params, example), or a record of {', '.join(fields)}, not "
            f"{type(found).__name__}"
        )
    if not callable(found.apply):
        raise ValueError(f"{quote(model)}: apply is {quote(found.apply)}, expected a function of (params, x)")
    return dataclasses.replace(found, name=model)


def _call(model: str) -> Any:
    module, _, function = model.partition(":")
    sys.path.insert(0, "")  # a module beside the working folder, as with python -m
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"cannot call {quote(model)} without arguments: {one_line(error, 200)}") from error
    finally:
        sys.path.remove("")


def own_data(network: OwnNetwork) -> Dataset:
    """Makes the data set that a network brings along.

    Raises:
      ValueError: it brings none, or something else than `OwnNetwork.data` says.
    """
    name, data = network.name, network.data
    if isinstance(data, Dataset):
        return data
    if data is None:
        raise ValueError(f"{quote(name)} returns no data: return them as `data`, or say which by DATA")
    if isinstance(data, Mapping):
        if set(data) != set(SPLITS):
            raise ValueError(f"{quote(name)}: data has {', '.join(map(str, data))}, expected {', '.join(SPLITS)}")
        train, search, report = (_make_split(name, data[part]) for part in SPLITS)
    else:
        train, search, report = _cut(_make_split(name, data if _is_pair(data) else _join(name, data)))
    return Dataset(name, _count_classes(network, train), train, search, report, (f"data: those that {name} returns.",))


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and getattr(data[1], "ndim", None) == 1


def _make_split(name: str, pair: Any) -> Split:
    if not _is_pair(pair):
        raise ValueError(f"{quote(name)}: data is {type(pair).__name__}, expected pairs (inputs, labels [n])")
    inputs, labels = pair
    split = Split(jax.tree.map(np.asarray, inputs), np.asarray(labels))  # checks the labels as they are
    return Split(split.images, split.labels.astype(np.int32))


def _join(name: str, batches: Any) -> tuple[PyTree, np.ndarray]:
    if not isinstance(batches, Iterable):
        raise ValueError(f"{quote(name)}: data is {type(batches).__name__}, expected pairs (inputs, labels)")
    pairs = list(batches)
    if not pairs or not all(map(_is_pair, pairs)):
        raise ValueError(f"{quote(name)}: data are no pairs (inputs, labels [n]), or none at all")
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *pairs)


def _cut(whole: Split) -> list[Split]:
    sizes = [int(part * len(whole)) for part in PARTS]
    if not all(sizes):
        raise ValueError(f"{len(whole)} examples cannot be cut into {', '.join(SPLITS)}: give at least 5")
    return [whole.take(rows) for rows in stratified(whole.labels, sizes, SPLIT_SEED)]


def _count_classes(network: OwnNetwork, train: Split) -> int:
    if network.classes is not None:
        return check_classes(quote(network.name), network.classes)
    apply, arrays = only_arrays(network.apply, network.params)
    try:
        logits = jax.eval_shape(apply, arrays, train.shaped(1))
    except (TypeError, ValueError) as error:
        said = one_line(str(error).strip().partition("\n")[0], 200)
        raise ValueError(f"{quote(network.name)}: apply(params, x) fails on its data: {said}") from error
    if not isinstance(logits, jax.ShapeDtypeStruct) or len(logits.shape) != 2:
        shown = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(f"{quote(network.name)}: apply gives {shown}, expected logits [B, classes] to be evaluated")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{quote(network.name)}: apply gives {logits.dtype}, expected floating logits")
    return logits.shape[-1]
