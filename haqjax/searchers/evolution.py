"""Evolutionary search: the best policies so far are crossed and mutated; NSGA-II (Deb et al. 2002) for fronts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.policies.actions import to_actions
from haqjax.policies.bounds import ladder, to_rank
from haqjax.policies.budget_fill import fill_budget, normalise_costs, normalised_cost
from haqjax.searchers import history
from haqjax.searchers.base import MOST_LOSS, Problem, Searcher
from haqjax.searchers.history import History
from haqjax.searchers.pareto import crowding, sort_fronts
from haqjax.types import WIDTHS, Bounds, Budget, Cost, CostTable

ALWAYS = 0.5  # greatest of the random fractions that decide which entries give way to the budget first, in ranks
RESOURCES = Cost._fields


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Numbers of the method.

    Raises:
      ValueError: one that is not positive.
    """

    parallel: int = 1  # policies a round
    population: int = 32  # that survive
    drawn: int = 3  # for a parent: the best of so many at random
    mutations: float = 3.0  # entries of a child that move by one width, on average
    tries: int = 8  # children for each policy of a round: the first one that was not evaluated before is taken

    def __post_init__(self) -> None:
        if min(self.parallel, self.population, self.drawn, self.tries) < 1 or self.mutations <= 0:
            raise ValueError(f"every number of an evolution must be positive, got {self}")


class EvolutionState(NamedTuple):
    """State of an evolution. The population is in order, the best first."""

    policy: Int[Array, "P L 2"]
    value: Float[Array, "P K"]  # to be small: minus the reward, and the cost where that counts
    living: Int[Array, ""]  # so many of the population are real
    history: History
    costs: CostTable  # normalised
    cheap: CostTable  # of the resource that is to be cheap, normalised by the all-8-bit cost
    bounds: Bounds


Rank = Callable[[Float[Array, "M K"], Bool[Array, "M"]], Int[Array, "M"]]  # values -> rows in order of survival


@functools.cache
def make_evolution(config: Evolution = Evolution()) -> Searcher:
    """Makes a search within one budget: the policies of the greatest reward survive.

    Children use the budget up: what a mutation frees goes to other entries, at random, and what it needs comes from
    them. The first `population` policies are random, around one width. No policy is proposed twice as long as children
    find new ones.

    >>> make_evolution(Evolution(parallel=4)) is make_evolution(Evolution(parallel=4))
    True
    """
    return _make(config, None)


@functools.cache
def make_nsga2(parallel: int = 1, resource: str = "latency", population: int = 32) -> Searcher:
    """Makes a search of a whole front: accurate and cheap policies, far apart (NSGA-II, Deb et al. 2002).

    The problem's budget is the most that any policy of the front may cost; a resource without a limit will do.

    Raises:
      ValueError: an unknown resource, or a number that is not positive.

    >>> make_nsga2(4, "size") is make_nsga2(4, "size")
    True
    """
    if resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}: there are {', '.join(RESOURCES)}")
    return _make(Evolution(parallel=parallel, population=population), resource)


def _make(config: Evolution, resource: str | None) -> Searcher:
    most = jnp.inf if resource is None else 0.0  # a front has cheap policies, too: those need no more bits
    survive = _by_reward if resource is None else _by_front
    count = config.parallel * config.tries

    @jax.jit
    def init(problem: Problem, key: PRNGKeyArray) -> EvolutionState:
        shape = (config.population, *problem.bounds.low.shape)
        return EvolutionState(
            jnp.broadcast_to(problem.bounds.low, shape),
            jnp.full((config.population, 1 if resource is None else 2), MOST_LOSS),
            jnp.int32(0),
            history.empty(len(problem.layers)),
            normalise_costs(problem.table, problem.bounds, problem.budget),
            normalise_costs(problem.table, problem.bounds, _full_cost(problem, resource)),
            problem.bounds,
        )

    def ask(state: EvolutionState, key: PRNGKeyArray) -> Float[Array, "N L 2"]:
        random_key, child_key, order_key = jax.random.split(key, 3)
        strangers = _strangers(random_key, state.bounds, count)
        children = _children(child_key, state, count, config)
        wanted = jnp.where(state.living < config.population, strangers, children)
        fractions = jax.random.uniform(order_key, wanted.shape, maxval=ALWAYS)
        candidates = fill_budget(wanted + fractions, state.costs, state.bounds, most)
        return to_actions(history.first_new(state.history, candidates, config.parallel), state.bounds)

    def tell(state: EvolutionState, actions: Array, policies: Array, rewards: Array) -> EvolutionState:
        new = history.is_new(state.history, policies)
        values = [-rewards] if resource is None else [-rewards, normalised_cost(state.cheap, policies).max(axis=-1)]
        everyone = jnp.concatenate([state.policy, policies])
        value = jnp.concatenate([state.value, jnp.stack(values, axis=-1)])
        real = jnp.concatenate([jnp.arange(config.population) < state.living, new])
        order = survive(value, real)[: config.population]
        living = jnp.minimum(state.living + new.sum(), config.population)
        noted = history.note(state.history, policies, rewards)
        return state._replace(policy=everyone[order], value=value[order], living=living, history=noted)

    return Searcher(init, ask, tell, objective="loss")


def _full_cost(problem: Problem, resource: str | None) -> Budget:
    """Limits at the all-8-bit cost, on one resource alone."""
    table, bounds = problem.table, problem.bounds
    none = Budget(*(jnp.float32(jnp.inf) for _ in RESOURCES))
    if resource is None:
        return none
    one = normalise_costs(table, bounds, none._replace(**{resource: jnp.float32(1.0)}))
    return none._replace(**{resource: normalised_cost(one, jnp.full(bounds.low.shape, WIDTHS)).max(axis=-1)})


def _strangers(key: PRNGKeyArray, bounds: Bounds, count: int) -> Float[Array, "K L 2"]:
    """Random policies, in ranks: each around a level of its own."""
    level_key, spread_key = jax.random.split(key)
    top = (ladder(bounds)[1] - 1)[None]
    level = jax.random.uniform(level_key, (count, 1, 1)) * top
    return jnp.clip(level + jax.random.normal(spread_key, (count, *bounds.low.shape)), 0, top)


def _children(key: PRNGKeyArray, state: EvolutionState, count: int, config: Evolution) -> Float[Array, "K L 2"]:
    """Children of two parents each, in ranks: entry by entry of one or the other, some a width more or fewer."""
    parent_key, cross_key, mutate_key, step_key = jax.random.split(key, 4)
    drawn = jax.random.randint(parent_key, (2, count, config.drawn), 0, jnp.maximum(state.living, 1))
    mother, father = state.policy[drawn.min(axis=-1)]  # the first of the population is the best
    child = jnp.where(jax.random.bernoulli(cross_key, 0.5, mother.shape), mother, father)
    chance = config.mutations / state.bounds.low.size
    step = jax.random.rademacher(step_key, child.shape) * jax.random.bernoulli(mutate_key, chance, child.shape)
    return (to_rank(child, state.bounds) + step).astype(jnp.float32)


def _by_reward(value: Float[Array, "M 1"], real: Bool[Array, "M"]) -> Int[Array, "M"]:
    return jnp.lexsort((value[:, 0], ~real))


def _by_front(value: Float[Array, "M 2"], real: Bool[Array, "M"]) -> Int[Array, "M"]:
    value = jnp.where(real[:, None], value, 2 * MOST_LOSS)
    front = sort_fronts(value)
    return jnp.lexsort((-crowding(value, front), front, ~real))
