"""Searches for a policy: what all share, and one file for each method."""

from haqjax.search.base import Problem, Record, Searcher, SearchResult, make_problem
from haqjax.search.haq import HAQ, make_haq
from haqjax.search.loop import SEARCHERS, search
from haqjax.search.random import make_random

__all__ = [
    "HAQ",
    "SEARCHERS",
    "Problem",
    "Record",
    "SearchResult",
    "Searcher",
    "make_haq",
    "make_problem",
    "make_random",
    "search",
]
