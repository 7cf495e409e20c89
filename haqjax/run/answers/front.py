"""Answer of a search for a front: a policy within each of several budgets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table

from haqjax.files import write_csv, write_json
from haqjax.policies.actions import to_rows
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import best_uniform
from haqjax.report import standard_error
from haqjax.report.names import as_cell
from haqjax.report.static.front import Marks, front_figure
from haqjax.run.answers.common import (
    Measured,
    SearchRun,
    as_evaluated,
    end_of_search,
    make_title,
    measure_policies,
    show_end,
    summarise,
    write_bits,
    write_figure,
)
from haqjax.run.answers.within import find_uniform as find_uniform  # each budget has one of its own besides
from haqjax.run.distributed import is_first
from haqjax.run.evaluators import measure_accuracies
from haqjax.run.folder.files import write_episodes
from haqjax.searchers import SearchResult
from haqjax.searchers.stopping import cheapest_within_error
from haqjax.types import WIDTHS, Budget, Cost
from haqjax.units import RESOURCES, as_fields

RULE = "the cheapest policy within one standard error of the best, by the search split"


class Choice(NamedTuple):
    """The policy within one budget, and the uniform one; by those names."""

    budget: Budget
    fraction: float  # of what 8 bits cost, to six digits: float32 has no more
    episode: int
    policies: dict[str, Int[np.ndarray, "L 2"]]
    costs: dict[str, Cost]
    searched: dict[str, float]  # accuracies in 0..1, on the split that they were chosen by
    reported: dict[str, float]


def conclude(run: SearchRun, result: SearchResult, out: Path, console: Console) -> None:
    """Measures the policies, writes the files of a front, and prints the last lines."""
    choices = _measure_choices(run, result)
    resource = run.config.aim.metrics[0]
    named = _name_one(choices, resource, run.baselines.images[0])
    measured = measure_policies(run, choices[named].policies, choices[named].searched)
    if is_first():
        _write(out, run, result, choices, measured, named)
    _show(run, result, choices, measured, named, out, console)


def _measure_choices(run: SearchRun, result: SearchResult) -> list[Choice]:
    """Measures the policies of a front, and the uniform policies within the same budgets, the tightest budget first."""
    prepared, resource = run.prepared, run.config.aim.metrics[0]
    full = float(getattr(policy_cost(prepared.table, np.full((len(prepared.table), 2), WIDTHS)), resource))
    policies: dict[str, np.ndarray] = {}
    found = [(at, budget) for at, budget in enumerate(prepared.budgets) if result.chosen[at] is not None]
    for at, budget in found:
        uniform = np.asarray(best_uniform(prepared.table, prepared.bounds, budget).policy)
        policies[f"policy {at}"] = as_evaluated(run.config, result.policy_of(at))
        policies[f"uniform {at}"] = as_evaluated(run.config, uniform)
    on_device = {name: jnp.asarray(policy) for name, policy in policies.items()}
    searched = _recall(run, result, policies)
    searched |= measure_accuracies(run.evaluators[0], {n: p for n, p in on_device.items() if n not in searched})
    reported = measure_accuracies(run.evaluators[1], on_device)

    def pick(values: dict[str, Any], at: int) -> dict[str, Any]:
        return {name: values[f"{name} {at}"] for name in ("policy", "uniform")}

    return [
        Choice(
            budget,
            float(f"{float(getattr(budget, resource)) / full:.6g}"),
            int(result.chosen[at] or 0),
            pick(policies, at),
            {name: policy_cost(prepared.table, policy) for name, policy in pick(policies, at).items()},
            pick(searched, at),
            pick(reported, at),
        )
        for at, budget in found
    ]


def _recall(run: SearchRun, result: SearchResult, policies: dict[str, np.ndarray]) -> dict[str, float]:
    """Looks accuracies up, on the search split, of policies that the search evaluated on all of its images."""
    records = result.records
    rows = [at for at in range(len(records.accuracy)) if np.isfinite(records.accuracy[at])]
    evaluated = as_evaluated(run.config, np.asarray(records.policy))
    known = {evaluated[at].tobytes(): float(records.accuracy[at]) for at in rows}
    return {name: known[key] for name, policy in policies.items() if (key := policy.tobytes()) in known}


def _name_one(choices: Sequence[Choice], resource: str, images: int) -> int:
    """Chooses the policy that goes into `policy.json`; see `RULE`."""
    accuracy = np.array([choice.searched["policy"] for choice in choices])
    cost = np.array([float(getattr(choice.costs["policy"], resource)) for choice in choices])
    named = cheapest_within_error(accuracy, cost, images)
    assert named is not None  # a policy that was chosen has an accuracy
    return named


def _write(
    out: Path, run: SearchRun, result: SearchResult, choices: Sequence[Choice], measured: Measured, named: int
) -> None:
    """Writes `episodes.csv`, `front.json`, `front.csv`, `figures/` and, last, `policy.json`."""
    resource, records, title = run.config.aim.metrics[0], result.records, make_title(run)
    write_episodes(out, records, resource, result.limits(resource))
    write_json(out / "front.json", _as_document(run, result, choices, measured, named))
    write_csv(out / "front.csv", [_as_row(choice, resource, at == named) for at, choice in enumerate(choices)])
    write_bits(out, run.prepared, measured.policies["policy"], title)
    evaluated = Marks(np.asarray(getattr(records.cost, resource)), np.asarray(records.accuracy))

    def mark(name: str) -> Marks:
        costs = [float(getattr(choice.costs[name], resource)) for choice in choices]
        return Marks(costs, [choice.reported[name] for choice in choices])

    write_figure(
        out,
        "front",
        lambda: front_figure(
            resource,
            mark("policy"),
            mark("uniform"),
            evaluated,
            measured.images[1],
            float_accuracy=measured.reported["float"],
            named=named,
            title=title,
        ),
    )
    document = summarise(run, choices[named].budget, result, choices[named].episode, measured)
    document["budget"]["fraction"] = choices[named].fraction
    write_json(out / "policy.json", document | {"front": {"resource": resource, "named": named, "rule": RULE}})


def _show(
    run: SearchRun,
    result: SearchResult,
    choices: Sequence[Choice],
    measured: Measured,
    named: int,
    out: Path,
    console: Console,
) -> None:
    """Prints the last lines: a row for each budget."""
    resource, images = run.config.aim.metrics[0], measured.images[1]
    unit = RESOURCES[resource].usual
    size = RESOURCES[resource].sizes[unit]
    title = f"{make_title(run)}, found by {run.config.method.search}"
    table = Table(title=as_cell(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("budget", f"{resource} ({unit})", "found (%)", "uniform (%)", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    full = float(getattr(policy_cost(run.prepared.table, measured.policies["8_bits"]), resource))
    for at, choice in enumerate(choices):
        cost = float(getattr(choice.costs["policy"], resource))
        bits = int(choice.policies["uniform"].min())
        table.add_row(
            f"{choice.fraction:.3g}",
            f"{cost / size:.4g} ({cost / full:.2f}x)",
            _percent(choice.reported["policy"], images),
            f"{_percent(choice.reported['uniform'], images)}, {bits} bits",
            "*" if at == named else "",
        )
    console.print(table)
    searched, reported = measured.searched, measured.reported
    lines = [
        f"Budgets are fractions of what 8 bits cost, {full / size:.4g} {unit}. Accuracy on the {images} images of the "
        f"report split; float {100 * reported['float']:.1f} %, 8 bits {100 * reported['8_bits']:.1f} %.",
        f"* is in policy.json: {RULE}, {100 * searched['policy']:.1f} % there (float {100 * searched['float']:.1f} %).",
    ]
    missing = len(run.prepared.budgets) - len(choices)
    if missing:
        lines.append(f"No policy was found within {missing} of the budgets.")
    show_end(lines, run.config, result, out, console)


def _as_document(
    run: SearchRun, result: SearchResult, choices: Sequence[Choice], measured: Measured, named: int
) -> dict[str, Any]:
    """Makes the document `front.json`."""
    config, eight = run.config, policy_cost(run.prepared.table, measured.policies["8_bits"])

    def accuracies(name: str) -> dict[str, float]:
        return {"search": measured.searched[name], "report": measured.reported[name]}

    return {
        "network": config.network.model,
        "hardware": run.prepared.machine,
        "weights": measured.weights,
        "data": config.data.data,
        "resource": config.aim.metrics[0],
        "search": config.method.search,
        "seed": config.method.seed,
        "episodes": len(result.records.accuracy),
        **end_of_search(config, result),
        "interrupted": result.interrupted,
        "images": dict(zip(("search", "report"), measured.images, strict=True)),
        "float": {"accuracies": accuracies("float")},
        "8_bits": {"costs": as_fields(eight), "accuracies": accuracies("8_bits")},
        "named": named,
        "rule": RULE,
        "policies": [_choice_document(choice, run.prepared.layers.names) for choice in choices],
    }


def _choice_document(choice: Choice, names: Sequence[str]) -> dict[str, Any]:
    parts = {
        name: {
            "costs": as_fields(choice.costs[name]),
            "accuracies": {"search": choice.searched[name], "report": choice.reported[name]},
        }
        for name in choice.policies
    }
    return {
        "budget": {"fraction": choice.fraction, **as_fields(Cost(*choice.budget))},
        "episode": choice.episode,
        **parts["policy"],
        "uniform": {"bits": int(choice.policies["uniform"].min())} | parts["uniform"],
        "layers": to_rows(jnp.asarray(choice.policies["policy"]), names),
    }


def _as_row(choice: Choice, resource: str, named: bool) -> dict[str, Any]:
    """Makes a line of `front.csv`."""
    field = RESOURCES[resource].field
    return {
        "budget_fraction": choice.fraction,
        f"budget_{field}": getattr(choice.budget, resource),
        "named": named,
        "episode": choice.episode,
        "search_accuracy": choice.searched["policy"],
        "report_accuracy": choice.reported["policy"],
        **as_fields(choice.costs["policy"]),
        "uniform_bits": int(choice.policies["uniform"].min()),
        "uniform_search_accuracy": choice.searched["uniform"],
        "uniform_report_accuracy": choice.reported["uniform"],
        f"uniform_{field}": float(getattr(choice.costs["uniform"], resource)),
    }


def _percent(accuracy: float, images: int) -> str:
    return f"{100 * accuracy:.1f} ± {100 * standard_error(accuracy, images):.1f}"
