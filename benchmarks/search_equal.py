"""What do searches with a differentiable model find, at equal evaluations and at equal seconds?

    python benchmarks/search_equal.py --problem a --seeds 10
    python benchmarks/search_equal.py --problem b --seeds 3 --episodes 60 --searchers svg ilp gradient haq

Evaluations are shared by all searches of a call, so seconds are put together: processor seconds of what a search does
itself (first state, proposals, gradients, learning), and those of one evaluation, measured in the same process, for
each policy it evaluates. A gradient of the soft loss counts as three passes over its images, a pass over as many images
as an evaluation has as one evaluation. All is compiled before the clock starts.
"""

import dataclasses
import itertools
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import records
import search_quality
import tyro
from search_problems import Posed, best_of_all, evaluate, pose, within

from haqjax.cli import keep_compiled_programs
from haqjax.evaluation.soft_loss import BATCH
from haqjax.searchers import HAQ, Searcher, make_haq
from haqjax.searchers.base import Problem
from haqjax.searchers.driver import compute_rewards, drive, evaluate_policies
from haqjax.searchers.gradient import Gradient, make_gradient
from haqjax.searchers.haq import extend
from haqjax.searchers.loop import find_searcher
from haqjax.searchers.svg import BACKWARD, SVG, make_svg
from haqjax.types import Evaluation

LIMITS = {"a": 0.5, "b": 0.35}
SECONDS = {"a": (0.2, 0.5, 1.0, 2.0, 5.0, 10.0), "b": (10, 20, 40, 60, 90, 120)}  # of processors


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    problem: Literal["a", "b"] = "a"
    searchers: tuple[str, ...] = ("svg", "svg-alone", "gradient", "ilp", "haq", "random")
    """By name; svg-alone has no critic, haq+loss is HAQ with an extension."""
    seeds: int = 10
    episodes: int = 200
    at: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Numbers of evaluations, gradients counted among them, that the best accuracy is told after."""
    parallel: int = 4
    name: str = ""
    """At the end of the result's name."""


def main(config: Config) -> None:
    """Runs every searcher with every seed."""
    asked = search_quality.Config(problem=config.problem, searchers=("gradient",))
    posed = pose(asked)
    problem = within(posed.problem, asked, LIMITS[config.problem])
    figures: dict[str, Any] = {**dataclasses.asdict(config), "limit": LIMITS[config.problem], "images": posed.images}
    figures["seconds_an_evaluation"] = time_evaluation(problem, config.parallel)
    figures["evaluations_a_pass"] = BATCH / posed.images["search"]
    if config.problem == "a":
        figures |= best_of_all(problem)
    known: dict = {}
    runs: list[dict] = []
    for seed, name in itertools.product(range(config.seeds), config.searchers):
        if not seed:
            follow(problem, make_searcher(name, problem, config), 1, 2 * config.parallel, known)  # compiles
        runs.append({"searcher": name, "seed": seed})
        runs[-1] |= run(problem, posed, make_searcher(name, problem, config), seed, config, known, figures)
        print({key: value for key, value in runs[-1].items() if key not in ("curve", "policy")}, flush=True)
        tail = f"-{config.name}" if config.name else ""
        summary = summarise(runs, config, figures)
        records.write(f"search-equal-{config.problem}{tail}", figures | {"summary": summary, "runs": runs})


def make_searcher(name: str, problem: Problem, config: Config) -> Searcher:
    """Makes the searcher of a name."""
    if name == "svg-alone":
        return make_svg(SVG(parallel=config.parallel, critic=False))
    base, *extensions = name.split("+")
    if not extensions:
        return find_searcher(base, config.parallel)
    return make_haq(extend(HAQ(parallel=config.parallel), extensions, problem, config.episodes))


def time_evaluation(problem: Problem, parallel: int, repeats: int = 7) -> float:
    """Measures processor seconds of one evaluation: the median of several rounds."""
    taken = []
    for number in range(repeats + 1):
        bits = problem.bounds.low if number % 2 else problem.bounds.high
        policies = jnp.broadcast_to(bits, (parallel, *bits.shape))
        begun = time.process_time()
        jax.block_until_ready(evaluate_policies(problem, policies))
        taken.append(time.process_time() - begun)
    return float(np.median(taken[1:])) / parallel


def follow(problem: Problem, searcher: Searcher, seed: int, episodes: int, known: dict) -> dict[str, Any]:
    """Runs a search round by round; notes its processor seconds without those of evaluations, and its passes."""
    driver, (start_key, round_key) = drive(searcher), jax.random.split(jax.random.key(seed))
    with Stopwatch() as own:
        state = jax.block_until_ready(searcher.init(problem, start_key))
    passes = BACKWARD * Gradient().steps if searcher.ask.__module__ == make_gradient.__module__ else 0
    rows: list[tuple] = []  # of each episode: accuracy where it fits the budget, policy, seconds, passes
    while len(rows) < episodes:
        with own:
            actions, proposed = driver.ask(problem, state, jax.random.fold_in(round_key, len(rows)))
            policies = np.asarray(jax.block_until_ready(proposed.policy))
        found = recall(problem, policies, known)
        reward = compute_rewards(searcher, problem, found)
        with own:
            state = driver.tell(state, actions, proposed.policy, reward)
            state = jax.block_until_ready(state if searcher.learn is None else searcher.learn(problem, state))
        spent = own.seconds, int(getattr(state, "passes", passes))
        accuracy = np.where(np.asarray(proposed.feasible), found.accuracy, -np.inf)
        rows += [(*row, *spent) for row in zip(accuracy, policies, strict=True)]
    accuracy, policies, seconds, passed = map(np.array, zip(*rows[:episodes], strict=True))
    return {"accuracy": accuracy, "policies": policies, "seconds": seconds, "passes": passed}


class Stopwatch:
    """Processor seconds spent inside `with`, all in all."""

    seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self.begun = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds += time.process_time() - self.begun


def recall(problem: Problem, policies: np.ndarray, known: dict) -> Evaluation:
    """Evaluates policies, those of a round together; not where all of them were evaluated before."""
    keys = [policy.tobytes() for policy in policies]
    if any(key not in known for key in keys):
        pairs = zip(*map(np.asarray, evaluate_policies(problem, jnp.asarray(policies))), strict=True)
        known.update(zip(keys, pairs, strict=True))
    return Evaluation(*np.array([known[key] for key in keys], np.float32).T)


def run(
    problem: Problem, posed: Posed, searcher: Searcher, seed: int, config: Config, known: dict, figures: dict
) -> dict[str, Any]:
    """Runs one search; gives its best accuracy at equal evaluations, and at equal seconds."""
    found = follow(problem, searcher, seed, config.episodes, known)
    number = np.arange(1, config.episodes + 1)
    spent = {
        "evaluations": number + found["passes"] * figures["evaluations_a_pass"],
        "seconds": found["seconds"] + number * figures["seconds_an_evaluation"],
    }
    grids = {"evaluations": config.at, "seconds": SECONDS[config.problem]}
    row: dict[str, Any] = {
        kind: {str(point): best_within(found["accuracy"], spent[kind], point) for point in grids[kind]}
        for kind in grids
    }
    best = int(np.argmax(found["accuracy"]))
    row |= {"episodes": float(found["accuracy"][best]), "mean_of_last_fourth": float(late_mean(found["accuracy"]))}
    row |= {"own_seconds": float(found["seconds"][-1]), "passes": int(found["passes"][-1])}
    if config.problem == "b":
        row["report"] = float(evaluate(posed.report, jnp.asarray(found["policies"][best][None])).accuracy[0])
    return row | {"policy": found["policies"][best].tolist()}


def best_within(accuracy: np.ndarray, spent: np.ndarray, limit: float) -> float | None:
    """Finds the best accuracy of the episodes within a limit; None where there is none."""
    within_limit = accuracy[spent <= limit]
    return float(within_limit.max()) if np.isfinite(within_limit).any() else None


def late_mean(accuracy: np.ndarray) -> float:
    """Averages the accuracy of what was proposed in the last fourth, within the budget."""
    late = accuracy[3 * len(accuracy) // 4 :]
    return float(late[np.isfinite(late)].mean()) if np.isfinite(late).any() else float("nan")


def summarise(runs: list[dict], config: Config, figures: dict) -> dict[str, Any]:
    """Computes mean and standard deviation over seeds, where every seed had found something."""
    found: dict[str, Any] = {}
    for name in config.searchers:
        mine = [run for run in runs if run["searcher"] == name]
        if not mine:
            continue
        about: dict[str, Any] = {
            kind: {point: moments([run[kind][point] for run in mine]) for point in mine[0][kind]}
            for kind in ("evaluations", "seconds")
        }
        plain = (
            "episodes",
            "mean_of_last_fourth",
            "own_seconds",
            "passes",
            *(["report"] if "report" in mine[0] else []),
        )
        found[name] = about | {kind: moments([run[kind] for run in mine]) for kind in plain}
        if "optimum" in figures:
            found[name]["reached"] = sum(run["episodes"] >= figures["optimum"] - 1e-6 for run in mine)
    return found


def moments(values: list[float | None]) -> list[float] | None:
    """Gives mean and standard deviation, or None where a value is missing."""
    return None if None in values else [float(np.mean(values)), float(np.std(values))]


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
