r"""Which search finds the best policies at equal budgets and equal numbers of evaluations?

    python experiments/compare_searches.py --quick
    python experiments/compare_searches.py --out runs/compare-searches
    python experiments/compare_searches.py --model resnet20 --machine cloud --data tfds:cifar10 --images 1000 \
        --data-dir ../shared/data/tfds --weights '../shared/data/{model}_cifar10.safetensors'
    python experiments/compare_searches.py --data folder:../shared/data/imagenet --halve-report \
        --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/compare_searches.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224'

All searches, seeds and budgets evaluate as many policies; those that measure sensitivities pay for them from the same
number. Expected: ilp and gradient lead at tight budgets, random is last. Takes 22 minutes on 2 CPU cores, a minute
with --quick.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from common import (
    check_searcher,
    differs,
    find,
    limit_between,
    make_table,
    measure,
    open_machine,
    pose,
    prepare,
    uniform_policy,
)
from matplotlib.figure import Figure
from options import Options, launch
from results import Results, format_mean

from haqjax import budget
from haqjax.evaluation import make_soft_loss
from haqjax.policies.bounds import make_bounds
from haqjax.report.static.style import TEXT, WIDTH, outline_axes
from haqjax.searchers import SEARCHERS, SearchResult
from haqjax.searchers.loop import BY_GRADIENT

STYLES = {"ilp": "-", "gradient": "--", "haq": "-", "evolution": "-.", "greedy": ":", "uniform": ":", "random": "--"}
COLOURS = {
    "ilp": "#23679e",
    "gradient": "#c8590a",
    "haq": "#111111",
    "evolution": "#4a9a62",
    "greedy": "#8c5aa8",
    "uniform": "#999999",
    "random": "#b5a642",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Every search on every budget with every seed."""

    out: str = "runs/compare_searches"
    model: str = "mobilenet_v1"
    machine: str = "edge"
    searchers: tuple[str, ...] = tuple(sorted(SEARCHERS))
    places: tuple[float, ...] = (0.1, 0.25)
    """Of the budgets between the latency at the fewest bits (0) and at 8 bits (1)."""


def main(config: Config) -> dict:
    """Runs every search; returns the folder and the records."""
    config = config.small(places=config.places[:1])
    results = Results(config)
    open_machine(config.machine)  # a wrong name is an error now
    for name in config.searchers:
        check_searcher(name)
    subject = prepare(config, config.model)
    table, limits = make_table(subject, config.machine), make_bounds(subject.layers)
    network, train = subject.network, subject.data.train
    soft = make_soft_loss(network.apply, network.params, train.take(np.arange(min(1024, len(train)))), subject.ranges)
    curves: dict[tuple[float, str], list[np.ndarray]] = {}
    for place, name in itertools.product(config.places, config.searchers):
        limit = budget(table, latency_s=limit_between(table, limits, place))
        one = dataclasses.replace(config, searcher=name)
        evaluator = dataclasses.replace(subject.search, soft_loss=soft if name in BY_GRADIENT else None)
        problem = pose(subject, table, limit, limits, evaluator)
        found = [find(one, problem, seed) for seed in range(config.seeds)]
        reported = measure(subject, [result.policy for result in found])
        curves[place, name] = [best_so_far(result) for result in found]
        for seed, (result, report) in enumerate(zip(found, reported.accuracy, strict=True)):
            results.add(
                place=place,
                searcher=name,
                seed=seed,
                search=result.accuracy,
                loss=result.loss,
                report=float(report),
                best_so_far=curves[place, name][seed],
                policy=result.policy,
            )
    base = {}
    for place in config.places:
        problem = pose(subject, table, budget(table, latency_s=limit_between(table, limits, place)), limits)
        policy = uniform_policy(problem)
        split = [measure(subject, [policy, np.full_like(policy, 32)], split=s).accuracy for s in ("search", "report")]
        base[place] = np.array(split)
    columns = itertools.product(config.places, ("search, %", "loss, nats", "report, %"))
    headers = ("searcher", *(f"{column}, place {place:g}" for place, column in columns))
    rows = _rows(results.records, config, base)
    remarks = (
        f" Budgets: {config.machine}, the given place between the latency at the fewest bits and at 8 bits. Mean and "
        "standard deviation over seeds; the search column is what each search could see, and being the best of many, "
        "optimistic. The paper compares its agent with uniform bits alone."
    )
    text = differs(subject, dataclasses.replace(config, searcher="all"), remarks)
    return results.finish(
        f"Searches at {config.episodes} evaluations, {config.model} on {config.machine}",
        headers,
        rows,
        [text],
        {"searches": draw(curves, base, config)},
    )


def best_so_far(result: SearchResult) -> np.ndarray:
    """Computes the best accuracy within the budget up to each episode; NaN before the first."""
    records = result.records
    usable = np.asarray(records.feasible) & np.isfinite(records.accuracy)
    best = np.maximum.accumulate(np.where(usable, records.accuracy, -1.0))
    return np.where(best < 0, np.nan, best)


def draw(curves: dict, base: dict[float, np.ndarray], config: Config) -> Figure:
    """Draws best so far over episodes, the mean over seeds, a panel a budget."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panels = figure.subplots(1, len(config.places), squeeze=False)[0]
    for axes, place in zip(panels, config.places, strict=True):
        outline_axes(axes, "best so far, search split, %")
        axes.set_title(f"budget at {place:g}", fontsize=TEXT, loc="left")
        axes.set_xlabel("policies evaluated", fontsize=TEXT)
        for name in config.searchers:
            mean = 100 * np.mean(curves[place, name], axis=0)
            episodes = np.arange(1, len(mean) + 1)
            axes.plot(episodes, mean, STYLES.get(name, "-"), color=COLOURS.get(name), lw=1.3, label=name)
        axes.axhline(100 * base[place][0, 1], color="0.4", lw=0.8, ls=(0, (1, 3)), label="float")
        axes.set_ylim(bottom=max(0, 100 * base[place][0, 0] - 15))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=TEXT, frameon=False)
    return figure


def _rows(records: Sequence[dict], config: Config, base: dict[float, np.ndarray]) -> list[tuple[str, ...]]:
    def cells(name: str) -> list[str]:
        each = [[r for r in records if (r["searcher"], r["place"]) == (name, place)] for place in config.places]
        keys = (("search", 100, 1), ("loss", 1, 3), ("report", 100, 1))
        return [format_mean([r[key] for r in mine], scale, digits) for mine in each for key, scale, digits in keys]

    def rank(name: str) -> list[float]:
        mine = [r for r in records if (r["searcher"], r["place"]) == (name, config.places[0])]
        return np.mean([(-r["search"], r["loss"]) for r in mine], axis=0).tolist()

    def fixed(name: str, at: int) -> tuple[str, ...]:
        each = [(f"{100 * base[place][0, at]:.1f}", "", f"{100 * base[place][1, at]:.1f}") for place in config.places]
        return (name, *itertools.chain.from_iterable(each))

    first = [fixed("float, no budget", 1), fixed("best uniform policy", 0)]
    return [*first, *((name, *cells(name)) for name in sorted(config.searchers, key=rank))]


if __name__ == "__main__":
    launch(main, Config, __doc__)
