"""Run data of a report, read from a run folder: nothing is trained, and of the network only shapes are needed."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from haqjax.hardware import machine
from haqjax.policies.cost import layer_costs
from haqjax.report.run_data import Episodes, LayerCosts, Layers, RunData
from haqjax.report.tables import Row
from haqjax.run.config.options import with_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.folder.files import EPISODES, open_folder, read_file
from haqjax.run.rooflines import find_rooflines
from haqjax.run.setup import PreparedSearch, prepare
from haqjax.types import WIDTHS, Cost, LayerTable
from haqjax.units import RESOURCES

NAMES = {"8_bits": "8 bits", "uniform": "uniform {}", "policy": "found by {}"}  # of the rows of a comparison
CHANGED = 1e-4  # relative; a cost that differs by more was computed by another version of the machine
SUMS = ("latency", "energy", "size", "bops")  # resources that add up over layers


def read_run_data(folder: str | Path) -> RunData:
    """Reads all that a report shows of a run.

    Raises:
      ValueError: no search was started there, it has not ended yet, or a file cannot be read.
    """
    folder = Path(folder)
    config, document = open_folder(folder), _read_policy(folder)
    policy = np.array([[row["weight_bits"], row["activation_bits"]] for row in document["layers"]])
    costs = {name: _read_cost(document["costs"][name]) for name in NAMES}
    prepared, notes = _prepare(config, [row["name"] for row in document["layers"]])
    costs_by_layer = _price_layers(prepared, policy, config) if prepared else {}
    accelerator = machine(config.target.hw) if prepared else None
    rooflines = find_rooflines(accelerator, prepared.layers, policy) if accelerator and prepared else None
    episodes = _read_episodes(folder)
    if prepared and rooflines is None:
        notes.append("A measured table does not say what limits a layer: there is no roofline.")
    if prepared and "energy" not in costs_by_layer:
        notes.append(f"{document['hardware']} has no energy model: energy is not shown.")
    if prepared and not np.isclose(_total(prepared, costs_by_layer, "latency"), costs["policy"].latency, rtol=CHANGED):
        notes.append(
            "What the hardware model says now differs from the costs in policy.json: layers are drawn as it is now."
        )
    if episodes is None:
        notes.append(f"There is no {EPISODES}: neither the search nor its front can be drawn.")
    if document.get("interrupted"):
        notes.append(f"The search was interrupted after {document['episodes']} policies.")
    return RunData(
        name=folder.resolve().name,
        title=f"{config.network.model} on {document['hardware']}, {config.aim.text}",
        layers=_describe(prepared, [row["name"] for row in document["layers"]]),
        policy=policy,
        rows=_rows(folder, document, costs),
        front=_front(folder, document, costs),
        search_accuracy={name: float(document["accuracies"]["search"][name]) for name in ("float", *NAMES)},
        costs=costs,
        budget={
            name: float(document["budget"][one.field])
            for name, one in RESOURCES.items()
            if document["budget"].get(one.field) is not None
        },
        layer_costs=costs_by_layer,
        rooflines=rooflines,
        episodes=episodes,
        best=document.get("best_episode"),
        configuration=_configure(folder, document),
        notes=tuple(notes),
        batch=None if accelerator is None else accelerator.batch,
    )


def _read_policy(folder: Path) -> dict[str, Any]:
    """Reads `policy.json`, which is written last."""
    if not (folder / "policy.json").is_file():
        raise ValueError(
            f"{folder} has no policy.json, as its search has not ended: go on with `make search RESUME={folder}`"
        )
    needed = ("layers", "costs", "accuracies", "budget", "hardware", "uniform_bits", "search")
    return read_file(folder / "policy.json", json.loads, *needed)


def _prepare(config: SearchConfig, names: list[str]) -> tuple[PreparedSearch | None, list[str]]:
    """Prepares the layers and their costs; None, and why, where the data or the machine are not at hand any more."""
    blank = {"out": None, "resume": None, "warm_start": None} | ({} if config.network.pretrained else {"weights": None})
    try:
        prepared = prepare(with_options(config, blank))
    except (ValueError, OSError, ImportError) as error:
        return None, [f"Layers are neither described nor priced: {error}."]
    if list(prepared.layers.names) != names:
        return None, ["Layers are neither described nor priced: the network has other layers now."]
    return prepared, []


def _describe(prepared: PreparedSearch | None, names: list[str]) -> Layers:
    if prepared is None:
        none = np.zeros(len(names), bool)
        return Layers(tuple(names), ("",) * len(names), None, none, none, np.stack([none, none], axis=1))
    of = prepared.layers
    pinned = np.asarray(prepared.bounds.low == prepared.bounds.high)
    shapes = tuple(_shape(of, at) for at in range(len(of)))
    return Layers(of.names, shapes, np.asarray(of.macs), np.asarray(of.depthwise), np.asarray(of.pointwise), pinned)


def _shape(of: LayerTable, at: int) -> str:
    kernel = "dense" if of.dense[at] else "×".join(str(n) for n in of.kernel[at])
    return f"{kernel}, {of.in_channels[at]} → {of.out_channels[at]}"


def _price_layers(prepared: PreparedSearch, policy: np.ndarray, config: SearchConfig) -> dict[str, LayerCosts]:
    """Latency and energy by layer, and whatever else the budget limits, as far as it is known."""
    shown = [name for name in SUMS if name in ("latency", "energy", *config.aim.metrics)]
    tables = {name: getattr(prepared.table, name) for name in shown}
    after, before = np.minimum(policy, WIDTHS), np.full_like(policy, WIDTHS)
    costs_by_layer = {
        name: LayerCosts(layer_costs(values, before), layer_costs(values, after))
        for name, values in tables.items()
        if values is not None
    }
    return {name: both for name, both in costs_by_layer.items() if np.isfinite(both).all()}


def _total(prepared: PreparedSearch, costs_by_layer: Mapping[str, LayerCosts], resource: str) -> float:
    fixed = getattr(prepared.table.fixed, resource)
    return float(costs_by_layer[resource].after.sum()) + (0.0 if fixed is None else float(fixed))


def _read_episodes(folder: Path) -> Episodes | None:
    path = folder / EPISODES
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or "nan") for row in rows])

    try:
        costs: Any = [
            column(RESOURCES[name].field) if rows and RESOURCES[name].field in rows[0] else None
            for name in Cost._fields
        ]
        feasible = np.array([row["feasible"] == "True" for row in rows], bool)
        return Episodes(column("accuracy"), column("reward"), column("best_accuracy"), feasible, Cost(*costs))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a search wrote: {error}") from error


def _read_cost(document: Mapping[str, Any]) -> Cost:
    """Reads a cost of policy.json, NaN where it is not known."""
    values: Any = [
        np.nan if (value := document.get(RESOURCES[name].field)) is None else float(value) for name in Cost._fields
    ]
    return Cost(*values)


def _rows(folder: Path, document: Mapping[str, Any], costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    reported = document["accuracies"]["report"]
    texts = {"uniform": document["uniform_bits"], "policy": document["search"]}
    rows = [
        Row(label.format(texts.get(name)), float(reported[name]), reported["images"], costs[name])
        for name, label in NAMES.items()
    ]
    if (folder / "finetune.json").is_file():
        tuned = read_file(folder / "finetune.json", json.loads, "report")["report"]
        rows.append(Row("found, fine-tuned", float(tuned["after"]), tuned["images"], costs["policy"]))
    unknown: Any = [np.nan] * len(Cost._fields)
    return (*rows, Row("float", float(reported["float"]), reported["images"], Cost(*unknown)))


def _front(folder: Path, document: Mapping[str, Any], costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    """Reads the policies within several budgets, where the run searched a front."""
    if not (folder / "front.json").is_file():
        return ()
    reported = document["accuracies"]["report"]
    rows = [Row("8 bits", float(reported["8_bits"]), reported["images"], costs["8_bits"])]
    for at in read_file(folder / "front.json", json.loads, "policies")["policies"]:
        within, uniform = f"within {at['budget']['fraction']:.3g}", at["uniform"]
        for name, of in ((f"found {within}", at), (f"uniform {uniform['bits']}, {within}", uniform)):
            rows.append(Row(name, float(of["accuracies"]["report"]), reported["images"], _read_cost(of["costs"])))
    return tuple(rows)


def _configure(folder: Path, document: Mapping[str, Any]) -> dict[str, str]:
    """config.yaml, with the versions and what the search used, for people to read."""
    asked = read_file(folder / "config.yaml", yaml.safe_load)
    versions = asked.pop("versions", {}) or {}
    best = document.get("best_episode")
    used = {
        "machine": document["hardware"],
        "episodes searched": document.get("episodes"),
        "episode of the policy": None if best is None else best + 1,  # from 1, as in the figures
        "fingerprint of the weights": document.get("weights"),
    }
    told_of = asked | used | {f"version of {name}": version for name, version in versions.items()}
    return {str(name): _text(value) for name, value in told_of.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None or value == "" else str(value)
