"""Uniform policies: what there is without a search for single layers."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.bounds import clip_policy
from haqjax.policies.budget_fill import is_within, normalise_costs, normalised_cost
from haqjax.searchers.base import Problem, Searcher
from haqjax.searchers.history import is_new, nothing
from haqjax.types import WIDTHS


class UniformState(NamedTuple):
    """What there is to propose, in order, and how far that has come."""

    actions: Float[Array, "64 L 2"]
    fitting: Int[Array, ""]  # so many of them fit the budget
    asked: Int[Array, ""]


@functools.cache
def make_uniform(parallel: int = 1) -> Searcher:
    """Policies with the same bits in all layers, those that fit the budget; pinned layers keep theirs.

    First the same bits for weights and activations, most bits first; then all other pairs, those that use most of the
    budget first. After the last one they begin again.

    >>> make_uniform(4) is make_uniform(4)
    True
    """

    def init(problem: Problem, key: PRNGKeyArray) -> UniformState:
        weight, activation = (side.reshape(-1) for side in jnp.mgrid[WIDTHS:0:-1, WIDTHS:0:-1])
        pairs = jnp.stack([weight, activation], axis=-1)
        shape = (len(pairs), *problem.bounds.low.shape)
        policies = clip_policy(jnp.broadcast_to(pairs[:, None], shape), problem.bounds)
        shares = normalise_costs(problem.table, problem.bounds, problem.budget)
        first = jnp.argsort(weight != activation, stable=True)  # of pairs that come to the same, the equal one stays
        policies, unequal = policies[first], (weight != activation)[first]
        fitting = is_within(shares, policies) & is_new(nothing(), policies)
        unused = jnp.where(unequal, -normalised_cost(shares, policies).max(axis=-1), 0.0)
        order = jnp.lexsort((unused, unequal, ~fitting))
        return UniformState(to_actions(policies[order], problem.bounds), fitting.sum(), jnp.int32(0))

    def ask(state: UniformState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        return state.actions[(state.asked + jnp.arange(parallel)) % jnp.maximum(state.fitting, 1)]

    def tell(state: UniformState, actions: Array, policies: Array, rewards: Array) -> UniformState:
        return state._replace(asked=state.asked + len(rewards))

    return Searcher(init, ask, tell)
