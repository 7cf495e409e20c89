"""Machines by name or from a YAML file."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from haqjax.hardware import bismo, bitfusion, measured, roofline
from haqjax.hardware.lookups import blank_lookups, price_lookups
from haqjax.hardware.spec import read_fields
from haqjax.hardware.table_files import SUFFIXES, load_table
from haqjax.hardware.usage import Usage
from haqjax.reading import quote, read_yaml
from haqjax.text import escape
from haqjax.types import LayerTable

FOLDER = Path(__file__).parent / "machines"  # one YAML file a machine
SHORT_NAMES = {"edge": "bismo_edge", "cloud": "bismo_cloud"}


class Model(NamedTuple):
    """A kind of accelerator."""

    spec: type | None  # the NamedTuple that a YAML file is read into; None where there is no such file
    estimate: Callable[[Any, LayerTable], Usage]


MODELS = {
    "bismo": Model(bismo.Bismo, bismo.estimate),
    "bitfusion": Model(bitfusion.Bitfusion, bitfusion.estimate),
    "roofline": Model(roofline.Roofline, roofline.estimate),
    "systolic": Model(roofline.Systolic, roofline.estimate),
    "measured": Model(None, measured.estimate),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """An accelerator: a model and its specification."""

    name: str
    model: str  # a key of MODELS
    spec: Any

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(
                f"{escape(self.name)}: unknown model {escape(self.model, 60)}; the models are {', '.join(MODELS)}"
            )

    @property
    def batch(self) -> int | None:
        """Images that a latency and an energy are of; None for a measured table that does not say."""
        return self.spec.batch


def machine(name_or_path: str | Path) -> Machine:
    """Finds a machine.

    Args:
      name_or_path: a name, such as "bismo_edge" or "edge", the path of a YAML file, or the path of a measured table
        (.csv, .npy or .parquet). To describe your own machine, copy a file of `haqjax/hardware/machines` and edit it.

    Returns:
      The machine.

    Raises:
      ValueError: there is no such machine, or a value of the file is missing, unknown or out of range.

    >>> machine("edge").spec.batch
    1
    """
    name = SHORT_NAMES.get(str(name_or_path), str(name_or_path))
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if path.suffix not in (".yaml", ".yml", *SUFFIXES) or not _is_there(path):
        names = ", ".join([*known, *SHORT_NAMES])
        kinds = ", ".join([".yaml", *SUFFIXES[:-1]])
        raise ValueError(
            f"unknown machine {escape(name) or quote(name)}; there are {names}, or give the path of a {kinds} or "
            f"{SUFFIXES[-1]} file"
        )
    if path.suffix in SUFFIXES:
        return Machine(path.stem, "measured", load_table(path))
    return _read_machine(path)


def estimate_usage(machine: Machine, layers: LayerTable) -> Usage:
    """Estimates what every layer uses of a machine, in all its runs for one batch.

    A layer that runs several times, such as in a loop, takes so many times what one run takes; uses of its weight on
    inputs of other sizes are added. A measured table has the whole of it.
    """
    once = dataclasses.replace(layers, lookup=None, repeats=None, further=None, further_of=None)
    if machine.model == "measured":
        return MODELS[machine.model].estimate(machine.spec, once)
    usage = _estimate_once(machine, once, layers.lookup)
    if layers.repeats is not None:
        often = np.asarray(layers.repeats, np.float64)[:, None, None]
        usage = jax.tree.map(lambda values: values * often, usage)
    if layers.further is None or layers.further_of is None:
        return usage

    layer_of = layers.further_of

    def add(values: np.ndarray, more: np.ndarray) -> np.ndarray:
        total = np.array(values)
        np.add.at(total, layer_of, more)
        return total

    return jax.tree.map(add, usage, estimate_usage(machine, layers.further))


def _estimate_once(machine: Machine, layers: LayerTable, lookup: np.ndarray | None) -> Usage:
    """Estimates one run of every layer."""
    model, spec = MODELS[machine.model], machine.spec
    if lookup is None:
        return model.estimate(spec, layers)
    port_bits = spec.port_bits if machine.model == "bismo" else spec.dram_bits
    return price_lookups(model.estimate(spec, blank_lookups(layers, lookup)), spec, port_bits, layers, lookup)


def _is_there(path: Path) -> bool:
    """Returns True for anything of that name; what is no regular file is told when it is read."""
    try:
        return os.path.lexists(path)
    except ValueError:  # the character 0, which no path has
        return False


def _read_machine(path: Path) -> Machine:
    given = read_yaml(path)
    if not isinstance(given, dict):
        raise ValueError(f"{escape(path)}: expected one `key: value` a line")
    fields = {name: each.spec for name, each in MODELS.items() if each.spec}
    model = given.pop("model", None)
    if not isinstance(model, str) or model not in fields:
        raise ValueError(f"{escape(path)}: model is {quote(model)}; the models are {', '.join(fields)}")
    return Machine(path.stem, model, read_fields(fields[model], given, str(path)))
