"""The search command: from a configuration to a run folder."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from rich.console import Console

from haqjax.evaluation.evaluator import only_finite
from haqjax.models import Network
from haqjax.policies.actions import uniform
from haqjax.policies.budgets import fits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import best_uniform
from haqjax.run.config.commands import SearchConfig, free_folder
from haqjax.run.config.search import USUAL_BUDGET
from haqjax.run.distributed import from_first, is_first, join, speaker
from haqjax.run.float_network import load_network
from haqjax.run.folder.files import open_folder
from haqjax.run.folder.front import conclude_front, name_one, show_front, write_front
from haqjax.run.folder.result import Outcome, count_not_finite, show_result, write_result
from haqjax.run.resumable import make_searcher, play
from haqjax.run.setup import (
    Task,
    find_ranges,
    judge_all,
    leave_activations,
    make_judge,
    make_probing_judge,
    make_racing_judge,
    make_soft,
    measure,
    prepare,
    settle_batches,
)
from haqjax.searchers import Problem, make_problem
from haqjax.searchers.accuracy_constrained import ROUNDING
from haqjax.searchers.front import Front
from haqjax.training.checkpoints import fingerprint
from haqjax.types import FULL_PRECISION, WIDTHS, Ranges

__all__ = ["find_folder", "make_searcher", "prepare", "run_search"]


class Posed(NamedTuple):
    """What is asked of a search, ready to be answered."""

    problem: Problem
    judges: tuple[jax.tree_util.Partial, jax.tree_util.Partial]  # by the search and by the report split
    fixed: Outcome  # what the policy is measured against: float, 8_bits, uniform; not yet reported


def run_search(config: SearchConfig, console: Console) -> Path:
    """Searches a policy, or a front of them, and writes a run folder; the last lines printed are the result.

    Returns:
      The run folder.

    Raises:
      ValueError: bad input, also a budget below the floor; nothing has been trained or written.
      OSError: the run folder cannot be written; what it holds of the search can be resumed.
      RuntimeError: interrupted before the first round ended, or no policy qualified.
    """
    join(config.hosts)
    console = speaker(console)
    config, out = from_first(lambda: find_folder(config))
    task = prepare(config)
    out = out or free_folder(_name(config, task))
    for note in task.data.notes:
        console.print(note, highlight=False, soft_wrap=True)
    params = from_first(lambda: load_network(task.network, task.data, config.weights, console).params)
    network = dataclasses.replace(task.network, params=params)
    ranges = from_first(lambda: find_ranges(config, network, task.data))
    config = settle_batches(config, network, task.data.search, ranges)
    posed = _pose(config, task, network, ranges)
    found = play(config, task, posed.problem, out, console)
    if count := count_not_finite(found.records):
        line = f"{count} of {len(found.records.accuracy)} policies gave outputs that are not finite: none was chosen."
        console.print(line, highlight=False, soft_wrap=True)
    if isinstance(found, Front):
        choices = conclude_front(config, task, found, posed.judges)
        named = name_one(config, task, choices, posed.fixed.images[0])
        outcome = _measure(posed, choices[named].policies, choices[named].searched)
        if is_first():
            write_front(out, config, task, found, choices, outcome, named)
        show_front(config, task, found, choices, outcome, named, out, console)
    else:
        policy = np.asarray(leave_activations(config, jnp.asarray(found.policy)))
        outcome = _measure(posed, {"policy": policy}, {"policy": found.accuracy})
        if is_first():
            write_result(out, config, task, found, outcome)
        show_result(config, task, found, outcome, out, console)
    return out


def find_folder(config: SearchConfig) -> tuple[SearchConfig, Path | None]:
    """The configuration to run and the folder, where one is given: that of the run to resume, or a new one.

    Raises:
      ValueError: the run to resume is not there, or was started with other options.
    """
    if config.resume is None:
        if config.budget is None and config.resource is None:
            config = dataclasses.replace(config, budget=USUAL_BUDGET)
        return config, None if config.out is None else Path(config.out)
    before = open_folder(config.resume)
    if not os.access(config.resume, os.W_OK | os.X_OK):
        raise ValueError(
            f"{config.resume} cannot be written to, and a search that goes on writes there: make it writable"
        )
    usual = SearchConfig()
    for field in dataclasses.fields(SearchConfig):
        asked, was = getattr(config, field.name), getattr(before, field.name)
        if field.name not in ("resume", "out", "episodes", "hosts") and asked not in (getattr(usual, field.name), was):
            raise ValueError(
                f"{config.resume} was started with {field.name} {was!r}, not {asked!r}: leave it out, or start anew"
            )
    if before.resource is not None and config.episodes not in (usual.episodes, before.episodes):
        raise ValueError(
            f"{config.resume} was started with episodes {before.episodes}, which its budgets share: leave it out"
        )
    episodes = before.episodes if config.episodes == usual.episodes else config.episodes
    again = dataclasses.replace(before, resume=config.resume, episodes=episodes, out=None, hosts=config.hosts)
    return again, Path(config.resume)


def _name(config: SearchConfig, task: Task) -> str:
    budget = "" if config.budget is None else str(config.budget).replace(",", "+").replace(" ", "")
    aim = f"{'+'.join(config.metrics)}{budget}"
    if config.front is not None:
        aim = f"{config.front}-front"
    elif config.max_drop is not None:
        aim = f"{aim}-drop{config.max_drop:g}"
    return f"runs/{config.model}-{task.machine}-{aim}-{config.search}-seed{config.seed}"


def _pose(config: SearchConfig, task: Task, network: Network, ranges: Ranges) -> Posed:
    """The problem, the policies that a search is compared with, and their accuracies on the search split."""
    judge, unseen = (
        make_judge(config, network, split, ranges, task.data) for split in (task.data.search, task.data.report)
    )
    eight = jnp.full((len(task.layers), 2), WIDTHS)
    fixed = {"float": jnp.full_like(eight, FULL_PRECISION), "8_bits": leave_activations(config, eight)}
    judged = judge_all(judge, fixed)
    reference = judged["float"]
    if np.isinf(reference.loss):
        raise ValueError(
            "the float network gives outputs that are not finite on the images of the search: check its weights and "
            "how the images are scaled"
        )
    fixed["uniform"] = leave_activations(config, _find_uniform(config, task, judge, float(reference.accuracy)))
    probing = make_probing_judge(config, network, task, ranges)
    problem = make_problem(
        task.layers, task.table, task.bounds, task.budget, only_finite(probing or judge), reference.accuracy,
        reference_loss=reference.loss, soft_loss=make_soft(config, network, task.data, ranges),
        race=make_racing_judge(config, network, task.data.search, ranges),
    )  # fmt: skip
    outcome = Outcome(
        policies={name: np.asarray(policy) for name, policy in fixed.items()},
        searched=measure(judge, fixed),
        reported={},
        images=(len(task.data.search), len(task.data.report)),
        weights=fingerprint(network.params),
    )
    return Posed(problem, (judge, unseen), outcome)


def _find_uniform(
    config: SearchConfig, task: Task, judge: jax.tree_util.Partial, reference: float
) -> Int[Array, "L 2"]:
    """The best policy of the same bits everywhere: within the budget, or the cheapest that is accurate enough."""
    if config.max_drop is None:
        return best_uniform(task.table, task.bounds, task.budget).policy
    policies = jax.vmap(uniform, in_axes=(0, None))(jnp.arange(WIDTHS, 0, -1), task.bounds)
    cost = policy_cost(task.table, policies)
    judged = measure(judge, {str(at): leave_activations(config, policy) for at, policy in enumerate(policies)})
    enough = np.array([*judged.values()]) >= reference - config.max_drop / 100 - ROUNDING
    spent = np.where(enough & np.asarray(fits(cost, task.budget)), getattr(cost, config.metrics[0]), np.inf)
    return policies[int(np.argmin(spent))]  # the widest, where none is accurate enough


def _measure(posed: Posed, policies: dict[str, np.ndarray], searched: dict[str, float]) -> Outcome:
    """The fixed policies and those given, on the report split."""
    fixed = posed.fixed
    everyone = fixed.policies | policies
    reported = measure(posed.judges[1], {name: jnp.asarray(policy) for name, policy in everyone.items()})
    return fixed._replace(policies=everyone, searched=fixed.searched | searched, reported=reported)
