"""Answer of a search within one budget."""

from pathlib import Path

import numpy as np
from jaxtyping import Array, Int
from rich.console import Console

from haqjax.files import write_json
from haqjax.policies.projection import best_uniform
from haqjax.report import search_figure
from haqjax.run.answers.common import (
    SearchRun,
    as_evaluated,
    make_title,
    measure_policy,
    show_policy,
    summarise,
    write_bits,
    write_figure,
)
from haqjax.run.config.search import SearchConfig
from haqjax.run.distributed import is_first
from haqjax.run.folder.files import best_so_far, write_episodes
from haqjax.run.setup import PreparedSearch
from haqjax.searchers import SearchResult
from haqjax.types import Evaluator


def find_uniform(
    config: SearchConfig, prepared: PreparedSearch, evaluator: Evaluator, reference: float
) -> Int[Array, "L 2"]:
    """Finds the uniform policy to compare with: the one of most bits within the budget."""
    return best_uniform(prepared.table, prepared.bounds, prepared.budget).policy


def conclude(run: SearchRun, result: SearchResult, out: Path, console: Console) -> None:
    """Measures the policy, writes `episodes.csv`, `figures/` and, last, `policy.json`, and prints the last lines."""
    measured = measure_policy(run, as_evaluated(run.config, result.policy), result.accuracy)
    if is_first():
        title, records = make_title(run), result.records
        write_episodes(out, records)
        write_bits(out, run.prepared, measured.policies["policy"], title)
        curves = (np.asarray(records.accuracy), np.asarray(records.feasible), best_so_far(records))
        levels = (measured.searched["float"], measured.searched["uniform"])
        write_figure(out, "search", lambda: search_figure(*curves, *levels, title))
        write_json(out / "policy.json", summarise(run, run.prepared.budget, result, result.best, measured))
    show_policy(run, result, measured, out, console)
