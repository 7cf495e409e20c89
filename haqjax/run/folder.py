"""The run folder: what a search found, in files that other programs and people read."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jaxtyping import Int
from rich.console import Console

from haqjax.files import write_csv, write_json, write_yaml
from haqjax.policy import to_rows
from haqjax.pricing import price
from haqjax.report import Row, bits_figure, comparison_table, save, search_figure
from haqjax.run.config import SearchConfig
from haqjax.run.limits import read_limits
from haqjax.search import SearchResult
from haqjax.types import WIDTHS, AnyArray, Bounds, Budget, Cost, CostTable, LayerTable

EPISODES = "episodes.csv"
UNITS = {
    "latency": "latency_s",
    "energy": "energy_j",
    "size": "size_bytes",
    "bops": "bops",
    "memory": "memory_bytes",
}


class Outcome(NamedTuple):
    """The policies that a search is judged by: float, 8_bits, uniform, policy; accuracies in 0..1."""

    policies: dict[str, Int[np.ndarray, "L 2"]]
    searched: dict[str, float]  # on the search split, which the policy was chosen by
    reported: dict[str, float]  # on the report split, which nothing was chosen by
    images: tuple[int, int]  # in the search and the report split
    machine: str
    weights: str  # fingerprint of the float parameters


def write_config(out: Path, config: SearchConfig) -> None:
    """`config.yaml`: the configuration with the versions and the device it ran on."""
    versions = {name: importlib.metadata.version(name) for name in ("haqjax", "jax", "flax", "optax")}
    write_yaml(out / "config.yaml", dataclasses.asdict(config) | {"versions": versions, "device": _device()})


def open_folder(folder: str | Path) -> SearchConfig:
    """The configuration that a run was started with.

    Raises:
      ValueError: no search was started there.
    """
    asked = read_file(Path(folder) / "config.yaml", yaml.safe_load, "model", "hw")
    fields = {field.name for field in dataclasses.fields(SearchConfig)}
    told: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in asked.items()}
    return SearchConfig(**{name: value for name, value in told.items() if name in fields})


def read_file(path: Path, parse: Any, *keys: str) -> dict[str, Any]:
    """One file of a run folder.

    Raises:
      ValueError: it is not there, cannot be read, or lacks a key.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} is no finished run: it has no {path.name}")
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not what a search wrote")
    return found


def write_episodes(out: Path, result: SearchResult) -> None:
    """`episodes.csv`: one row an episode."""
    records = result.records
    best = _best_so_far(result)
    rows = [
        {
            "episode": episode,
            "accuracy": records.accuracy[episode],
            "gain": records.gain[episode],
            **_units(jax.tree.map(lambda spent: spent[episode], records.cost)),  # noqa: B023 - called at once
            "feasible": bool(records.feasible[episode]),
            "best_accuracy": best[episode],
        }
        for episode in range(len(best))
    ]
    write_csv(out / EPISODES, rows)


def write_result(
    out: Path,
    config: SearchConfig,
    layers: LayerTable,
    table: CostTable,
    bounds: Bounds,
    budget: Budget,
    result: SearchResult,
    outcome: Outcome,
) -> None:
    """`episodes.csv`, `figures/` and, last, `policy.json`: where it is, the run is complete."""
    write_episodes(out, result)
    records = result.records
    policy = outcome.policies["policy"]
    title = f"{config.model} on {outcome.machine}, {config.aim}"
    pinned = np.asarray(bounds.low == bounds.high)
    (out / "figures").mkdir(exist_ok=True)
    for end in ("png", "svg"):
        bits = bits_figure(layers.names, policy, layers.depthwise, pinned, title, pointwise=layers.pointwise)
        save(bits, out / "figures" / f"bits.{end}")
        save(
            search_figure(
                np.asarray(records.accuracy), np.asarray(records.feasible), _best_so_far(result),
                outcome.searched["float"], outcome.searched["uniform"], title,
            ),
            out / "figures" / f"search.{end}",
        )  # fmt: skip
    write_json(out / "policy.json", _summary(config, layers, table, budget, result, outcome))


def show_result(
    config: SearchConfig, table: CostTable, result: SearchResult, outcome: Outcome, out: Path, console: Console
) -> None:
    """The last lines of a search: 8 bits, the best uniform policy within the budget, and what was found."""
    bits = _uniform_bits(outcome)
    names = {"8_bits": "8 bits", "uniform": f"uniform {bits}", "policy": f"found by {config.search}"}
    rows = [
        Row(label, outcome.reported[name], outcome.images[1], _shown(config, cost_of(table, outcome.policies[name])))
        for name, label in names.items()
    ]
    searched, reported = outcome.searched, outcome.reported
    title = f"{config.model} on {outcome.machine}: {config.aim}"
    console.print(comparison_table(rows, title))
    lines = [
        f"Accuracy on the {outcome.images[1]} images of the report split; float {100 * reported['float']:.1f} %.",
        f"On the {outcome.images[0]} images that the policy was chosen by: float {100 * searched['float']:.1f} %, "
        f"uniform {100 * searched['uniform']:.1f} %, found {100 * searched['policy']:.1f} %.",
        f"{'Interrupted after' if result.interrupted else 'Searched'} {len(result.records.accuracy)} policies. "
        "Costs are the simulator's word.",
        f"Run folder: {out}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _summary(
    config: SearchConfig, layers: LayerTable, table: CostTable, budget: Budget, result: SearchResult, outcome: Outcome
) -> dict[str, Any]:
    return {
        "network": config.model,
        "hardware": outcome.machine,
        "weights": outcome.weights,
        "data": config.data,
        "metric": config.metric,
        "budget": {"fraction": _fractions(config), **_units(Cost(*budget))},
        "search": config.search,
        "seed": config.seed,
        "episodes": len(result.records.accuracy),
        "best_episode": result.best,
        "interrupted": result.interrupted,
        "layers": to_rows(jnp.asarray(outcome.policies["policy"]), layers.names),
        "uniform_bits": _uniform_bits(outcome),
        "costs": {
            name: _units(cost_of(table, policy)) for name, policy in outcome.policies.items() if name != "float"
        },
        "accuracies": {
            "report": outcome.reported | {"images": outcome.images[1]},
            "search": outcome.searched | {"images": outcome.images[0]},
        },
    }  # fmt: skip


def _fractions(config: SearchConfig) -> float | dict[str, float] | None:
    """What was asked as a fraction of the 8-bit cost: of the one resource, or by resource."""
    asked = read_limits(config.metric, config.budget)
    fractions = {name: value for name, value in asked.items() if name in Cost._fields}
    return fractions.get(config.metric) if len(asked) == 1 else fractions


def _shown(config: SearchConfig, cost: Cost) -> Cost:
    """Bit operations and peak memory take a column only where they were asked for: a line is 100 letters long."""
    bops, memory = (value if name in config.metrics else None for name, value in list(cost._asdict().items())[3:])
    return cost._replace(bops=bops, memory=memory)


def _best_so_far(result: SearchResult) -> np.ndarray:
    """The best accuracy within the budget up to each episode; NaN before the first."""
    records = result.records
    usable = np.where(np.asarray(records.feasible) & np.isfinite(records.accuracy), records.accuracy, -np.inf)
    best = np.maximum.accumulate(usable)
    return np.where(np.isfinite(best), best, np.nan)


def _uniform_bits(outcome: Outcome) -> int:
    return int(outcome.policies["uniform"].min())


def cost_of(table: CostTable, policy: Int[AnyArray, "L 2"]) -> Cost:
    """What a policy costs."""
    return price(table, jnp.minimum(jnp.asarray(policy), WIDTHS))  # a tensor that is left alone costs as with 8 bits


def _units(cost: Cost) -> dict[str, Any]:
    return {UNITS[name]: value for name, value in cost._asdict().items()}


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform} {device.device_kind} x {jax.device_count()}"
