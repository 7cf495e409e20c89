"""A search whose agent starts with what another one learned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from haqjax.agent.ddpg import AgentState
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult
from haqjax.searchers.driver import start
from haqjax.types import Cost

LEARNED = ("actor", "critic", "target_actor", "target_critic")


def start_warm(learned: AgentState, searcher: Searcher, problem: Problem, key: PRNGKeyArray) -> SearchResult:
    """A search that has played nothing yet, to be given to `haqjax.searchers.search` as `resume`.

    Args:
      learned: agent at the end of another search, perhaps of another network; its moments and its baseline stay behind.
      searcher: a search by an agent of the same sizes.
      problem: of the new search.
      key: starts what is not learned.

    Raises:
      ValueError: the agents differ in size, such as by additions that only one of them has.
    """
    state: Any = start(searcher, problem, key)
    knows = {name: jax.tree.map(jnp.asarray, getattr(learned, name)) for name in LEARNED}
    for name, value in knows.items():
        if jax.tree.map(jnp.shape, value) != jax.tree.map(jnp.shape, getattr(state.agent, name)):
            raise ValueError(f"the {name} that was learned is of another size: give both searches the same additions")
    state = state._replace(agent=state.agent._replace(**knows))
    return SearchResult(None, empty_records(len(problem.names)), state)


def empty_records(layers: int) -> Record:
    """The records of a search that has played nothing.

    >>> empty_records(3).policy.shape
    (0, 3, 2)
    """
    none: Any = np.zeros(0, np.float32)
    policies: Any = np.zeros((0, layers, 2), np.int32)
    feasible: Any = np.zeros(0, bool)
    cost = Cost(none, none, none, none, none)
    return Record(policies.astype(np.float32), policies, none, none, none, cost, feasible)
