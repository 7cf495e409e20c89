"""Co-design: one search over policies and machines, each policy on the machine that leaves it the most bits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from haqjax.policies.actions import to_bits
from haqjax.policies.cost import policy_cost
from haqjax.policies.projection import project
from haqjax.searchers.base import Problem, Record, Searcher, SearchResult, choose_best, join_records
from haqjax.searchers.driver import compute_rewards, drive, evaluate_policies, record_episodes
from haqjax.searchers.loop import find_searcher
from haqjax.types import Bounds, Budget, Cost, CostTable, Projection


@dataclasses.dataclass(frozen=True)
class Codesign:
    """The best pair of a policy and a machine, and all that was evaluated."""

    result: SearchResult
    machines: Int[np.ndarray, "E"]  # index of each episode's machine

    @property
    def machine(self) -> int:
        """Index of the machine of the best policy."""
        return int(self.machines[self.result.best])


def stack_tables(tables: Sequence[CostTable]) -> CostTable:
    """Stacks the tables of a network on M machines, each leaf with a leading axis M.

    Raises:
      ValueError: no table, or tables of other networks.

    >>> one = CostTable(*(np.ones((2, 8, 8)) for _ in range(3)), fixed=Cost(0.0, 0.0, 2.0))
    >>> stack_tables([one, one, one]).latency.shape
    (3, 2, 8, 8)
    """
    shapes = {jax.tree.structure(table): None for table in tables}, {np.shape(table.latency) for table in tables}
    if not tables or max(map(len, shapes)) > 1:
        raise ValueError(f"{len(tables)} tables of {len(shapes[1])} shapes: give tables of one network, at least one")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *tables)


@jax.jit
def cost_on_machines(tables: CostTable, policies: Int[Array, "*n L 2"]) -> Cost:
    """Computes the cost of each policy on each machine, in one call.

    Args:
      tables: of `stack_tables`, M machines.
      policies: bits, as for `haqjax.total_cost`.

    Returns:
      Seconds, joules, bytes, [M, *n] each.

    >>> one = CostTable(*(np.ones((2, 8, 8)) for _ in range(3)), fixed=Cost(0.0, 0.0, 2.0))
    >>> cost_on_machines(stack_tables([one, one, one]), jnp.full((5, 2, 2), 4)).size.shape
    (3, 5)
    """
    return jax.vmap(policy_cost, (0, None))(tables, policies)


@jax.jit
def fit_machines(
    policies: Int[Array, "N L 2"], tables: CostTable, bounds: Bounds, budget: Budget
) -> tuple[Projection, Int[Array, "N"]]:
    """Lowers each policy onto the budget on every machine, and keeps the machine that leaves it the most bits.

    Of machines that leave as many, the one on which it takes the least time, then the first.

    Args:
      policies: before they are lowered.
      tables: of `stack_tables`, M machines.
      bounds, budget: as for `haqjax.project`; the budget is the same for all machines.

    Returns:
      The lowered policies [N] with their costs, and the index of each one's machine. `feasible` is false where no
      machine can meet the budget.
    """
    lowered = jax.vmap(project, (None, 0, None, None))(policies, tables, bounds, budget)  # [M, N]
    bits = jnp.where(lowered.feasible, lowered.policy.sum(axis=(-2, -1)), -1)
    time = jnp.where(bits == bits.max(axis=0, keepdims=True), lowered.cost.latency, jnp.inf)
    machine = jnp.argmin(time, axis=0)
    return jax.tree.map(lambda leaf: leaf[machine, jnp.arange(len(machine))], lowered), machine


def codesign(
    problem: Problem,
    tables: CostTable,
    searcher: str | Searcher = "haq",
    *,
    episodes: int,
    key: PRNGKeyArray,
    parallel: int = 1,
) -> Codesign:
    """Searches for the most accurate policy that fits the budget on some machine, and for that machine.

    Accuracy does not depend on the machine, so a policy's best machine is known from its costs alone: `fit_machines`
    finds it exactly, for all proposals of a round on all machines in one call. What is left to the searcher are the
    policies.

    Args:
      problem: as for `search`; its own table is what the searcher plans by, where it does.
      tables: of `stack_tables`: the machines that may be chosen, such as those below an area.
      searcher: one that leaves it to the projection to keep the budget: "haq", "random" or "evolution".
      episodes, key, parallel: as for `haqjax.search`.

    Raises:
      ValueError: a searcher that keeps the budget of one machine by itself, or fewer than one episode.
      RuntimeError: no policy fits the budget on any machine.
    """
    method = find_searcher(searcher, parallel)
    if not method.projected or episodes < 1:
        raise ValueError(f"searcher {searcher!r}, {episodes} episodes: give haq, random or evolution, and at least 1")
    driver = drive(method)
    start_key, round_key = jax.random.split(key)
    state = method.init(problem, start_key)
    records: Record | None = None
    chosen: list[Any] = []
    done = 0
    while done < episodes:
        actions, _ = driver.ask(problem, state, jax.random.fold_in(round_key, done))
        lowered, machine = fit_machines(to_bits(actions, problem.bounds), tables, problem.bounds, problem.budget)
        evaluation = evaluate_policies(problem, lowered.policy)
        reward = compute_rewards(method, problem, evaluation)
        state = driver.tell(state, actions, lowered.policy, reward)
        state = state if method.learn is None else method.learn(problem, state)
        records = join_records(records, record_episodes(actions, lowered, evaluation, reward))
        chosen.append(machine)
        done += len(machine)
    records = jax.tree.map(lambda x: x[:episodes], records)
    best = choose_best(records, problem.budget)
    if best is None:
        raise RuntimeError(_explain_infeasible(problem, tables))
    return Codesign(SearchResult(records, (), (best,), state), np.concatenate(chosen)[:episodes])


def _explain_infeasible(problem: Problem, tables: CostTable) -> str:
    least = float(np.min(cost_on_machines(tables, problem.bounds.low).latency))
    limit = float(problem.budget.latency)
    asked = f"; latency {limit:.4g} s was asked, {least:.4g} s is the least" if math.isfinite(limit) else ""
    return f"no policy fits the budget on any of {len(tables.latency)} machines{asked}: raise it, or give larger ones"
