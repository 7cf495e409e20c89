"""Files of the run folder that other programs and people read, while a search runs and after it."""

import importlib.metadata
import operator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from haqjax.files import write_csv, write_yaml
from haqjax.run.config.options import to_options
from haqjax.run.config.search import SearchConfig
from haqjax.run.folder.documents import CONFIG, EPISODES
from haqjax.searchers import Record
from haqjax.units import RESOURCES, as_fields


def write_config(out: Path, config: SearchConfig) -> None:
    """Writes `config.yaml`: the options with the versions and the device it ran on."""
    versions = {name: importlib.metadata.version(name) for name in ("haqjax", "jax", "flax", "optax")}
    device = jax.devices()[0]
    about = {"versions": versions, "device": f"{device.platform} {device.device_kind} x {jax.device_count()}"}
    write_yaml(out / CONFIG, to_options(config) | about)


def write_episodes(
    out: Path, records: Record, resource: str | None = None, limits: Float[np.ndarray, "E"] | None = None
) -> None:
    """Writes `episodes.csv`: one row an episode.

    Args:
      resource: whose limit changes from episode to episode, in a search for a front or by an allowed drop.
      limits: of that resource; infinite where there was none.
    """
    best = best_so_far(records, limits)
    rows = [
        {
            "episode": episode,
            "accuracy": records.accuracy[episode],
            "reward": records.reward[episode],
            **as_fields(jax.tree.map(operator.itemgetter(episode), records.cost)),
            **({} if resource is None or limits is None else {f"budget_{RESOURCES[resource].field}": limits[episode]}),
            "feasible": bool(records.feasible[episode]),
            "best_accuracy": best[episode],
        }
        for episode in range(len(best))
    ]
    write_csv(out / EPISODES, rows)


def best_so_far(records: Record, limits: Float[np.ndarray, "E"] | None = None) -> Float[np.ndarray, "E"]:
    """Returns the best accuracy within the budget up to each episode of a stage; NaN before the first."""
    usable = np.where(np.asarray(records.feasible) & np.isfinite(records.accuracy), records.accuracy, -np.inf)
    starts = np.zeros(0, int) if limits is None else np.flatnonzero(limits[1:] != limits[:-1]) + 1
    best = np.concatenate([np.maximum.accumulate(part) for part in np.split(usable, starts)])
    return np.where(np.isfinite(best), best, np.nan)
