"""Searchers: the loop of stages, and one file for each method."""

from haqjax.searchers.base import Evaluation, Problem, Record, Searcher, SearchResult, make_problem
from haqjax.searchers.greedy import make_greedy
from haqjax.searchers.haq import HAQ, make_haq
from haqjax.searchers.ilp import ILP, make_ilp
from haqjax.searchers.loop import SEARCHERS, search
from haqjax.searchers.random import make_random

__all__ = [
    "HAQ",
    "ILP",
    "SEARCHERS",
    "Evaluation",
    "Problem",
    "Record",
    "SearchResult",
    "Searcher",
    "make_greedy",
    "make_haq",
    "make_ilp",
    "make_problem",
    "make_random",
    "search",
]
