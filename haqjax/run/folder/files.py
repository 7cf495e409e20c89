"""The run folder: files that other programs and people read, while a search runs and after it."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jaxtyping import Float, Int

from haqjax.files import write_csv, write_yaml
from haqjax.policies.cost import policy_cost
from haqjax.run.config.commands import SearchConfig
from haqjax.searchers import Record
from haqjax.types import WIDTHS, AnyArray, Cost, CostTable

EPISODES = "episodes.csv"
UNITS = {
    "latency": "latency_s",
    "energy": "energy_j",
    "size": "size_bytes",
    "bops": "bops",
    "memory": "memory_bytes",
}


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


def write_episodes(
    out: Path, records: Record, resource: str | None = None, limits: Float[np.ndarray, "E"] | None = None
) -> None:
    """`episodes.csv`: one row an episode.

    Args:
      resource: whose limit changes from episode to episode, in a search for a front or by an allowed drop.
      limits: what it was; infinite where there was none.
    """
    best = best_so_far(records, limits)
    rows = [
        {
            "episode": episode,
            "accuracy": records.accuracy[episode],
            "gain": records.reward[episode],
            **in_units(jax.tree.map(lambda spent: spent[episode], records.cost)),  # noqa: B023 - called at once
            **({} if resource is None or limits is None else {f"budget_{UNITS[resource]}": limits[episode]}),
            "feasible": bool(records.feasible[episode]),
            "best_accuracy": best[episode],
        }
        for episode in range(len(best))
    ]
    write_csv(out / EPISODES, rows)


def best_so_far(records: Record, limits: Float[np.ndarray, "E"] | None = None) -> Float[np.ndarray, "E"]:
    """The best accuracy within the budget up to each episode, since the budget changed; NaN before the first."""
    usable = np.where(np.asarray(records.feasible) & np.isfinite(records.accuracy), records.accuracy, -np.inf)
    starts = np.zeros(0, int) if limits is None else np.flatnonzero(limits[1:] != limits[:-1]) + 1
    best = np.concatenate([np.maximum.accumulate(part) for part in np.split(usable, starts)])
    return np.where(np.isfinite(best), best, np.nan)


def cost_of(table: CostTable, policy: Int[AnyArray, "L 2"]) -> Cost:
    """What a policy costs."""
    return policy_cost(
        table, jnp.minimum(jnp.asarray(policy), WIDTHS)
    )  # a tensor that is left alone costs as with 8 bits


def in_units(cost: Cost) -> dict[str, Any]:
    """A cost as it is written: the unit is part of each name."""
    return {UNITS[name]: value for name, value in cost._asdict().items()}


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform} {device.device_kind} x {jax.device_count()}"
