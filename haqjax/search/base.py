"""What a search is given, what it does, and what it leaves behind."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.search.features import describe
from haqjax.types import Bounds, Budget, Cost, CostTable, LayerTable

Evaluate = Callable[[Int[Array, "N L 2"]], Float[Array, "N"]]  # policies -> accuracies in 0..1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, a machine and a budget, as one argument of a compiled function.

    `evaluate` judges policies. It is part of the compiled round: what it reads (parameters, images) belongs in the
    arguments of a `jax.tree_util.Partial`, because an array that a function captures becomes a constant of the program.
    """

    features: Float[Array, "2L 9"]  # what an agent sees of each decision; haqjax.search.features
    table: CostTable
    bounds: Bounds
    budget: Budget
    reference: Float[Array, ""]  # accuracy of the network as it is, 0..1
    evaluate: Evaluate  # a jax.tree_util.Partial
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})


def make_problem(
    layers: LayerTable,
    table: CostTable,
    bounds: Bounds,
    budget: Budget,
    evaluate: Evaluate,
    reference: float | Float[Array, ""],
) -> Problem:
    """Puts a problem together and checks that its parts belong to the same network.

    Args:
      layers: the network's layers.
      table, bounds, budget: as for `haqjax.project`.
      evaluate: policies int32 [N, L, 2] -> accuracies [N] in 0..1; traceable. A `jax.tree_util.Partial` whose
        function is the same object each time makes another problem of the same shapes run without compiling.
      reference: accuracy of the unquantised network on the same images.

    Raises:
      ValueError: another number of layers in the table or the bounds, or an accuracy outside 0..1.
    """
    for name, count in (("cost table", len(table)), ("bounds", bounds.low.shape[0])):
        if count != len(layers):
            raise ValueError(f"the {name} has {count} layers, the network {len(layers)}")
    if not 0 <= float(reference) <= 1:
        raise ValueError(f"reference accuracy {float(reference)} is outside 0..1")
    evaluate = evaluate if isinstance(evaluate, jax.tree_util.Partial) else jax.tree_util.Partial(evaluate)
    return Problem(describe(layers), table, bounds, budget, jnp.float32(reference), evaluate, layers.names)


class Searcher(NamedTuple):
    """A method of search: three pure functions around one state, a pytree of arrays.

    `ask` proposes N actions, each [L, 2] in [0, 1] as `haqjax.policy.to_bits` reads them; the key is consumed. `tell`
    is given the state, those actions, the policies that the budget made of them, and their gains [N] over the reference
    accuracy.

    The functions hold configuration only. What they need of a problem, `init` puts into the state; a maker that is
    given the same configuration returns the same functions. Together that makes one compiled program serve all.
    """

    init: Callable[[Problem, PRNGKeyArray], Any]
    ask: Callable[[Any, PRNGKeyArray], Float[Array, "N L 2"]]
    tell: Callable[[Any, Float[Array, "N L 2"], Int[Array, "N L 2"], Float[Array, "N"]], Any]


class Record(NamedTuple):
    """What happened, an entry an episode."""

    actions: Float[Array, "E L 2"]  # proposed
    policy: Int[Array, "E L 2"]  # lowered onto the budget
    accuracy: Float[Array, "E"]  # as judged; may be NaN
    gain: Float[Array, "E"]  # over the reference, as the searcher was told: a NaN accuracy counts as 0
    cost: Cost
    feasible: Bool[Array, "E"]


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The best policy found, and everything that led to it."""

    best: int | None  # the episode with the best policy, from 0; None while no policy has qualified
    records: Record
    state: Any  # of the searcher
    interrupted: bool = False

    @property
    def policy(self) -> Int[np.ndarray, "L 2"]:
        """The best policy."""
        return np.asarray(self.records.policy[self.best])

    @property
    def accuracy(self) -> float:
        """Its accuracy on the images of the search: being the best of many, an optimistic figure."""
        return float(self.records.accuracy[self.best])

    @property
    def cost(self) -> Cost:
        """What it costs."""
        return Cost(*(spent[self.best] for spent in self.records.cost))


def choose_best(records: Record, budget: Budget) -> int | None:
    """The episode with the best policy: within the budget, most accurate, then cheapest, then earliest.

    Cheapest is by the share of the budget that is spent, of the resource nearest to its limit. None where no policy is
    both feasible and of finite accuracy.
    """
    usable = np.flatnonzero(np.asarray(records.feasible) & np.isfinite(records.accuracy))
    if not len(usable):
        return None
    shares = [np.asarray(spent)[usable] / float(limit) for spent, limit in zip(records.cost, budget, strict=True)]
    share = np.nanmax([*shares, np.zeros(len(usable))], axis=0)  # a free resource spends nothing of an infinite limit
    order = np.lexsort((usable, share, -np.asarray(records.accuracy)[usable]))
    return int(usable[order[0]])
