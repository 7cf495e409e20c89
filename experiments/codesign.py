r"""How much is won when policy and machine are chosen together, at the area of the edge accelerator?

    python experiments/codesign.py --quick
    python experiments/codesign.py --out runs/codesign
    python experiments/codesign.py --data tfds:cifar10 --data-dir ../shared/data/tfds
    python experiments/codesign.py --data folder:../shared/data/imagenet --halve-report \
        --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/codesign.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224'

A thousand BISMO variants differ in array, dot-product width, ports and buffers. One search chooses a policy and, by
costing it on all variants within an area in one call, its machine; the latency budget is the same throughout. Expected:
at the edge accelerator's area another shape allows more bits, hence more accuracy; at half the area it holds its own.
Takes 4 minutes on 2 CPU cores, half a minute with --quick. Not in the paper.
"""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    Subject,
    check_searcher,
    cost,
    differs,
    find,
    limit_between,
    make_table,
    measure,
    method,
    pose,
    prepare,
)
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from options import Options, launch
from results import Results, format_mean

from haqjax import budget, cost_table, machine
from haqjax.hardware.bismo import Bismo
from haqjax.policies.bounds import make_bounds
from haqjax.report.static.style import TEXT, WIDTH, outline_axes
from haqjax.searchers import SearchResult
from haqjax.searchers.codesign import codesign, cost_on_machines, stack_tables
from haqjax.types import Bounds, Budget, CostTable

SIZES = {
    "array": (3, 4, 5, 6, 7, 8, 10, 12, 14, 16),
    "dot_bits": (64, 128, 256, 512),
    "port_bits": (16, 32, 64, 128, 256),
    "buffer_words": (128, 256, 512, 1024, 2048),
}
QUICK_SIZES = {"array": (6, 8, 10), "dot_bits": (128, 256), "port_bits": (32, 64, 128), "buffer_words": (512, 1024)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Search policies and BISMO variants together."""

    out: str = "runs/codesign"
    searcher: str = "evolution"
    """evolution, haq or random."""
    model: str = "mobilenet_v1"
    place: float = 0.1
    """Of the latency budget between the edge accelerator's latency at the fewest bits (0) and at 8 bits (1)."""
    areas: tuple[float, ...] = (1.0, 0.5)
    """Largest areas, as shares of the edge accelerator's."""
    buffer_bit: float = 0.02
    """Area of a bit of buffer, in binary multipliers with their share of the adders: an assumption."""
    port_wire: float = 50.0
    """Area of a wire of a port, in the same: an assumption."""


class Family(NamedTuple):
    """The machines that may be chosen."""

    specs: list[Bismo]
    areas: np.ndarray  # [M], shares of the edge accelerator's
    tables: CostTable  # of all machines, each leaf [M, ...]


def main(config: Config) -> dict:
    """Searches on the edge accelerator and with all machines; returns the folder and the records."""
    config = config.small()
    results = Results(config)
    check_searcher(config.searcher)
    if not method(config.searcher, config.episodes).projected:
        raise ValueError(f"searcher {config.searcher!r} plans for one machine: give evolution, haq or random")
    subject = prepare(config, config.model)
    start = time.perf_counter()
    family = make_family(config, subject)
    made = time.perf_counter() - start
    limits, table = make_bounds(subject.layers), make_table(subject, "edge")
    limit = budget(table, latency_s=limit_between(table, limits, config.place))
    for seed in range(config.seeds):
        on_edge = find(config, pose(subject, table, limit), seed)
        keep(results, subject, "edge alone", seed, on_edge, machine("edge").spec, 1.0)
        for most in config.areas:
            together(results, config, subject, family, limit, most, seed)
    best = max((r for r in results.records if r["name"] != "edge alone"), key=lambda r: (r["search"], -r["loss"]))
    costing = time_costs(family.tables, np.asarray(limits.high))
    remarks = (
        f" Latency budget {1e3 * float(limit.latency):.2f} ms, batch 1. One call costs a policy on all "
        f"{len(family.areas)} machines, in {1e3 * costing:.1f} ms (their tables took {made:.1f} s). Area is a "
        f"proxy, array x array x dot bits + {config.buffer_bit:g} a bit of both buffers + {config.port_wire:g} a wire "
        "of both ports, relative to the edge accelerator: the weights are assumptions, and which shape wins depends on "
        "them. Every machine runs at the same clock. There are no published figures to stand beside."
    )
    text = differs(subject, config, remarks)
    names = ["edge alone", *(f"together, area {most:g}" for most in config.areas)]
    sizes = ("array", "dot bits", "port bits", "buffer words")
    headers = ("chosen", *sizes, "area", "latency, ms", "mean bits", "search, %", "loss, nats", "report, %")
    figures = {"codesign": draw(results.records, family, best, float(limit.latency))}
    return results.finish(
        f"Policy and machine chosen together, {config.model}",
        headers,
        [_row(name, results.records) for name in names],
        [text],
        figures,
        machines=len(family.areas),
        costing_seconds=costing,
    )


def make_family(config: Config, subject: Subject) -> Family:
    """Makes all combinations of the sizes, with their cost tables."""
    edge, sizes = machine("edge"), QUICK_SIZES if config.quick else SIZES
    combinations = itertools.product(*sizes.values())
    specs = [edge.spec._replace(**dict(zip(sizes, values, strict=True))) for values in combinations]
    tables = [cost_table(dataclasses.replace(edge, spec=each), subject.layers) for each in specs]
    areas = np.array([area(config, each) for each in specs]) / area(config, edge.spec)
    return Family(specs, areas, stack_tables(tables))


def together(
    results: Results, config: Config, subject: Subject, family: Family, limit: Budget, most: float, seed: int
) -> None:
    """Searches for a policy and a machine of at most so much area."""
    within = np.flatnonzero(family.areas <= most)
    if not len(within):
        raise ValueError(f"areas {most:g}: the smallest machine has {family.areas.min():.2g} of the edge accelerator's")
    there = jax.tree.map(lambda leaf: leaf[within], family.tables)
    plan = quickest(there, make_bounds(subject.layers))
    problem = pose(subject, jax.tree.map(lambda leaf: leaf[plan], there), limit)
    searcher = method(config.searcher, config.episodes)
    found = codesign(problem, there, searcher, episodes=config.episodes, key=jax.random.key(seed))
    at = int(within[found.machine])
    keep(results, subject, f"together, area {most:g}", seed, found.result, family.specs[at], family.areas[at])


def area(config: Config, spec: Bismo) -> float:
    """Computes the area by a proxy, in binary multipliers."""
    buffers = 2 * spec.array * spec.buffer_words * spec.dot_bits
    products = spec.array**2 * spec.dot_bits
    return products + config.buffer_bit * buffers + config.port_wire * 2 * spec.port_bits


def quickest(tables: CostTable, limits: Bounds) -> int:
    """Finds the machine on which uniform 4 bits take the least time: what an evolution plans by."""
    even = jnp.clip(jnp.full_like(limits.low, 4), limits.low, limits.high)
    return int(np.argmin(cost_on_machines(tables, even).latency))


def time_costs(tables: CostTable, policy: np.ndarray) -> float:
    """Times the costs of one policy on all machines, the least of five, compiled."""
    on_device = jax.tree.map(jnp.asarray, tables)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(cost_on_machines(on_device, jnp.asarray(policy)))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def keep(
    results: Results, subject: Subject, name: str, seed: int, found: SearchResult, spec: Bismo, size: float
) -> None:
    """Keeps what was found on a machine."""
    report = float(measure(subject, [found.policy]).accuracy[0])
    table = cost_table(dataclasses.replace(machine("edge"), spec=spec), subject.layers)
    results.add(
        name=name,
        seed=seed,
        search=found.accuracy,
        loss=found.loss,
        report=report,
        area=float(size),
        latency=cost(table, found.policy).latency,
        **{field: getattr(spec, field) for field in SIZES},
        bits=float(found.policy.mean()),
        policy=found.policy,
    )


def draw(records: Sequence[dict], family: Family, best: dict, limit: float) -> Figure:
    """Draws the latency of the best policy on every machine, over area."""
    figure = Figure(figsize=(WIDTH * 0.75, 3.2), layout="constrained")
    axes = figure.subplots()
    outline_axes(axes, "latency, ms")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("area, share of the edge accelerator's", fontsize=TEXT)
    latency = 1e3 * np.asarray(cost_on_machines(family.tables, best["policy"]).latency)
    axes.plot(family.areas, latency, ".", color="0.7", ms=3, label="the chosen policy on every machine")
    axes.plot(best["area"], 1e3 * best["latency"], "o", color="#23679e", ms=7, label=f"chosen ({best['name']})")
    edge = next(r for r in records if r["name"] == "edge alone")
    axes.plot(1, 1e3 * edge["latency"], "s", color="#c8590a", ms=6, label="edge with its own policy")
    axes.axhline(1e3 * limit, color="0.3", lw=0.8, ls="--", label="budget")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=TEXT, frameon=False)
    return figure


def _row(name: str, records: Sequence[dict]) -> tuple[str, ...]:
    mine = [r for r in records if r["name"] == name]
    best = max(mine, key=lambda r: (r["search"], -r["loss"]))  # the machine of the best seed; figures over all seeds
    shape = [str(best[field]) for field in SIZES]
    figures = (
        ("area", 1, 2),
        ("latency", 1e3, 2),
        ("bits", 1, 2),
        ("search", 100, 1),
        ("loss", 1, 3),
        ("report", 100, 1),
    )
    return (name, *shape, *(format_mean([r[key] for r in mine], scale, digits) for key, scale, digits in figures))


if __name__ == "__main__":
    launch(main, Config, __doc__)
