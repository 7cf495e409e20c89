"""Reads a run folder for a report: nothing is trained, and of the network only shapes are needed."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from haqjax.hardware import Machine
from haqjax.hardware.machines import MODELS
from haqjax.hardware.usage import LIMITS, Usage
from haqjax.models import is_pretrained_source
from haqjax.policies.cost import layer_costs
from haqjax.report.run_data import Episodes, Layers, RunData
from haqjax.report.static.costs import Spent
from haqjax.report.static.roofline import DASHES, Place, Rooflines
from haqjax.report.tables import Row
from haqjax.run.config.commands import SearchConfig
from haqjax.run.folder.files import EPISODES, UNITS, open_folder, read_file
from haqjax.run.setup import Task, prepare
from haqjax.types import WIDTHS, Cost, LayerTable

NAMES = {"8_bits": "8 bits", "uniform": "uniform {}", "policy": "found by {}"}  # of the rows of a comparison
CHANGED = 1e-4  # relative; a cost that differs by more was computed by another version of the machine
SUMS = ("latency", "energy", "size", "bops")  # resources that add up over layers


def read_run_data(folder: str | Path) -> RunData:
    """All that a report shows of a run.

    Raises:
      ValueError: no search was started there, it has not ended yet, or a file cannot be read.
    """
    folder = Path(folder)
    config, told = open_folder(folder), _read_policy(folder)
    policy = np.array([[row["weight_bits"], row["activation_bits"]] for row in told["layers"]])
    costs = {name: _read_cost(told["costs"][name]) for name in NAMES}
    task, notes = _prepare(config, [row["name"] for row in told["layers"]])
    spent = _spend(task, policy, config) if task else {}
    rooflines = find_rooflines(config.machine, task.layers, policy) if task else None
    episodes = _read_episodes(folder)
    if task and rooflines is None:
        notes.append("A measured table does not say what limits a layer: there is no roofline.")
    if task and "energy" not in spent:
        notes.append(f"{told['hardware']} has no energy model: energy is not shown.")
    if task and not np.isclose(_total(task, spent, "latency"), costs["policy"].latency, rtol=CHANGED):
        notes.append(
            "What the hardware model says now differs from the costs in policy.json: layers are drawn as it is now."
        )
    if episodes is None:
        notes.append(f"There is no {EPISODES}: neither the search nor its front can be drawn.")
    if told.get("interrupted"):
        notes.append(f"The search was interrupted after {told['episodes']} policies.")
    return RunData(
        name=folder.resolve().name,
        title=f"{config.model} on {told['hardware']}, {config.aim}",
        layers=_describe(task, [row["name"] for row in told["layers"]]),
        policy=policy,
        rows=_rows(folder, told, costs),
        front=_front(folder, told, costs),
        searched={name: float(told["accuracies"]["search"][name]) for name in ("float", *NAMES)},
        costs=costs,
        budget={
            name: float(told["budget"][unit]) for name, unit in UNITS.items() if told["budget"].get(unit) is not None
        },
        spent=spent,
        rooflines=rooflines,
        episodes=episodes,
        best=told.get("best_episode"),
        configuration=_configure(folder, told),
        notes=tuple(notes),
    )


def _read_policy(folder: Path) -> dict[str, Any]:
    """policy.json, which is written last."""
    if not (folder / "policy.json").is_file():
        raise ValueError(
            f"{folder} has no policy.json, as its search has not ended: go on with `make search RESUME={folder}`"
        )
    needed = ("layers", "costs", "accuracies", "budget", "hardware", "uniform_bits", "search")
    return read_file(folder / "policy.json", json.loads, *needed)


def _prepare(config: SearchConfig, names: list[str]) -> tuple[Task | None, list[str]]:
    """The layers and their costs; None, and why, where the data or the machine are not at hand any more."""
    others = config.weights is not None and is_pretrained_source(config.weights)
    blank: dict[str, Any] = {"out": None, "resume": None, "warm_start": None} | ({} if others else {"weights": None})
    try:
        task = prepare(dataclasses.replace(config, **blank))
    except (ValueError, OSError, ImportError) as error:
        return None, [f"Layers are neither told apart nor priced: {error}."]
    if list(task.layers.names) != names:
        return None, ["Layers are neither told apart nor priced: the network has other layers now."]
    return task, []


def _describe(task: Task | None, names: list[str]) -> Layers:
    if task is None:
        none = np.zeros(len(names), bool)
        return Layers(tuple(names), ("",) * len(names), None, none, none, np.stack([none, none], axis=1))
    of = task.layers
    pinned = np.asarray(task.bounds.low == task.bounds.high)
    shapes = tuple(_shape(of, at) for at in range(len(of)))
    return Layers(of.names, shapes, np.asarray(of.macs), np.asarray(of.depthwise), np.asarray(of.pointwise), pinned)


def _shape(of: LayerTable, at: int) -> str:
    kernel = "dense" if of.dense[at] else "×".join(str(n) for n in of.kernel[at])
    return f"{kernel}, {of.in_channels[at]} → {of.out_channels[at]}"


def _spend(task: Task, policy: np.ndarray, config: SearchConfig) -> dict[str, Spent]:
    """Latency and energy by layer, and whatever else the budget limits, as far as it is known."""
    shown = [name for name in SUMS if name in ("latency", "energy", *config.metrics)]
    tables = {name: getattr(task.table, name) for name in shown}
    after, before = np.minimum(policy, WIDTHS), np.full_like(policy, WIDTHS)
    spent = {
        name: Spent(layer_costs(values, before), layer_costs(values, after))
        for name, values in tables.items()
        if values is not None
    }
    return {name: both for name, both in spent.items() if np.isfinite(both).all()}


def _total(task: Task, spent: Mapping[str, Spent], resource: str) -> float:
    fixed = getattr(task.table.fixed, resource)
    return float(spent[resource].after.sum()) + (0.0 if fixed is None else float(fixed))


def find_rooflines(machine: Machine, layers: LayerTable, policy: np.ndarray) -> Rooflines | None:
    """Where layers stand under a machine's limits, at 8 bits and under a policy; None for a measured table."""
    if machine.model == "measured":
        return None
    usage = MODELS[machine.model].estimate(machine.spec, layers)
    operations = 2.0 * machine.spec.batch * layers.macs
    timed = [moved for moved, time in zip(usage.moved, usage.transfers, strict=True) if np.any(time > 0)]
    limit = np.argmax(np.stack([usage.compute, *usage.transfers]), axis=0)

    def place(bits: np.ndarray) -> Place:
        moved = sum(layer_costs(stream, bits) for stream in timed) / 8
        names = tuple(LIMITS[int(at)] for at in layer_costs(limit, bits))
        return Place(operations / moved, operations / layer_costs(usage.latency, bits), names)

    def even(bits: int) -> np.ndarray:
        return np.full_like(policy, bits)

    peaks = {bits: float(np.max(operations / layer_costs(usage.ideal, even(bits)))) for bits in DASHES}
    return Rooflines(place(even(WIDTHS)), place(np.minimum(policy, WIDTHS)), peaks, _bandwidth(usage))


def _bandwidth(usage: Usage) -> float:
    """Bytes a second: of one bus, or of all ports together where several kinds of data move at the same time."""
    pairs = [(moved, time) for moved, time in zip(usage.moved, usage.transfers, strict=True) if np.any(time > 0)]
    rates = [float(np.max(moved[time > 0] / time[time > 0])) / 8 for moved, time in pairs]
    together = bool(np.any(usage.latency < 0.999 * np.sum(usage.transfers, axis=0)))
    return sum(rates) if together else max(rates)


def _read_episodes(folder: Path) -> Episodes | None:
    path = folder / EPISODES
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or "nan") for row in rows])

    try:
        costs: Any = [column(UNITS[name]) if rows and UNITS[name] in rows[0] else None for name in Cost._fields]
        feasible = np.array([row["feasible"] == "True" for row in rows], bool)
        return Episodes(column("accuracy"), column("gain"), column("best_accuracy"), feasible, Cost(*costs))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a search wrote: {error}") from error


def _read_cost(told: Mapping[str, Any]) -> Cost:
    """A cost of policy.json, NaN where it is not known."""
    values: Any = [np.nan if (value := told.get(UNITS[name])) is None else float(value) for name in Cost._fields]
    return Cost(*values)


def _rows(folder: Path, told: Mapping[str, Any], costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    reported = told["accuracies"]["report"]
    texts = {"uniform": told["uniform_bits"], "policy": told["search"]}
    rows = [
        Row(label.format(texts.get(name)), float(reported[name]), reported["images"], costs[name])
        for name, label in NAMES.items()
    ]
    if (folder / "finetune.json").is_file():
        tuned = read_file(folder / "finetune.json", json.loads, "report")["report"]
        rows.append(Row("found, fine-tuned", float(tuned["after"]), tuned["images"], costs["policy"]))
    unknown: Any = [np.nan] * len(Cost._fields)
    return (*rows, Row("float", float(reported["float"]), reported["images"], Cost(*unknown)))


def _front(folder: Path, told: Mapping[str, Any], costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    """The policies within several budgets, where the run searched a front."""
    if not (folder / "front.json").is_file():
        return ()
    reported = told["accuracies"]["report"]
    rows = [Row("8 bits", float(reported["8_bits"]), reported["images"], costs["8_bits"])]
    for at in read_file(folder / "front.json", json.loads, "policies")["policies"]:
        within, uniform = f"within {at['budget']['fraction']:.3g}", at["uniform"]
        for name, of in ((f"found {within}", at), (f"uniform {uniform['bits']}, {within}", uniform)):
            rows.append(Row(name, float(of["accuracies"]["report"]), reported["images"], _read_cost(of["costs"])))
    return tuple(rows)


def _configure(folder: Path, told: Mapping[str, Any]) -> dict[str, str]:
    """config.yaml, with the versions and what the search used, for people to read."""
    asked = read_file(folder / "config.yaml", yaml.safe_load)
    versions = asked.pop("versions", {}) or {}
    best = told.get("best_episode")
    used = {
        "machine": told["hardware"],
        "episodes played": told.get("episodes"),
        "episode of the policy": None if best is None else best + 1,  # from 1, as in the figures
        "fingerprint of the weights": told.get("weights"),
    }
    told_of = asked | used | {f"version of {name}": version for name, version in versions.items()}
    return {str(name): _text(value) for name, value in told_of.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None or value == "" else str(value)
