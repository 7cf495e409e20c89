"""Is a front that ends when no gain is expected as good as one of 400 evaluations, and how many does it take?

    python benchmarks/front.py                        # ResNet-20 on CIFAR-10, BISMO cloud
    python benchmarks/front.py --problem digits       # MobileNetV2 on the digits, BISMO edge; or --model and --hw
    python benchmarks/front.py --seeds 1 --episodes 80 --images 200 --report-images 1000    # small

Three ways on the same problem with the same seeds: `default` as `make search` does, `on` the same with PATIENCE=0, and
`probes` as it was before: single entries are probed, each budget begins anew, all episodes are searched. Accuracies
are of the report split, on which nothing is chosen. `short` counts points of a front below the one of `on`, and of
`probes`, by more than a standard error. Evaluations are shared by all searches of a call, so its seconds are of no
account: `benchmarks/search_time.py` measures time. Problem b needs the data of search_problems.py.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import records
import tyro
from rich.console import Console
from search_problems import Posed, evaluate, pose
from search_quality import BATCH, measure

from haqjax import budget
from haqjax.cli import keep_compiled_programs
from haqjax.evaluation import estimate_gauss_newton_sensitivity, make_evaluator
from haqjax.policies.projection import best_uniform
from haqjax.report import standard_error
from haqjax.run import SearchConfig
from haqjax.run.float_network import load_network
from haqjax.run.setup import find_ranges, prepare
from haqjax.searchers import ILP, SearchResult, make_ilp, make_problem
from haqjax.searchers.driver import Evaluated
from haqjax.searchers.front import budget_fractions, make_front
from haqjax.searchers.loop import answer
from haqjax.types import FULL_PRECISION


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    problem: Literal["b", "c", "digits"] = "b"
    seeds: int = 3
    episodes: int = 400
    """Of the searches that do not end early; a limit to the others."""
    ways: tuple[Literal["default", "on", "probes"], ...] = ("default", "on", "probes")
    parallel: int = 4
    patience: int = 25
    images: int = 1000
    """That policies are chosen by, at most; the digits have 360."""
    report_images: int | None = None
    """That are reported on, at most."""
    metric: str = "latency"
    rounding: Literal["output", "nearest"] = "output"
    race: float | None = None
    by_layer: bool = False
    searchers: tuple[str, ...] = ("ilp",)  # this and what is above are read by search_problems
    model: str = "mobilenet_v2"
    """Of the digits problem, and its machine."""
    hw: str = "edge"
    name: str = ""
    """At the end of the result's name."""


def main(config: Config) -> None:
    """Searches the fronts, a seed after another."""
    posed = pose_digits(config) if config.problem == "digits" else pose(config)
    posed = posed._replace(report=shorten(posed, config))
    start = time.process_time()
    apply, params, split, ranges = posed.world
    sensitivity = estimate_gauss_newton_sensitivity(apply, params, split, ranges, key=jax.random.key(0))
    estimated = time.process_time() - start
    problem = posed.problem
    fractions = budget_fractions(problem.table, problem.bounds, config.metric)
    figures: dict[str, Any] = {"options": dataclasses.asdict(config), "images": posed.images, **posed.references}
    figures |= {"budgets": fractions, "processor_seconds_of_sensitivities": estimated}
    known: Evaluated = {}
    reported: dict[bytes, float] = {}
    limits = [budget(problem.table, **{config.metric: fraction}) for fraction in fractions]
    even = [np.asarray(best_uniform(problem.table, problem.bounds, one).policy) for one in limits]
    figures["uniform"] = measure(posed, even, reported)
    figures["runs"] = {way: [] for way in config.ways}
    for seed in range(config.seeds):
        for way in config.ways:
            begun = dataclasses.replace(problem, sensitivity=None if way == "probes" else np.nan_to_num(sensitivity))
            searcher = make_ilp(ILP(parallel=config.parallel))
            if way == "probes":
                searcher = searcher._replace(carry=None, converged=None)
            patience = config.patience if way == "default" else 0
            question = make_front(begun, searcher, limits, config.episodes, jax.random.key(seed))
            found = answer(begun, searcher, question, patience=patience, known=known, on_round=show)
            figures["runs"][way].append(describe(found, posed, seed, reported))
            figures["short"] = compare(figures["runs"], posed.images["report"])
            tail = f"-{config.name}" if config.name else ""
            records.write(f"front-{config.problem}{tail}", figures)  # what is there so far


def show(result: SearchResult) -> None:
    """Prints how far a search has come."""
    print(f"budget {len(result.stages)}, {len(result.records.accuracy)} evaluations", end="\r", flush=True)


def describe(found: SearchResult, posed: Posed, seed: int, reported: dict[bytes, float]) -> dict[str, Any]:
    """Describes a front: evaluations in all and within each budget, accuracies on both splits."""
    there = [episode for episode in found.chosen if episode is not None]
    of_stage = [int((found.records.stage == stage).sum()) for stage in range(len(found.stages))]
    return {
        "seed": seed,
        "evaluations": len({policy.tobytes() for policy in found.records.policy}),
        "episodes": of_stage,
        "converged": list(found.converged),
        "search": [float(found.records.accuracy[episode]) for episode in there],
        "loss": [float(found.records.loss[episode]) for episode in there],
        "report": measure(posed, [found.records.policy[episode] for episode in there], reported),
    }


def compare(runs: dict[str, list[dict[str, Any]]], images: int) -> dict[str, dict[str, Any]]:
    """Compares the mean front of the default with those of the other ways, point by point."""
    mean = {way: np.mean([run["report"] for run in found], axis=0) for way, found in runs.items() if found}
    if "default" not in mean:
        return {}
    errors = np.array([standard_error(value, images) for value in mean["default"]])
    return {
        way: {
            "difference": (mean["default"] - value).round(5).tolist(),
            "standard_error": errors.round(5).tolist(),
            "short": int((mean["default"] < value - errors).sum()),
        }
        for way, value in mean.items()
        if way != "default"
    }


def shorten(posed: Posed, config: Config) -> Any:
    """Makes the evaluator of the report split on fewer images, where that is asked for."""
    if config.report_images is None:
        return posed.report
    images, labels = np.asarray(posed.report.images), np.asarray(posed.report.labels)
    batches = max(1, config.report_images // images.shape[1])
    posed.images["report"] = int((labels[:batches] >= 0).sum())
    return dataclasses.replace(posed.report, images=jnp.asarray(images[:batches]), labels=jnp.asarray(labels[:batches]))


def pose_digits(config: Config) -> Posed:
    """Poses a main job: a network trained on the digits."""
    options = dict(front=config.metric, rounding=config.rounding)
    asked = SearchConfig.of(model=config.model, hw=config.hw, **options)
    prepared = prepare(asked)
    network = load_network(prepared.network, prepared.data, None, Console())
    ranges = find_ranges(asked.quantizer, asked.by_codebook, network, prepared.data)
    splits = {"search": prepared.data.search, "report": prepared.data.report}
    search, report = (make_evaluator(network.apply, network.params, split, ranges) for split in splits.values())
    floating = jnp.full((BATCH, len(prepared.layers), 2), FULL_PRECISION)
    reference = jax.tree.map(lambda x: float(x[0]), evaluate(search, floating))
    table, bounds = prepared.table, prepared.bounds
    free = budget(table, latency=None)
    losses: dict[str, Any] = {"reference_loss": reference.loss}
    problem = make_problem(prepared.layers, table, bounds, free, search, reference.accuracy, **losses)
    sizes = {name: len(split) for name, split in splits.items()}
    world = (network.apply, network.params, prepared.data.search, ranges)
    return Posed(problem, report, sizes, {"float": {"search": reference.accuracy}}, prepared.layers, world)


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
