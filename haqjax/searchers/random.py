"""Random search, the baseline."""

import functools

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from haqjax.searchers.base import Problem, Searcher
from haqjax.types import Bounds


@functools.cache
def make_random(parallel: int = 1) -> Searcher:
    """Makes a search of uniform actions, `parallel` policies a round; learns nothing.

    >>> make_random(4) is make_random(4)  # hence compiled once
    True
    """

    def init(problem: Problem, key: PRNGKeyArray) -> Bounds:
        return problem.bounds

    def ask(state: Bounds, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        return jax.random.uniform(key, (parallel, *state.low.shape))

    def tell(state: Bounds, actions: Array, policies: Array, rewards: Array) -> Bounds:
        return state

    return Searcher(init, ask, tell)
