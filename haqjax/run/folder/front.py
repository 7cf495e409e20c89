"""The end of a search for a front: its files, its figures, and its last words."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table

from haqjax.files import write_csv, write_json
from haqjax.policies.actions import to_rows
from haqjax.policies.feasibility import SHOWN
from haqjax.policies.projection import best_uniform
from haqjax.report import standard_error
from haqjax.report.static.front import Marks, front_figure
from haqjax.run.config.commands import SearchConfig
from haqjax.run.folder.files import UNITS, cost_of, in_units, write_episodes
from haqjax.run.folder.result import Outcome, make_title, say, summarise, write_bits, write_figure
from haqjax.run.setup import Task, leave_activations, measure
from haqjax.searchers import SearchResult
from haqjax.searchers.front import Front
from haqjax.types import WIDTHS, Budget, Cost

RULE = "the cheapest policy within one standard error of the best, by the search split"


class Choice(NamedTuple):
    """What was found within one budget."""

    budget: Budget
    episode: int
    policies: dict[str, Int[np.ndarray, "L 2"]]  # policy, uniform
    searched: dict[str, float]  # their accuracies in 0..1, on the split that they were chosen by
    reported: dict[str, float]


def conclude_front(
    config: SearchConfig, task: Task, front: Front, judges: Sequence[jax.tree_util.Partial]
) -> list[Choice]:
    """Measures the policies of a front, and the uniform policies within the same budgets.

    Args:
      judges: of the search and of the report split.

    Returns:
      Those of the budgets that a policy was found for, the tightest budget first.

    Raises:
      RuntimeError: none was found for any.
    """
    policies: dict[str, Any] = {}
    for at, budget in enumerate(front.budgets):
        if front.chosen[at] is not None:
            policies[f"policy {at}"] = leave_activations(config, jnp.asarray(front.policy(at)))
            even = best_uniform(task.table, task.bounds, budget).policy
            policies[f"uniform {at}"] = leave_activations(config, even)
    if not policies:
        raise RuntimeError("no policy of the search fits one of the budgets and has a finite accuracy")
    searched, reported = (measure(judge, policies) for judge in judges)
    at_budget = lambda of, at: {name: of[f"{name} {at}"] for name in ("policy", "uniform")}
    found = {name: np.asarray(policy) for name, policy in policies.items()}
    return [
        Choice(budget, episode, at_budget(found, at), at_budget(searched, at), at_budget(reported, at))
        for at, (budget, episode) in enumerate(zip(front.budgets, front.chosen, strict=True))
        if episode is not None
    ]


def name_one(config: SearchConfig, task: Task, choices: Sequence[Choice], images: int) -> int:
    """Which of the policies goes into `policy.json`: see `RULE` (Breiman et al. 1984, section 3.4.3)."""
    accuracy = np.array([choice.searched["policy"] for choice in choices])
    cost = np.array([_spent(config, task, choice, "policy") for choice in choices])
    enough = np.flatnonzero(accuracy >= accuracy.max() - standard_error(accuracy.max(), images))
    return int(enough[np.lexsort((-accuracy[enough], cost[enough]))[0]])


def write_front(
    out: Path, config: SearchConfig, task: Task, front: Front, choices: Sequence[Choice], outcome: Outcome, named: int
) -> None:
    """`episodes.csv`, `front.json`, `front.csv`, `figures/` and, last, `policy.json`.

    Args:
      outcome: of the named policy.
    """
    resource, records = config.metrics[0], front.records
    write_episodes(out, records, resource, front.course.limits(resource))
    write_json(out / "front.json", _tell(config, task, front, choices, outcome, named))
    write_csv(out / "front.csv", [_row(config, task, choice, at == named) for at, choice in enumerate(choices)])
    title = make_title(config, task)
    write_bits(out, task, outcome, title)
    evaluated = Marks(np.asarray(getattr(records.cost, resource)), np.asarray(records.accuracy))
    found, even = (
        Marks([_spent(config, task, choice, name) for choice in choices], [choice.reported[name] for choice in choices])
        for name in ("policy", "uniform")
    )
    draw = functools.partial(
        front_figure, resource, found, even, evaluated, outcome.images[1],
        float_accuracy=outcome.reported["float"], named=named, title=title,
    )  # fmt: skip
    write_figure(out, "front", draw)
    best = SearchResult(choices[named].episode, records, None, front.interrupted)
    told = summarise(config, task, choices[named].budget, best, outcome)
    told["budget"]["fraction"] = _fraction(config, task, choices[named])
    write_json(out / "policy.json", told | {"front": {"resource": resource, "named": named, "rule": RULE}})


def show_front(
    config: SearchConfig, task: Task, front: Front, choices: Sequence[Choice], outcome: Outcome, named: int, out: Path,
    console: Console,
) -> None:  # fmt: skip
    """The last lines: a row for each budget."""
    resource, images = config.metrics[0], outcome.images[1]
    scale, unit = SHOWN[resource]
    title = f"{make_title(config, task)}, found by {config.search}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("budget", f"{resource} ({unit})", "found (%)", "uniform (%)", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    full = float(getattr(cost_of(task.table, outcome.policies["8_bits"]), resource))
    for at, choice in enumerate(choices):
        spent = _spent(config, task, choice, "policy")
        bits = int(choice.policies["uniform"].min())
        table.add_row(
            f"{_fraction(config, task, choice):.3g}", f"{spent * scale:.4g} ({spent / full:.2f}x)",
            _percent(choice.reported["policy"], images), f"{_percent(choice.reported['uniform'], images)}, {bits} bits",
            "*" if at == named else "",
        )  # fmt: skip
    console.print(table)
    searched, reported = outcome.searched, outcome.reported
    lines = [
        f"Budgets are fractions of what 8 bits cost, {full * scale:.4g} {unit}. Accuracy on the {images} images of the "
        f"report split; float {100 * reported['float']:.1f} %, 8 bits {100 * reported['8_bits']:.1f} %.",
        f"* is in policy.json: {RULE}, {100 * searched['policy']:.1f} % there (float {100 * searched['float']:.1f} %).",
    ]
    if len(choices) < len(front.budgets):
        lines.append(f"No policy was found within {len(front.budgets) - len(choices)} of the budgets.")
    say(lines, front.interrupted, len(front.records.accuracy), out, console)


def _tell(
    config: SearchConfig, task: Task, front: Front, choices: Sequence[Choice], outcome: Outcome, named: int
) -> dict[str, Any]:
    """What `front.json` says."""
    return {
        "network": config.model,
        "hardware": task.machine,
        "weights": outcome.weights,
        "data": config.data,
        "resource": config.metrics[0],
        "search": config.search,
        "seed": config.seed,
        "episodes": len(front.records.accuracy),
        "interrupted": front.interrupted,
        "images": dict(zip(("search", "report"), outcome.images, strict=True)),
        "float": {"accuracies": {"search": outcome.searched["float"], "report": outcome.reported["float"]}},
        "8_bits": {
            "costs": in_units(cost_of(task.table, outcome.policies["8_bits"])),
            "accuracies": {"search": outcome.searched["8_bits"], "report": outcome.reported["8_bits"]},
        },
        "named": named,
        "rule": RULE,
        "policies": [_tell_choice(config, task, choice) for choice in choices],
    }


def _tell_choice(config: SearchConfig, task: Task, choice: Choice) -> dict[str, Any]:
    parts = {
        name: {
            "costs": in_units(cost_of(task.table, policy)),
            "accuracies": {"search": choice.searched[name], "report": choice.reported[name]},
        }
        for name, policy in choice.policies.items()
    }
    bits = int(choice.policies["uniform"].min())
    return {
        "budget": {"fraction": _fraction(config, task, choice), **in_units(Cost(*choice.budget))},
        "episode": choice.episode,
        **parts["policy"],
        "uniform": {"bits": bits} | parts["uniform"],
        "layers": to_rows(jnp.asarray(choice.policies["policy"]), task.layers.names),
    }


def _row(config: SearchConfig, task: Task, choice: Choice, named: bool) -> dict[str, Any]:
    """A line of `front.csv`."""
    unit = UNITS[config.metrics[0]]
    return {
        "budget_fraction": _fraction(config, task, choice),
        f"budget_{unit}": getattr(choice.budget, config.metrics[0]),
        "named": named,
        "episode": choice.episode,
        "search_accuracy": choice.searched["policy"],
        "report_accuracy": choice.reported["policy"],
        **in_units(cost_of(task.table, choice.policies["policy"])),
        "uniform_bits": int(choice.policies["uniform"].min()),
        "uniform_search_accuracy": choice.searched["uniform"],
        "uniform_report_accuracy": choice.reported["uniform"],
        f"uniform_{unit}": _spent(config, task, choice, "uniform"),
    }


def _spent(config: SearchConfig, task: Task, choice: Choice, name: str) -> float:
    """What a policy costs of the front's resource."""
    return float(getattr(cost_of(task.table, choice.policies[name]), config.metrics[0]))


def _fraction(config: SearchConfig, task: Task, choice: Choice) -> float:
    """The budget as a share of what 8 bits cost, to six digits: float32 has no more."""
    full = cost_of(task.table, np.full((len(task.table), 2), WIDTHS))
    return float(f"{float(getattr(choice.budget, config.metrics[0])) / float(getattr(full, config.metrics[0])):.6g}")


def _percent(accuracy: float, images: int) -> str:
    return f"{100 * accuracy:.1f} ± {100 * standard_error(accuracy, images):.1f}"
