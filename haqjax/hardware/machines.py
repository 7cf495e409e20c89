"""Machines by name or from a YAML file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from haqjax.hardware import bismo, bitfusion, measured, roofline
from haqjax.hardware.spec import read_fields
from haqjax.hardware.table_files import SUFFIXES, load_table
from haqjax.hardware.usage import Usage
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
            raise ValueError(f"{self.name}: unknown model {self.model}; the models are {', '.join(MODELS)}")


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
    if path.suffix not in (".yaml", ".yml", *SUFFIXES) or not path.is_file():
        names = ", ".join([*known, *SHORT_NAMES])
        kinds = ", ".join([".yaml", *SUFFIXES[:-1]])
        raise ValueError(
            f"unknown machine {name}; there are {names}, or give the path of a {kinds} or {SUFFIXES[-1]} file"
        )
    if path.suffix in SUFFIXES:
        return Machine(path.stem, "measured", load_table(path))
    return _read_machine(path)


def _read_machine(path: Path) -> Machine:
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected one `key: value` a line")
    model = given.pop("model", None)
    fields = {name: each.spec for name, each in MODELS.items() if each.spec}
    if model not in fields:
        raise ValueError(f"{path}: model is {model}; the models are {', '.join(fields)}")
    return Machine(path.stem, model, read_fields(fields[model], given, str(path)))
