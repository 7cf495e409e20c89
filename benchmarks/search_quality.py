"""How good are the policies that each search finds, at equal numbers of evaluations?

    python benchmarks/search_quality.py --problem a --seeds 10 --budgets 0.5
    python benchmarks/search_quality.py --problem b --searchers ilp --budgets 0.3 0.35 0.4 0.5 0.6 --episodes 200
    python benchmarks/search_quality.py --problem b --searchers haq random --race 0.01 --budgets 0.3 0.35 0.4 0.5 0.6
    python benchmarks/search_quality.py --problem b --metric size --budgets 3
    python benchmarks/search_quality.py --problem c --budgets 0.6 --seeds 1

The problems stand in search_problems.py; b and c need published weights and images in a folder beside the checkout.
Evaluations are shared by all searches of a call: one counts as an evaluation of each search that asks for it, and
costs no time again. With --race, policies that cannot become the best are given up after some images.
"""

import dataclasses
import itertools
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import records
import tyro
from search_problems import Posed, best_of_all, evaluate, pose, within

from haqjax.cli import keep_compiled_programs
from haqjax.policies.projection import best_uniform
from haqjax.searchers import HAQ, Searcher, SearchResult, make_haq, search
from haqjax.searchers.base import Problem, choose_best
from haqjax.searchers.driver import Evaluated
from haqjax.searchers.haq import extend
from haqjax.searchers.loop import find_searcher

MARK = {0.30: 0.785, 0.35: 0.862, 0.40: 0.896, 0.50: 0.905, 0.60: 0.913}  # problem b: plain clips, additive milp
BATCH = 4  # policies measured on the report split in a call


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    problem: Literal["a", "b", "c"] = "a"
    searchers: tuple[str, ...] = ("ilp", "haq", "greedy", "random")
    """By name; "haq+start+swap" is HAQ with extensions, see haqjax.searchers.haq.extend."""
    budgets: tuple[float, ...] = (0.5,)
    metric: Literal["latency", "size"] = "latency"
    seeds: int = 3
    episodes: int = 200
    at: tuple[int, ...] = ()
    """Numbers of evaluations to report the best policy after, besides the last."""
    parallel: int = 4
    images: int = 1000
    """That policies are chosen by, at most."""
    rounding: Literal["output", "nearest"] = "output"
    race: float | None = None
    """Give up policies that cannot become the best, with this chance of an error for each."""
    estimate: bool = True
    """Let ilp begin with sensitivities from one pass back, as `make search` does; else it probes."""
    by_layer: bool = False
    """Problem a: only weights have a choice."""
    name: str = ""
    """At the end of the result's name."""


def main(config: Config) -> None:
    """Runs every searcher on every budget with every seed."""
    posed = pose(config)
    figures: dict[str, Any] = {"options": dataclasses.asdict(config), "images": posed.images, **posed.references}
    figures["budgets"] = {}
    known: Evaluated = {}
    reported: dict[bytes, float] = {}
    for limit in config.budgets:
        problem = within(posed.problem, config, limit)
        about = describe_budget(problem, posed, config, reported)
        about["mark"] = MARK.get(limit) if config.problem == "b" and config.metric == "latency" else None
        about["runs"] = []
        for name, seed in itertools.product(config.searchers, range(config.seeds)):
            about["runs"].append(run(problem, posed, name, seed, config, about, known, reported))
            print(limit, {key: value for key, value in about["runs"][-1].items() if key != "policy"}, flush=True)
        figures["budgets"][f"{limit:g}"] = about
        tail = f"-{config.name}" if config.name else ""
        records.write(f"search-quality-{config.problem}-{config.metric}{tail}", figures)  # what is there so far


def describe_budget(problem: Problem, posed: Posed, config: Config, reported: dict) -> dict[str, Any]:
    """Describes a budget by what searches within it are held against."""
    uniform = best_uniform(problem.table, problem.bounds, problem.budget)
    even = measure(posed, [np.asarray(uniform.policy)], reported)[0]
    found = {"uniform": {"feasible": bool(uniform.feasible), "bits": int(uniform.policy.min()), "report": even}}
    return found | (best_of_all(problem) if config.problem == "a" else {})


def run(
    problem: Problem, posed: Posed, name: str, seed: int, config: Config, about: dict, known: Evaluated, reported: dict
) -> dict[str, Any]:
    """Runs one search; finds its best policy after some numbers of evaluations."""
    start = time.perf_counter()
    searcher = make_searcher(name, problem, config)
    found = search(problem, searcher, episodes=config.episodes, key=jax.random.key(seed), known=known)
    row: dict[str, Any] = {"searcher": name, "seed": seed, "seconds": time.perf_counter() - start}
    row["evaluations"] = len({policy.tobytes() for policy in found.records.policy})
    if "optimum" in about:
        regret = about["optimum"] - np.fmax.accumulate(np.where(found.records.feasible, found.records.accuracy, 0))
        reached = np.flatnonzero(regret <= 1e-6)
        row |= {"regret": float(regret[-1]), "reached": int(reached[0]) + 1 if len(reached) else None}
    moments = [count for count in sorted({*config.at, config.episodes}) if count <= config.episodes]
    best = [best_at(found, problem, count) for count in moments]
    value = measure(posed, [found.records.policy[b] for b in best if b is not None], reported)
    curve = {
        str(count): {"search": float(found.records.accuracy[b]), "report": value.pop(0)}
        for count, b in zip(moments, best, strict=True)
        if b is not None
    }
    last = curve[str(config.episodes)]
    error = (last["report"] * (1 - last["report"]) / posed.images["report"]) ** 0.5
    row |= {"standard_error": error, "curve": curve, "policy": np.asarray(found.policy).tolist()}
    return row | last | {"work_in_prefixes": work_in_prefixes(found.records.policy, problem.table.bops[:, 7, 7])}


def work_in_prefixes(policies: np.ndarray, work: np.ndarray) -> float:
    """Computes the fraction of the work on a search's different policies that is on first layers as in an earlier one.

    No partial evaluation could save more, however many activations were kept.
    """
    known: set[bytes] = set()
    saved = total = 0.0
    for policy in {np.asarray(p).tobytes(): np.asarray(p) for p in policies}.values():
        starts = [policy[: layer + 1].tobytes() for layer in range(len(policy))]
        saved += sum(cost for start, cost in zip(starts, work, strict=True) if start in known)
        total += float(work.sum())
        known.update(starts)
    return float(saved / total)


def best_at(found: SearchResult, problem: Problem, count: int) -> int | None:
    """Finds the episode that would have been reported after so many."""
    return choose_best(jax.tree.map(lambda x: x[:count], found.records), problem.budget)


def measure(posed: Posed, policies: list[np.ndarray], reported: dict[bytes, float]) -> list[float]:
    """Measures accuracies on the report split, each policy once."""
    new = {np.asarray(p, np.int32).tobytes(): np.asarray(p, np.int32) for p in policies}
    rows = [(key, policy) for key, policy in new.items() if key not in reported]
    for at in range(0, len(rows), BATCH):
        keys, some = zip(*rows[at : at + BATCH], strict=True)
        found = evaluate(posed.report, jnp.asarray(np.stack(some + some[-1:] * (BATCH - len(some)))))
        reported.update(zip(keys, np.asarray(found.accuracy, float).tolist(), strict=False))
    return [reported[np.asarray(p, np.int32).tobytes()] for p in policies]


def make_searcher(name: str, problem: Problem, config: Config) -> Searcher:
    """Makes the searcher of a name, with extensions of HAQ."""
    base, *extension_names = name.split("+")
    if not extension_names:
        return find_searcher(base, config.parallel)
    if base != "haq":
        raise SystemExit(f"{name}: extensions are for haq")
    return make_haq(extend(HAQ(parallel=config.parallel), extension_names, problem, config.episodes))


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
