"""Parts of all answers: what was measured, the figures of a policy, `policy.json`, the last lines."""

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
from haqjax.policies.cost import policy_cost
from haqjax.report import Row, bits_figure, comparison_table, save
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import is_first
from haqjax.run.evaluators import leave_activations, measure_accuracies
from haqjax.run.folder.files import write_episodes
from haqjax.run.setup import PreparedSearch
from haqjax.run.terminal import say
from haqjax.searchers import Problem, SearchResult
from haqjax.searchers.base import Record
from haqjax.searchers.stopping import WORTH
from haqjax.types import Budget, Cost, Evaluator
from haqjax.units import as_fields


class Measured(NamedTuple):
    """Policies by name, float, 8_bits, uniform, policy, and their accuracies in 0..1."""

    policies: dict[str, Int[np.ndarray, "L 2"]]
    searched: dict[str, float]  # on the search split, by which the policy was chosen
    reported: dict[str, float]  # on the report split, by which nothing was chosen
    images: tuple[int, int]  # in the search and the report split
    weights: str  # fingerprint of the float parameters


class SearchRun(NamedTuple):
    """A search that is ready to run, with the policies that its own is compared with."""

    config: SearchConfig
    prepared: PreparedSearch
    problem: Problem
    evaluators: tuple[Evaluator, Evaluator]  # on the search and on the report split
    baselines: Measured  # float, 8_bits, uniform; not yet reported


def conclude_one(
    run: SearchRun,
    result: SearchResult,
    out: Path,
    console: Console,
    name: str,
    draw: Callable[[Measured, str], Figure],
) -> None:
    """Measures the one policy of a search, writes its files, last of them `policy.json`, and prints the last lines.

    Args:
      name: of the figure beside `figures/bits`.
      draw: the figure, given what was measured and a title.
    """
    policy = as_evaluated(run.config, result.policy)
    measured = measure_policies(run, {"policy": policy}, {"policy": result.accuracy})
    if is_first():
        resource, title = run.config.aim.resource, make_title(run)
        write_episodes(out, result.records, resource, None if resource is None else result.limits(resource))
        write_bits(out, run.prepared, policy, title)
        write_figure(out, name, lambda: draw(measured, title))
        write_json(out / "policy.json", summarise(run, run.prepared.budget, result, result.best, measured))
    show_policy(run, result, measured, out, console)


def measure_policies(
    run: SearchRun, policies: dict[str, Int[np.ndarray, "L 2"]], searched: dict[str, float]
) -> Measured:
    """Measures the baselines and some policies on the report split.

    Args:
      policies: by name; one that is called like a baseline takes its place.
      searched: their accuracies on the search split.
    """
    every = run.baselines.policies | policies
    reported = measure_accuracies(run.evaluators[1], {name: jnp.asarray(policy) for name, policy in every.items()})
    return run.baselines._replace(policies=every, searched=run.baselines.searched | searched, reported=reported)


def as_evaluated(config: SearchConfig, policy: Int[np.ndarray, "L 2"]) -> Int[np.ndarray, "L 2"]:
    """Returns a policy of the search as it is evaluated; see `leave_activations`."""
    return np.asarray(leave_activations(config, jnp.asarray(policy)))


def write_bits(out: Path, prepared: PreparedSearch, policy: Int[np.ndarray, "L 2"], title: str) -> None:
    """Draws `figures/bits`: the widths of a policy."""
    layers, pinned = prepared.layers, np.asarray(prepared.bounds.low == prepared.bounds.high)
    write_figure(
        out,
        "bits",
        lambda: bits_figure(layers.names, policy, layers.depthwise, pinned, title, pointwise=layers.pointwise),
    )


def write_figure(out: Path, name: str, draw: Callable[[], Figure]) -> None:
    """Draws `figures/NAME` as PNG and SVG."""
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for end in ("png", "svg"):
        save(draw(), folder / f"{name}.{end}")


def make_title(run: SearchRun) -> str:
    """Says in a line what was asked."""
    return f"{run.config.network.model} on {run.prepared.machine}, {run.config.aim.text}"


def summarise(
    run: SearchRun, budget: Budget, result: SearchResult, best: int | None, measured: Measured
) -> dict[str, Any]:
    """Makes the document `policy.json`.

    Args:
      budget: that the policy keeps to.
      best: its episode.
    """
    config, prepared, policies = run.config, run.prepared, measured.policies
    max_drop = config.target.max_drop
    return {
        "network": config.network.model,
        "hardware": prepared.machine,
        "weights": measured.weights,
        "data": config.data.data,
        "metric": ",".join(config.aim.metrics),
        "budget": {"fraction": _fractions(config), **as_fields(Cost(*budget))},
        **({} if max_drop is None else {"max_drop": max_drop}),
        "search": config.method.search,
        "seed": config.method.seed,
        "episodes": len(result.records.accuracy),
        **end_of_search(config, result),
        "not_finite": count_not_finite(result.records),
        "best_episode": best,
        "interrupted": result.interrupted,
        "layers": to_rows(jnp.asarray(policies["policy"]), prepared.layers.names),
        "uniform_bits": uniform_bits(measured),
        "costs": {name: as_fields(policy_cost(prepared.table, policies[name])) for name in policies if name != "float"},
        "accuracies": {
            "report": measured.reported | {"images": measured.images[1]},
            "search": measured.searched | {"images": measured.images[0]},
        },
    }


def end_of_search(config: SearchConfig, result: SearchResult) -> dict[str, Any]:
    """Says how many episodes there might have been, and whether the search, within its last budget, needed fewer."""
    return {"episodes_limit": config.method.episodes, "converged": has_converged(result)}


def has_converged(result: SearchResult) -> bool:
    """Tells whether a search ended early, as no more gain was to be expected."""
    return not result.interrupted and len(result.stages) - 1 in result.converged


def _fractions(config: SearchConfig) -> float | dict[str, float] | None:
    """Returns the limits that were asked as fractions of the 8-bit cost: of the one resource, or by resource."""
    metrics = config.aim.metrics
    fractions = {name: value for name, value in config.aim.limits.items() if name in Cost._fields}
    return fractions.get(metrics[0]) if len(metrics) == 1 else fractions


def count_not_finite(records: Record) -> int:
    """Counts policies with outputs that are not finite, which can never be chosen."""
    return int(np.sum(~np.isfinite(np.asarray(records.accuracy))))


def uniform_bits(measured: Measured) -> int:
    """Returns the bits of the uniform policy."""
    return int(measured.policies["uniform"].min())


def show_policy(run: SearchRun, result: SearchResult, measured: Measured, out: Path, console: Console) -> None:
    """Prints the last lines of a search for one policy: beside 8 bits and the uniform policy."""
    config, prepared = run.config, run.prepared
    names = {
        "8_bits": "8 bits",
        "uniform": f"uniform {uniform_bits(measured)}",
        "policy": f"found by {config.method.search}",
    }
    costs = {name: shown_cost(config, policy_cost(prepared.table, measured.policies[name])) for name in names}
    rows = [Row(label, measured.reported[name], measured.images[1], costs[name]) for name, label in names.items()]
    searched, reported = measured.searched, measured.reported
    console.print(comparison_table(rows, f"{config.network.model} on {prepared.machine}: {config.aim.text}"))
    lines = [
        f"Accuracy on the {measured.images[1]} images of the report split; float {100 * reported['float']:.1f} %.",
        f"On the {measured.images[0]} images of the search split, by which the policy was chosen: float "
        f"{100 * searched['float']:.1f} %, uniform {100 * searched['uniform']:.1f} %, "
        f"found {100 * searched['policy']:.1f} %.",
    ]
    show_end(lines, config, result, out, console)


def shown_cost(config: SearchConfig, cost: Cost) -> Cost:
    """Leaves out bit operations and peak memory unless they were asked for: a line is 100 letters long."""
    bops, memory = (value if name in config.aim.metrics else None for name, value in list(cost._asdict().items())[3:])
    return cost._replace(bops=bops, memory=memory)


def show_end(lines: list[str], config: SearchConfig, result: SearchResult, out: Path, console: Console) -> None:
    """Prints lines to end with."""
    searched = f"{'Interrupted after' if result.interrupted else 'Searched'} {len(result.records.accuracy)} policies"
    searched += f" of at most {config.method.episodes}: {_explain_end(config)}." if has_converged(result) else "."
    lines = [*lines, f"{searched} Costs are simulated, not measured.", f"Run folder: {out}"]
    say(console, *lines)


def _explain_end(config: SearchConfig) -> str:
    """Says why a search ended early."""
    rounds = f"{config.method.patience} rounds brought no better one"
    if config.method.search != "ilp":
        return f"{rounds} (PATIENCE=0 goes on)"
    return f"none that is left is expected to gain {WORTH:g} standard errors, or {rounds} (PATIENCE=0 goes on)"
