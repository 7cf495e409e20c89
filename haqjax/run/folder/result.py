"""What a search found: its files, its figures, and its last words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from rich.console import Console

from haqjax.files import write_json
from haqjax.policies.actions import to_rows
from haqjax.report import Row, bits_figure, comparison_table, save, search_figure
from haqjax.report.static.front import Marks, front_figure
from haqjax.run.config.commands import SearchConfig
from haqjax.run.folder.files import best_so_far, cost_of, in_units, write_episodes
from haqjax.run.setup import Task
from haqjax.searchers import SearchResult
from haqjax.searchers.accuracy_constrained import Drop
from haqjax.searchers.base import Record
from haqjax.types import Budget, Cost


class Outcome(NamedTuple):
    """The policies that a search is judged by: float, 8_bits, uniform, policy; accuracies in 0..1."""

    policies: dict[str, Int[np.ndarray, "L 2"]]
    searched: dict[str, float]  # on the search split, which the policy was chosen by
    reported: dict[str, float]  # on the report split, which nothing was chosen by
    images: tuple[int, int]  # in the search and the report split
    weights: str  # fingerprint of the float parameters


def write_result(out: Path, config: SearchConfig, task: Task, result: SearchResult, outcome: Outcome) -> None:
    """`episodes.csv`, `figures/` and, last, `policy.json`: where it is, the run is complete."""
    limits = result.course.limits(config.metrics[0]) if isinstance(result, Drop) else None
    write_episodes(out, result.records, config.resource, limits)
    title = make_title(config, task)
    write_bits(out, task, outcome, title)
    if isinstance(result, Drop):
        write_figure(out, "front", lambda: _drop_figure(config, task, result, outcome, title))
    else:
        records, searched = result.records, outcome.searched
        parts = (np.asarray(records.accuracy), np.asarray(records.feasible), best_so_far(records))
        against = (searched["float"], searched["uniform"], title)
        write_figure(out, "search", lambda: search_figure(*parts, *against))
    write_json(out / "policy.json", summarise(config, task, task.budget, result, outcome))


def write_bits(out: Path, task: Task, outcome: Outcome, title: str) -> None:
    """`figures/bits`: the widths of the policy."""
    layers, pinned = task.layers, np.asarray(task.bounds.low == task.bounds.high)
    policy, pointwise = outcome.policies["policy"], task.layers.pointwise
    write_figure(
        out, "bits", lambda: bits_figure(layers.names, policy, layers.depthwise, pinned, title, pointwise=pointwise)
    )


def write_figure(out: Path, name: str, draw: Callable[[], Figure]) -> None:
    """`figures/NAME` as PNG and SVG."""
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for end in ("png", "svg"):
        save(draw(), folder / f"{name}.{end}")


def make_title(config: SearchConfig, task: Task) -> str:
    """What was asked, in a line."""
    return f"{config.model} on {task.machine}, {config.aim}"


def _drop_figure(config: SearchConfig, task: Task, result: Drop, outcome: Outcome, title: str) -> Figure:
    """All policies in the plane of accuracy and cost, with the one that was chosen."""
    resource = config.metrics[0]
    marks = {
        name: Marks([float(getattr(cost_of(task.table, outcome.policies[name]), resource))], [outcome.reported[name]])
        for name in ("policy", "uniform")
    }
    evaluated = Marks(np.asarray(getattr(result.records.cost, resource)), np.asarray(result.records.accuracy))
    return front_figure(
        resource, marks["policy"], marks["uniform"], evaluated, outcome.images[1],
        float_accuracy=outcome.reported["float"], least=result.least, title=title,
    )  # fmt: skip


def show_result(
    config: SearchConfig, task: Task, result: SearchResult, outcome: Outcome, out: Path, console: Console
) -> None:
    """The last lines of a search: 8 bits, the uniform policy it is measured against, and what was found."""
    bits = uniform_bits(outcome)
    names = {"8_bits": "8 bits", "uniform": f"uniform {bits}", "policy": f"found by {config.search}"}
    spent = {name: _shown(config, cost_of(task.table, outcome.policies[name])) for name in names}
    rows = [Row(label, outcome.reported[name], outcome.images[1], spent[name]) for name, label in names.items()]
    searched, reported = outcome.searched, outcome.reported
    console.print(comparison_table(rows, f"{config.model} on {task.machine}: {config.aim}"))
    lines = [
        f"Accuracy on the {outcome.images[1]} images of the report split; float {100 * reported['float']:.1f} %.",
        f"On the {outcome.images[0]} images that the policy was chosen by: float {100 * searched['float']:.1f} %, "
        f"uniform {100 * searched['uniform']:.1f} %, found {100 * searched['policy']:.1f} %.",
    ]
    say(lines, result.interrupted, len(result.records.accuracy), out, console)


def say(lines: list[str], interrupted: bool, episodes: int, out: Path, console: Console) -> None:
    """Lines to end with."""
    played = f"{'Interrupted after' if interrupted else 'Searched'} {episodes} policies."
    lines = [*lines, f"{played} Costs are the simulator's word.", f"Run folder: {out}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def summarise(
    config: SearchConfig, task: Task, budget: Budget, result: SearchResult, outcome: Outcome
) -> dict[str, Any]:
    """What `policy.json` says."""
    policies = outcome.policies
    return {
        "network": config.model,
        "hardware": task.machine,
        "weights": outcome.weights,
        "data": config.data,
        "metric": ",".join(config.metrics),
        "budget": {"fraction": _fractions(config), **in_units(Cost(*budget))},
        **({} if config.max_drop is None else {"max_drop": config.max_drop}),
        "search": config.search,
        "seed": config.seed,
        "episodes": len(result.records.accuracy),
        "not_finite": count_not_finite(result.records),
        "best_episode": result.best,
        "interrupted": result.interrupted,
        "layers": to_rows(jnp.asarray(policies["policy"]), task.layers.names),
        "uniform_bits": uniform_bits(outcome),
        "costs": {name: in_units(cost_of(task.table, policies[name])) for name in policies if name != "float"},
        "accuracies": {
            "report": outcome.reported | {"images": outcome.images[1]},
            "search": outcome.searched | {"images": outcome.images[0]},
        },
    }  # fmt: skip


def count_not_finite(records: Record) -> int:
    """How many policies gave outputs that are not finite, and can never be chosen."""
    return int(np.sum(~np.isfinite(np.asarray(records.accuracy))))


def _fractions(config: SearchConfig) -> float | dict[str, float] | None:
    """What was asked as a fraction of the 8-bit cost: of the one resource, or by resource."""
    fractions = {name: value for name, value in config.limits.items() if name in Cost._fields}
    return fractions.get(config.metrics[0]) if len(config.metrics) == 1 else fractions


def _shown(config: SearchConfig, cost: Cost) -> Cost:
    """Bit operations and peak memory take a column only where they were asked for: a line is 100 letters long."""
    bops, memory = (value if name in config.metrics else None for name, value in list(cost._asdict().items())[3:])
    return cost._replace(bops=bops, memory=memory)


def uniform_bits(outcome: Outcome) -> int:
    """The bits of the policy that is the same everywhere."""
    return int(outcome.policies["uniform"].min())
