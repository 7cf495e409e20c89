"""Answer of a search within one budget."""

from pathlib import Path

import numpy as np
from jaxtyping import Array, Int
from matplotlib.figure import Figure
from rich.console import Console

from haqjax.policies.projection import best_uniform
from haqjax.report import search_figure
from haqjax.run.answers.common import Measured, SearchRun, conclude_one
from haqjax.run.config.search import SearchConfig
from haqjax.run.folder.files import best_so_far
from haqjax.run.setup import PreparedSearch
from haqjax.searchers import SearchResult
from haqjax.types import Evaluator


def find_uniform(
    config: SearchConfig, prepared: PreparedSearch, evaluator: Evaluator, reference: float
) -> Int[Array, "L 2"]:
    """Finds the uniform policy to compare with: the one of most bits within the budget."""
    return best_uniform(prepared.table, prepared.bounds, prepared.budget).policy


def conclude(run: SearchRun, result: SearchResult, out: Path, console: Console) -> None:
    """Writes `episodes.csv`, `figures/` and, last, `policy.json`, and prints the last lines."""

    def draw(measured: Measured, title: str) -> Figure:
        records, searched = result.records, measured.searched
        curves = (np.asarray(records.accuracy), np.asarray(records.feasible), best_so_far(records))
        return search_figure(*curves, searched["float"], searched["uniform"], title)

    conclude_one(run, result, out, console, "search", draw)
