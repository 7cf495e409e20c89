"""What a search is given, what it does, and what it leaves behind."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.searchers.haq_features import describe
from haqjax.types import Bounds, Budget, Cost, CostTable, Evaluation, LayerTable

MOST_LOSS = 100.0  # nats: what a loss that is no number, or a greater one, counts as


Evaluate = Callable[
    [Int[Array, "N L 2"]], Float[Array, "N"] | Evaluation
]  # policies -> accuracies, and losses if known


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, a machine and a budget, as one argument of a compiled function.

    `evaluate` judges policies. It is part of the compiled round: what it reads (parameters, images) belongs in the
    arguments of a `jax.tree_util.Partial`, because an array that a function captures becomes a constant of the program.
    """

    features: Float[Array, "2L 9"]  # what an agent sees of each decision; haqjax.searchers.haq_features
    table: CostTable
    bounds: Bounds
    budget: Budget
    reference: Float[Array, ""]  # accuracy of the network as it is, 0..1
    reference_loss: Float[Array, ""]  # its loss, nats; NaN where unknown
    evaluate: Evaluate  # a jax.tree_util.Partial
    soft_loss: jax.tree_util.Partial | None  # fractional bits [L, 2] -> loss, differentiable
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    race: jax.tree_util.Partial | None = None  # (policies, least accuracy) -> Judgement: may give a policy up


def make_problem(
    layers: LayerTable,
    table: CostTable,
    bounds: Bounds,
    budget: Budget,
    evaluate: Evaluate,
    reference: float | Float[Array, ""],
    *,
    reference_loss: float | Float[Array, ""] = math.nan,
    soft_loss: jax.tree_util.Partial | None = None,
    race: jax.tree_util.Partial | None = None,
) -> Problem:
    """Puts a problem together and checks that its parts belong to the same network.

    Args:
      layers: the network's layers.
      table, bounds, budget: as for `haqjax.project`.
      evaluate: policies int32 [N, L, 2] -> accuracies [N] in 0..1, or a `Evaluation` with losses; traceable. A
        `jax.tree_util.Partial` whose function is the same object each time makes another problem of the same shapes
        run without compiling.
      reference: accuracy of the unquantised network on the same images.
      reference_loss: its loss on them, in nats.
      soft_loss: loss of a policy with fractional bits, for searches that follow its gradient.
      race: of `haqjax.evaluation.make_race`: judges in place of `evaluate` and gives up policies that cannot be the
        best.

    Raises:
      ValueError: another number of layers in the table or the bounds, or an accuracy outside 0..1.
    """
    for name, count in (("cost table", len(table)), ("bounds", bounds.low.shape[0])):
        if count != len(layers):
            raise ValueError(f"the {name} has {count} layers, the network {len(layers)}")
    if not 0 <= float(reference) <= 1:
        raise ValueError(f"reference accuracy {float(reference)} is outside 0..1")
    evaluate = evaluate if isinstance(evaluate, jax.tree_util.Partial) else jax.tree_util.Partial(evaluate)
    references = jnp.float32(reference), jnp.float32(reference_loss)
    return Problem(describe(layers), table, bounds, budget, *references, evaluate, soft_loss, layers.names, race)


class Searcher(NamedTuple):
    """A method of search: three pure functions around one state, a pytree of arrays.

    `ask` proposes N actions, each [L, 2] in [0, 1] as `haqjax.policies.actions.to_bits` reads them; the key is
    consumed. `tell` is given the state, those actions, the policies that came of them, and their gains [N].

    The functions hold configuration only. What they need of a problem, `init` puts into the state; a maker that is
    given the same configuration returns the same functions. Together that makes one compiled program serve all.
    """

    init: Callable[[Problem, PRNGKeyArray], Any]
    ask: Callable[[Any, PRNGKeyArray], Float[Array, "N L 2"]]
    tell: Callable[[Any, Float[Array, "N L 2"], Int[Array, "N L 2"], Float[Array, "N"]], Any]
    on_host: bool = False  # the three are plain Python on NumPy arrays; evaluation is compiled all the same
    projected: bool = True  # policies are lowered onto the budget; else taken as they are, and may be infeasible
    objective: str = "accuracy"  # what gains are of: accuracy, or the loss where the evaluation tells it


class Record(NamedTuple):
    """What happened, an entry an episode."""

    actions: Float[Array, "E L 2"]  # proposed
    policy: Int[Array, "E L 2"]  # as evaluated: lowered onto the budget, unless the searcher is not projected
    accuracy: Float[Array, "E"]  # as judged; may be NaN
    loss: Float[Array, "E"]  # as judged, nats; inf for a NaN, and NaN where nothing tells losses
    reward: Float[Array, "E"]  # over the reference, as the searcher was told
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
    def loss(self) -> float:
        """Its loss on the same images, nats; NaN where unknown."""
        return float(self.records.loss[self.best])

    @property
    def cost(self) -> Cost:
        """What it costs."""
        return jax.tree.map(lambda spent: spent[self.best], self.records.cost)


def choose_best(records: Record, budget: Budget) -> int | None:
    """The episode with the best policy: within the budget, most accurate, of least loss, cheapest, earliest; in turn.

    Cheapest is by the share of the budget that is spent, of the resource nearest to its limit. None where no policy is
    both feasible and of finite accuracy.
    """
    usable = np.flatnonzero(np.asarray(records.feasible) & np.isfinite(records.accuracy))
    if not len(usable):
        return None
    pairs = zip(records.cost, budget, strict=True)
    known = [(spent, limit) for spent, limit in pairs if spent is not None and limit is not None]
    shares = [np.asarray(spent)[usable] / float(limit) for spent, limit in known]
    share = np.nanmax([*shares, np.zeros(len(usable))], axis=0)  # a free resource spends nothing of an infinite limit
    loss = np.nan_to_num(np.asarray(records.loss)[usable], nan=np.inf)
    order = np.lexsort((usable, share, loss, -np.asarray(records.accuracy)[usable]))
    return int(usable[order[0]])
