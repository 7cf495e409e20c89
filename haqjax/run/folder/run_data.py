"""Run data of a report, read from a run folder: nothing is trained, and of the network only shapes are needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haqjax.hardware import machine
from haqjax.policies.cost import layer_costs
from haqjax.reading import one_line
from haqjax.report.run_data import Episodes, LayerCosts, Layers, RunData
from haqjax.report.tables import Row
from haqjax.run.config.options import with_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.folder.documents import (
    EPISODES,
    RunConfig,
    read_episodes,
    read_front,
    read_policy,
    read_run_config,
    read_tuned,
)
from haqjax.run.folder.schema import Amounts, FrontFile, PolicyFile, TunedFile
from haqjax.run.rooflines import find_rooflines
from haqjax.run.setup import PreparedSearch, prepare
from haqjax.types import FULL_PRECISION, WIDTHS, Cost, LayerTable
from haqjax.units import RESOURCES

CHANGED = 1e-4  # relative; a cost that differs by more was computed by another version of the machine
SUMS = ("latency", "energy", "size", "bops")  # resources that add up over layers


def read_run_data(folder: str | Path) -> RunData:
    """Reads all that a report shows of a run.

    Raises:
      ValueError: no search was started there, it has not ended yet, or a file cannot be read.
    """
    folder = Path(folder)
    run = read_run_config(folder)
    config, found = run.config, read_policy(folder, run.config)
    tuned, front, episodes = read_tuned(folder), read_front(folder, found), _read_episodes(folder)
    names = [layer.name for layer in found.layers]
    policy = np.array([[layer.weight_bits, layer.activation_bits] for layer in found.layers])
    of = {"8_bits": found.costs.eight, "uniform": found.costs.uniform, "policy": found.costs.policy}
    costs = {name: _read_cost(amounts) for name, amounts in of.items()}
    prepared, notes = _prepare(config, names)
    costs_by_layer = _price_layers(prepared, policy, config) if prepared else {}
    accelerator = machine(config.target.hw) if prepared else None
    rooflines = find_rooflines(accelerator, prepared.layers, policy) if accelerator and prepared else None
    left = bool((policy == FULL_PRECISION).any())
    if left:
        notes.append("Tensors are left in floating point, of which no machine says the latency: sizes are shown.")
    elif prepared and rooflines is None:
        notes.append("A measured table does not say what limits a layer: there is no roofline.")
    if prepared and not left and "energy" not in costs_by_layer:
        notes.append(f"{found.hardware} has no energy model: energy is not shown.")
    compared = "latency" if "latency" in costs_by_layer else "size"  # activations that are left have no latency
    known = getattr(costs["policy"], compared)
    if prepared and not np.isclose(_total(prepared, costs_by_layer, compared), known, rtol=CHANGED):
        notes.append(
            "What the hardware model says now differs from the costs in policy.json: layers are drawn as it is now."
        )
    if episodes is None:
        notes.append(f"There is no {EPISODES}: neither the search nor its front can be drawn.")
    if found.interrupted:
        notes.append(f"The search was interrupted after {found.episodes} policies.")
    if episodes is not None and len(episodes.accuracy) != found.episodes:
        notes.append(
            f"{EPISODES} has {len(episodes.accuracy)} policies, policy.json is of {found.episodes}: the search goes on."
        )
    searched = found.accuracies.search
    return RunData(
        name=folder.resolve().name,
        title=f"{config.network.model} on {found.hardware}, {config.aim.text}",
        layers=_describe(prepared, names),
        policy=policy,
        rows=_rows(found, tuned, costs),
        front=() if front is None else _front(front, found, costs),
        search_accuracy={
            "float": searched.float_,
            "8_bits": searched.eight,
            "uniform": searched.uniform,
            "policy": searched.policy,
        },
        costs=costs,
        budget={
            name: limit for name, one in RESOURCES.items() if (limit := getattr(found.budget, one.field)) is not None
        },
        layer_costs=costs_by_layer,
        rooflines=rooflines,
        episodes=episodes,
        best=found.best_episode,
        configuration=_configure(run, found),
        notes=tuple(notes),
        batch=None if accelerator is None else accelerator.batch,
    )


def _prepare(config: SearchConfig, names: list[str]) -> tuple[PreparedSearch | None, list[str]]:
    """Prepares the layers and their costs; None, and why, where the data or the machine are not at hand any more."""
    blank = {"out": None, "resume": None, "warm_start": None} | ({} if config.network.pretrained else {"weights": None})
    try:
        prepared = prepare(with_options(config, blank))
    except (ValueError, OSError, ImportError) as error:
        return None, [f"Layers are neither described nor priced: {one_line(error)}."]
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
    lookup = of.lookup is not None and of.lookup[at]
    kernel = "lookup" if lookup else "dense" if of.dense[at] else "×".join(str(n) for n in of.kernel[at])
    return f"{kernel}, {of.in_channels[at]} → {of.out_channels[at]}"


def _price_layers(prepared: PreparedSearch, policy: np.ndarray, config: SearchConfig) -> dict[str, LayerCosts]:
    """Latency and energy by layer, and whatever else the budget limits, as far as it is known."""
    shown = [name for name in SUMS if name in ("latency", "energy", *config.aim.metrics)]
    tables = {name: getattr(prepared.table, name) for name in shown}
    before = np.where(policy == FULL_PRECISION, policy, WIDTHS)
    costs_by_layer = {
        name: LayerCosts(layer_costs(values, before), layer_costs(values, policy))
        for name, values in tables.items()
        if values is not None
    }
    return {name: both for name, both in costs_by_layer.items() if np.isfinite(both).all()}


def _total(prepared: PreparedSearch, costs_by_layer: Mapping[str, LayerCosts], resource: str) -> float:
    fixed = getattr(prepared.table.fixed, resource)
    return float(costs_by_layer[resource].after.sum()) + (0.0 if fixed is None else float(fixed))


def _read_episodes(folder: Path) -> Episodes | None:
    rows = read_episodes(folder)
    if rows is None:
        return None

    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], float)  # None becomes NaN

    columns = {name: column(one.field) for name, one in RESOURCES.items()}
    costs: Any = [values if np.isfinite(values).any() else None for values in columns.values()]
    feasible = np.array([row.feasible for row in rows], bool)
    return Episodes(column("accuracy"), column("reward"), column("best_accuracy"), feasible, Cost(*costs))


def _read_cost(amounts: Amounts) -> Cost:
    """Gives a cost of policy.json, NaN where it is not known."""
    values: Any = [np.nan if (value := getattr(amounts, one.field)) is None else value for one in RESOURCES.values()]
    return Cost(*values)


def _rows(found: PolicyFile, tuned: TunedFile | None, costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    reported = found.accuracies.report
    rows = [
        Row("8 bits", reported.eight, reported.images, costs["8_bits"]),
        Row(f"uniform {found.uniform_bits}", reported.uniform, reported.images, costs["uniform"]),
        Row(f"found by {found.search}", reported.policy, reported.images, costs["policy"]),
    ]
    if tuned is not None:
        rows.append(Row("found, fine-tuned", tuned.report.after, tuned.report.images, costs["policy"]))
    unknown: Any = [np.nan] * len(Cost._fields)
    return (*rows, Row("float", reported.float_, reported.images, Cost(*unknown)))


def _front(front: FrontFile, found: PolicyFile, costs: Mapping[str, Cost]) -> tuple[Row, ...]:
    """Lists the policies within several budgets."""
    reported = found.accuracies.report
    rows = [Row("8 bits", reported.eight, reported.images, costs["8_bits"])]
    for at in front.policies:
        within, even = f"within {at.budget.fraction:.3g}", at.uniform
        for name, one in ((f"found {within}", at), (f"uniform {even.bits}, {within}", even)):
            rows.append(Row(name, one.accuracies.report, reported.images, _read_cost(one.costs)))
    return tuple(rows)


def _configure(run: RunConfig, found: PolicyFile) -> dict[str, str]:
    """config.yaml, with the versions and what the search used, for people to read."""
    device = {} if run.device is None else {"device": run.device}
    used = {
        "machine": found.hardware,
        "episodes searched": found.episodes,
        "episode of the policy": None if found.best_episode is None else found.best_episode + 1,  # from 1, as drawn
        "fingerprint of the weights": found.weights,
    }
    versions = {f"version of {name}": version for name, version in run.versions.items()}
    return {name: _text(value) for name, value in (run.options | device | used | versions).items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None or value == "" else str(value)
