"""Answer of an accuracy-constrained search: the cheapest policy that is accurate enough."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from matplotlib.figure import Figure
from rich.console import Console

from haqjax.policies.actions import uniform
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.report.static.front import Marks, front_figure
from haqjax.run.answers.common import Measured, SearchRun, conclude_one
from haqjax.run.config.aim import CheapestAim
from haqjax.run.config.search import SearchConfig
from haqjax.run.evaluators import leave_activations, measure_accuracies
from haqjax.run.setup import PreparedSearch
from haqjax.searchers import SearchResult
from haqjax.searchers.accuracy_constrained import ROUNDING
from haqjax.types import WIDTHS, Evaluator


def find_uniform(
    config: SearchConfig, prepared: PreparedSearch, evaluator: Evaluator, reference: float
) -> Int[Array, "L 2"]:
    """Finds the uniform policy to compare with: the cheapest that is accurate enough.

    Args:
      evaluator: on the search split.
      reference: accuracy of the float network there.
    """
    aim = config.aim
    assert isinstance(aim, CheapestAim)
    policies = jax.vmap(uniform, in_axes=(0, None))(jnp.arange(WIDTHS, 0, -1), prepared.bounds)
    cost = policy_cost(prepared.table, policies)
    named = {str(at): leave_activations(config, policy) for at, policy in enumerate(policies)}
    accuracies = np.array([*measure_accuracies(evaluator, named).values()])
    enough = accuracies >= reference - aim.max_drop / 100 - ROUNDING
    amounts = np.where(enough & np.asarray(fits(cost, prepared.budget)), getattr(cost, aim.resource), np.inf)
    return policies[int(np.argmin(amounts))]  # the widest, where none is accurate enough


def conclude(run: SearchRun, result: SearchResult, out: Path, console: Console) -> None:
    """Writes `episodes.csv`, `figures/` and, last, `policy.json`, and prints the last lines."""
    conclude_one(run, result, out, console, "front", functools.partial(_draw, run, result))


def _draw(run: SearchRun, result: SearchResult, measured: Measured, title: str) -> Figure:
    """Draws all policies in the plane of accuracy and cost, with the one that was chosen."""
    aim = run.config.aim
    assert isinstance(aim, CheapestAim)

    def mark(name: str) -> Marks:
        cost = policy_cost(run.prepared.table, measured.policies[name])
        return Marks([float(getattr(cost, aim.resource))], [measured.reported[name]])

    evaluated = Marks(np.asarray(getattr(result.records.cost, aim.resource)), np.asarray(result.records.accuracy))
    return front_figure(
        aim.resource,
        mark("policy"),
        mark("uniform"),
        evaluated,
        measured.images[1],
        float_accuracy=measured.reported["float"],
        least=float(run.problem.reference) - aim.max_drop / 100,
        title=title,
    )
