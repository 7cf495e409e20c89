"""Warm start: an agent that begins with the networks of another one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from haqjax.agent.ddpg import AgentState
from haqjax.searchers.base import Problem, Searcher, SearchResult, no_records

LEARNED = ("actor", "critic", "target_actor", "target_critic")


def start_warm(learned: AgentState, searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> SearchResult:
    """Makes a result without episodes, to be given to `haqjax.search` as `resume`.

    Args:
      learned: agent at the end of another search, perhaps of another network; its moments and its baseline stay behind.
      searcher: a search by an agent of the same sizes.
      problem: of the new search.
      key: starts what is not learned.

    Raises:
      ValueError: the agents differ in size, such as by extensions that only one of them has.
    """
    state: Any = searcher.init(problem, key)
    knows = {name: jax.tree.map(jnp.asarray, getattr(learned, name)) for name in LEARNED}
    for name, value in knows.items():
        if jax.tree.map(jnp.shape, value) != jax.tree.map(jnp.shape, getattr(state.agent, name)):
            raise ValueError(f"the {name} that was learned is of another size: give both searches the same extensions")
    state = state._replace(agent=state.agent._replace(**knows))
    return SearchResult(no_records(len(problem.layers)), (), (None,), state)
