"""Records of a search: the problem, the searcher, the question, the result."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from haqjax.policies.budgets import fits
from haqjax.types import Bounds, Budget, Cost, CostTable, Evaluation, Evaluator, LayerTable

MOST_LOSS = 100.0  # nats: a NaN or a greater loss counts as this one

Evaluate = Callable[[Int[Array, "N L 2"]], Float[Array, "N"] | Evaluation]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, a machine and a budget, as one argument of a compiled function."""

    layers: LayerTable
    table: CostTable
    bounds: Bounds
    budget: Budget
    evaluator: Evaluator
    reference: Float[Array, ""]  # accuracy of the float network, 0..1
    reference_loss: Float[Array, ""]  # its loss, nats; NaN where unknown
    images: Float[Array, ""]  # that a policy is evaluated on; NaN where unknown
    sensitivity: Float[Array, "L 2 8"] | None = None  # estimate that a search may begin with, nats


def make_problem(
    layers: LayerTable,
    table: CostTable,
    bounds: Bounds,
    budget: Budget,
    evaluator: Evaluator | Evaluate,
    reference: float | Float[Array, ""],
    *,
    reference_loss: float | Float[Array, ""] = math.nan,
    images: int | None = None,
    sensitivity: Float[Any, "L 2 8"] | None = None,
) -> Problem:
    """Makes a problem of parts that belong to the same network.

    Args:
      layers: the network's layers.
      table, bounds, budget: as for `haqjax.project`.
      evaluator: of `haqjax.make_evaluator`, or any traceable function of policies int32 [N, L, 2] that returns
        accuracies [N] in 0..1, or an `Evaluation`. The function becomes part of a compiled program: what it reads
        belongs in the arguments of a `jax.tree_util.Partial`, as a captured array becomes a constant of the program.
      reference: accuracy of the float network on the same images.
      reference_loss: its loss on them, in nats.
      images: how many there are, for standard errors. None reads it off the evaluator where that holds images.
      sensitivity: estimated rise of the loss with each entry at each width, in nats, such as
        `haqjax.evaluation.estimate_gauss_newton_sensitivity` gives: "ilp" begins with it and probes nothing.

    Raises:
      ValueError: another number of layers in the table, the bounds or the sensitivities, or an accuracy outside 0..1.
    """
    counts = [("cost table has", len(table)), ("bounds have", bounds.low.shape[0])]
    counts += [] if sensitivity is None else [("sensitivities have", len(sensitivity))]
    for name, count in counts:
        if count != len(layers):
            raise ValueError(f"the {name} {count} layers, the network {len(layers)}")
    if not 0 <= float(reference) <= 1:
        raise ValueError(f"reference accuracy {float(reference)} is outside 0..1")
    evaluator = evaluator if isinstance(evaluator, Evaluator) else as_evaluator(evaluator)
    known = _count_images(evaluator) if images is None else float(images)
    references = (jnp.float32(reference), jnp.float32(reference_loss), jnp.float32(known))
    return Problem(layers, table, bounds, budget, evaluator, *references, sensitivity)


def _count_images(evaluator: Evaluator) -> float:
    """Counts the images that an evaluator holds, or one that it wraps; NaN where there are none."""
    while evaluator.labels is None and isinstance(evaluator.extra, Evaluator):
        evaluator = evaluator.extra
    return math.nan if evaluator.labels is None else float((np.asarray(evaluator.labels) >= 0).sum())


def as_evaluator(evaluate: Evaluate) -> Evaluator:
    """Makes an evaluator of a function of policies; NaN counts as an infinite loss.

    >>> evaluator = as_evaluator(lambda policies: policies[:, 0, 0] / 8)
    >>> evaluator(jnp.full((1, 2, 2), 4)).accuracy.tolist()
    [0.5]
    """
    evaluate = evaluate if isinstance(evaluate, jax.tree_util.Partial) else jax.tree_util.Partial(evaluate)
    return Evaluator(_call_extra, None, None, None, None, extra=evaluate)


def _call_extra(evaluator: Evaluator, policies: Int[Array, "N L 2"], least: Array) -> Evaluation:
    found = evaluator.extra(policies)
    if not isinstance(found, Evaluation):
        return Evaluation(found, jnp.full(len(policies), jnp.nan))
    return Evaluation(found.accuracy, jnp.where(jnp.isnan(found.loss), jnp.inf, found.loss))


class Searcher(NamedTuple):
    """A method of search: three pure functions around one state, a pytree of arrays.

    `init` is called once, on the host. `ask` proposes N actions, each [L, 2] in [0, 1] as
    `haqjax.policies.actions.to_bits` reads them; the key is consumed. `tell` takes the state, those actions, the
    policies that came of them, and their rewards [N].

    The functions hold configuration only. What they need of a problem, `init` puts into the state; a maker that is
    given the same configuration returns the same functions. Together that makes one compiled program serve all. What is
    too large for a state, `learn` reads of the problem after each `tell`; it compiles its parts itself.
    """

    init: Callable[[Problem, PRNGKeyArray], Any]
    ask: Callable[[Any, PRNGKeyArray], Float[Array, "N L 2"]]
    tell: Callable[[Any, Float[Array, "N L 2"], Int[Array, "N L 2"], Float[Array, "N"]], Any]
    on_host: bool = False  # `ask` and `tell` are plain Python on NumPy arrays; evaluation is compiled all the same
    projected: bool = True  # policies are projected onto the budget; else taken as they are, and may be infeasible
    objective: str = "accuracy"  # that rewards measure: accuracy, or the loss where the evaluator measures it
    carry: Callable[[Any, Problem], Any] | None = None  # takes a state within another budget; None: begin anew there
    # Tells that a state expects no gain worth its while, given the standard error of the best reward (NaN: unknown).
    # None: rounds are counted.
    converged: Callable[[Any, float], bool] | None = None
    learn: Callable[[Problem, Any], Any] | None = None  # after `tell`, from what a state cannot hold, such as a network


class Record(NamedTuple):
    """Episodes of a search, an entry each."""

    actions: Float[Array, "E L 2"]  # proposed
    policy: Int[Array, "E L 2"]  # as evaluated: projected onto the budget, unless the searcher is not projected
    accuracy: Float[Array, "E"]  # may be NaN
    loss: Float[Array, "E"]  # nats; inf for a NaN, and NaN where it is not measured
    reward: Float[Array, "E"]  # over the reference, as the searcher observed it
    cost: Cost
    feasible: Bool[Array, "E"]  # within the budget of the stage
    stage: Any = None  # int32 [E], number of its stage, -1 before the first; None outside the loop
    round: Any = None  # int32 [E], number of its round among all, -1 before the first


class Stage(NamedTuple):
    """A search within one budget, as a part of a longer one."""

    budget: Budget
    episodes: int  # at most
    key: PRNGKeyArray
    state: Any = None  # of the searcher, to start from; None begins anew
    first: int = 0  # its first episode among all


class Question(Protocol):
    """A question that a sequence of stages answers: within a budget, a front, the cheapest that is accurate enough."""

    opening: int  # episodes before the first stage

    def open(self, searcher: Searcher, problem: Problem) -> Record | None:
        """Evaluates the opening episodes."""

    def next_stage(self, problem: Problem, index: int, records: Record | None) -> Stage | None:
        """Gives stage `index` from the records of all before it, always the same for the same ones; None at the end.

        A stage may have had fewer episodes than were planned: `Record.stage` says which are whose.
        """

    def choose(self, problem: Problem, records: Record) -> tuple[int | None, ...]:
        """Chooses an episode for each budget that is asked about; None where no policy qualifies."""

    def check(self, problem: Problem, result: "SearchResult") -> None:
        """Raises a RuntimeError where a search that has ended answers nothing."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The chosen policies, and everything that was evaluated for them."""

    records: Record  # of all stages, one after another
    stages: tuple[Stage, ...]  # begun so far
    chosen: tuple[int | None, ...]  # the best episode within each budget, whichever it was evaluated for
    state: Any  # of the searcher, in the last stage
    interrupted: bool = False
    searcher: str = ""  # that found it, see `haqjax.searchers.resuming.name_searcher`; empty where unknown
    converged: tuple[int, ...] = ()  # stages that ended before their last episode, as no more gain was to be expected

    @property
    def best(self) -> int | None:
        """The chosen episode, from 0; None while no policy has qualified. Of a front, that of its first budget."""
        return self.chosen[0]

    @property
    def policy(self) -> Int[np.ndarray, "L 2"]:
        """The chosen policy."""
        return self.policy_of(0)

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
        """Its cost."""
        return jax.tree.map(lambda amount: amount[self.best], self.records.cost)

    def policy_of(self, budget: int) -> Int[np.ndarray, "L 2"]:
        """Returns the policy that was chosen for one of the budgets, by number.

        Raises:
          ValueError: none was found.
        """
        episode = self.chosen[budget]
        if episode is None:
            raise ValueError(f"no policy was found within budget {budget}: give it more episodes")
        return np.asarray(self.records.policy[episode])

    def limits(self, resource: str) -> Float[np.ndarray, "E"]:
        """Returns the limit that each episode was searched under; infinite where there was none."""
        limits = np.full(len(self.records.accuracy), np.inf, np.float32)
        for number, stage in enumerate(self.stages):
            limits[self.records.stage == number] = float(getattr(stage.budget, resource))
        return limits


def choose_best(records: Record, budget: Budget) -> int | None:
    """Chooses the best feasible episode: most accurate, of least loss, cheapest, earliest; in turn.

    Cheapest is by the cost as a fraction of the limit, of the resource nearest to its limit. None where no policy is
    both feasible and of finite accuracy.
    """
    usable = np.flatnonzero(np.asarray(records.feasible) & np.isfinite(records.accuracy))
    if not len(usable):
        return None
    pairs = zip(records.cost, budget, strict=True)
    known = [(amount, limit) for amount, limit in pairs if amount is not None and limit is not None]
    fractions = [np.asarray(amount)[usable] / float(limit) for amount, limit in known]
    most = np.nanmax([*fractions, np.zeros(len(usable))], axis=0)  # a free resource uses nothing of an infinite limit
    loss = np.nan_to_num(np.asarray(records.loss)[usable], nan=np.inf)
    order = np.lexsort((usable, most, loss, -np.asarray(records.accuracy)[usable]))
    return int(usable[order[0]])


def choose_within(records: Record, budget: Budget) -> int | None:
    """Applies `choose_best` to all that fit a budget, whichever they were evaluated for."""
    feasible: Any = np.asarray(fits(records.cost, budget))
    return choose_best(records._replace(feasible=feasible), budget)


def count_episodes(records: Record | None) -> int:
    """Counts episodes; None has none."""
    return 0 if records is None else len(records.accuracy)


def first_episodes(records: Record | None, count: int) -> Any:
    """Returns the records of the first episodes; None of None."""
    return None if records is None else jax.tree.map(lambda x: np.asarray(x)[:count], records)


def join_records(before: Record | None, after: Record) -> Record:
    """Appends episodes."""
    return after if before is None else jax.tree.map(lambda *parts: np.concatenate(parts), before, after)


def no_records(layers: int) -> Record:
    """Makes the records of a search that has evaluated nothing.

    >>> no_records(3).policy.shape
    (0, 3, 2)
    """
    none: Any = np.zeros(0, np.float32)
    policies: Any = np.zeros((0, layers, 2), np.int32)
    feasible: Any = np.zeros(0, bool)
    cost, numbers = Cost(none, none, none, none, none), np.zeros(0, np.int32)
    return Record(policies.astype(np.float32), policies, none, none, none, cost, feasible, numbers, numbers)
