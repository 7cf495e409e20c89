"""How much time does partial evaluation of the network save, when single layers are probed?

    python benchmarks/prefix.py

ResNet-20 on CIFAR-10 and MobileNetV2 on ImageNet images (problems b and c of search_problems.py): seconds of probes
with and without, in turn in one process, and what compiling takes more. Nothing compiled is kept for the next time.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import records
import search_quality
import tyro
from search_problems import pose

from haqjax.evaluation.prefix_reuse import choose_cuts, make_prefix_evaluator, saved_fraction
from haqjax.searchers.driver import evaluate_policies
from haqjax.searchers.probes import list_probes


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    problems: tuple[str, ...] = ("b", "c")
    images: int = 500
    """To evaluate on, at most."""
    probes: int = 24
    """Of single entries, evenly over the network; a multiple of 4."""


def main(config: Config) -> None:
    """Measures and writes the figures."""
    if config.probes < 4 or config.probes % 4:
        raise SystemExit(f"probes {config.probes}: give a multiple of 4")
    records.write("prefix", {name: measure(name, config) for name in config.problems})


def measure(name: str, config: Config) -> dict[str, Any]:
    """Measures one problem."""
    posed = pose(search_quality.Config(problem=name, images=config.images))
    apply, params, split, ranges = posed.world
    base = np.asarray(posed.problem.bounds.high)
    every = list_probes(posed.problem.bounds, 1)[1:]
    chosen = [every[at] for at in np.linspace(0, len(every) - 1, config.probes).round().astype(int)]
    cuts = choose_cuts(posed.layers, len(split))
    begun = time.perf_counter()
    from_cuts = jax.block_until_ready(make_prefix_evaluator(apply, params, split, ranges, base, cuts))
    kept = time.perf_counter() - begun
    problems = {"plain": posed.problem, "from_cuts": dataclasses.replace(posed.problem, evaluator=from_cuts)}
    first = {kind: run(problem, chosen[:4])[0] for kind, problem in problems.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in problems}
    apart = 0.0
    for at in range(0, len(chosen), 4):
        found = {kind: run(problem, chosen[at : at + 4]) for kind, problem in problems.items()}
        for kind, (took, _) in found.items():
            seconds[kind].append(took)
        apart = max(apart, float(np.abs(found["plain"][1] - found["from_cuts"][1]).max()))
    total = {kind: sum(each) for kind, each in seconds.items()}
    figures = {
        "images": len(split),
        "probes": len(chosen),
        "cuts": cuts,
        "share_that_cuts_spare": saved_fraction(posed.layers, cuts),
        "bytes_kept": sum(leaf.nbytes for leaf in jax.tree.leaves(from_cuts.extra.activations)),
        "seconds_to_compile_and_keep": kept,
        "seconds_to_compile_and_probe_four": first,
        "seconds": total,
        "ratio": total["from_cuts"] / total["plain"],
        "largest_difference_of_accuracies": apart,
    }
    print(name, figures, flush=True)
    return figures


def run(problem: Any, policies: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Evaluates policies; returns seconds and accuracies."""
    some = jnp.asarray(np.stack(policies))
    begun = time.perf_counter()
    found = jax.block_until_ready(evaluate_policies(problem, some))
    return time.perf_counter() - begun, np.asarray(found.accuracy)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
