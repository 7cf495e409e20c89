"""Checks of a result that a search goes on from: of the same problem, by the same searcher, with the same key."""

import dataclasses
from typing import Any

import jax
import numpy as np

from haqjax.policies.cost import policy_cost
from haqjax.searchers.base import Problem, Searcher, SearchResult, Stage, count_episodes

COMPARED = 8  # episodes, at each end, whose costs are computed again
COST = 1e-3  # relative difference of costs that another device may make


def check_resumable(problem: Problem, searcher: Searcher, resume: SearchResult | None) -> None:
    """Checks that a search can go on from a result; one without episodes, such as a warm start's, always can.

    Raises:
      ValueError: the result is of another network or machine, or was found by another searcher.
    """
    if resume is None or not count_episodes(resume.records):
        return
    layers = np.shape(resume.records.policy)[1]
    if layers != len(problem.layers):
        raise ValueError(f"resume is a result for {layers} layers, the network has {len(problem.layers)}")
    _check_costs(problem, resume)
    name = name_searcher(searcher)
    if resume.searcher and resume.searcher != name:
        maker, own = (text.partition("(")[0] for text in (resume.searcher, name))
        other = f"the searcher {maker}, not of {own}" if maker != own else f"{maker} with other numbers"
        raise ValueError(f"resume is a result of {other}: give that searcher, or start anew")


def check_stage(index: int, stage: Stage, resume: SearchResult | None) -> None:
    """Checks that a stage is the one that a result was found in.

    Raises:
      ValueError: it has another key or another budget.
    """
    if resume is None or not count_episodes(resume.records) or index >= len(resume.stages):
        return
    before = resume.stages[index]
    if not np.array_equal(jax.random.key_data(before.key), jax.random.key_data(stage.key)):
        raise ValueError("resume is a result of a search with another key: give that key, or start anew")
    if jax.tree.map(float, before.budget) != jax.tree.map(float, stage.budget):
        raise ValueError("resume is a result within another budget: give that budget, or start anew")


def name_searcher(searcher: Searcher) -> str:
    """Names a searcher by its maker and the numbers it was made with.

    >>> from haqjax.searchers.loop import find_searcher
    >>> name_searcher(find_searcher("random", 4))
    'random.make_random(parallel=4)'
    """
    functions = (searcher.init, searcher.ask, searcher.tell)
    numbers: dict[str, str] = {}
    for function in functions:
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
            if _is_plain(cell.cell_contents):
                numbers[name] = repr(cell.cell_contents)
    made = getattr(searcher.ask, "__qualname__", type(searcher.ask).__name__).partition(".<locals>")[0]
    module = getattr(searcher.ask, "__module__", "").rpartition(".")[2]
    return f"{module}.{made}({', '.join(f'{name}={numbers[name]}' for name in sorted(numbers))})"


def _is_plain(value: Any) -> bool:
    """Tells whether a value is configuration: numbers, text, and frozen records of these."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _check_costs(problem: Problem, resume: SearchResult) -> None:
    count = count_episodes(resume.records)
    some = np.unique(np.r_[: min(COMPARED, count), max(0, count - COMPARED) : count])
    again = policy_cost(problem.table, np.asarray(resume.records.policy)[some])
    for name, known in resume.records.cost._asdict().items():
        now = getattr(again, name)
        if known is None or now is None:
            continue
        before = np.asarray(known)[some]
        if not np.allclose(before, np.asarray(now), rtol=COST, equal_nan=True):
            raise ValueError(
                f"resume is a result of another machine or network: the {name} of its first policy was {before[0]:g}, "
                f"and is {np.asarray(now)[0]:g} here"
            )
