"""Uniform policies: the same bits in every layer."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.bounds import clip_policy
from haqjax.policies.budget_fill import fits_limits, normalise_costs, normalised_cost
from haqjax.searchers import history
from haqjax.searchers.base import Problem, Searcher
from haqjax.types import WIDTHS


class UniformState(NamedTuple):
    """Policies to propose, in order, and how many were proposed."""

    actions: Float[Array, "64 L 2"]
    fitting: Int[Array, ""]  # so many of them fit the budget
    asked: Int[Array, ""]


@functools.cache
def make_uniform(parallel: int = 1) -> Searcher:
    """Makes a search of the policies with the same bits in all layers that fit the budget; pinned layers keep theirs.

    First the same bits for weights and activations, most bits first; then all other pairs, those that use most of the
    budget first. After the last one they begin again.

    >>> make_uniform(4) is make_uniform(4)
    True
    """

    @jax.jit
    def init(problem: Problem, key: PRNGKeyArray) -> UniformState:
        weight, activation = (side.reshape(-1) for side in jnp.mgrid[WIDTHS:0:-1, WIDTHS:0:-1])
        pairs = jnp.stack([weight, activation], axis=-1)
        shape = (len(pairs), *problem.bounds.low.shape)
        policies = clip_policy(jnp.broadcast_to(pairs[:, None], shape), problem.bounds)
        costs = normalise_costs(problem.table, problem.bounds, problem.budget)
        first = jnp.argsort(weight != activation, stable=True)  # of pairs that come to the same, the equal one stays
        policies, unequal = policies[first], (weight != activation)[first]
        fitting = fits_limits(costs, policies) & history.is_new(history.empty(len(problem.layers), 1), policies)
        unused = jnp.where(unequal, -normalised_cost(costs, policies).max(axis=-1), 0.0)
        order = jnp.lexsort((unused, unequal, ~fitting))
        return UniformState(to_actions(policies[order], problem.bounds), fitting.sum(), jnp.int32(0))

    def ask(state: UniformState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        return state.actions[(state.asked + jnp.arange(parallel)) % jnp.maximum(state.fitting, 1)]

    def tell(state: UniformState, actions: Array, policies: Array, rewards: Array) -> UniformState:
        return state._replace(asked=state.asked + len(rewards))

    return Searcher(init, ask, tell)
