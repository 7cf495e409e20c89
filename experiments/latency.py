r"""How much accuracy do searched bits win over uniform ones at equal latency? The paper's main table.

    python experiments/latency.py --quick
    python experiments/latency.py --out runs/latency
    python experiments/latency.py --data tfds:cifar10 --data-dir ../shared/data/tfds --epochs 10
    python experiments/latency.py --data folder:../shared/data/imagenet --halve-report \
        --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/latency.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224'

MobileNet-V1 and V2 on the edge and the cloud accelerator; the budgets are the latencies of uniform 4, 5 and 6 bits;
both policies are fine-tuned for as long. Expected: searched policies are ahead as calibrated, most
clearly at 4 bits; on the digits fine-tuning brings both to within about a point of the float network.
Takes 30 minutes on 2 CPU cores, a minute with --quick.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from charts import close, open_panel, plot_level, plot_policies
from common import Subject, differs, find, inner_latency, make_table, measure, open_machine, pose, prepare, tune
from matplotlib.figure import Figure
from options import Options, launch
from published import LATENCY, format_point
from results import Results, format_mean

from haqjax import budget
from haqjax.policies.actions import uniform
from haqjax.policies.bounds import make_bounds
from haqjax.report.static.style import WIDTH
from haqjax.training import Tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Search at the latency of uniform policies, fine-tune both."""

    out: str = "runs/latency"
    models: tuple[str, ...] = ("mobilenet_v1", "mobilenet_v2")
    machines: tuple[str, ...] = ("edge", "cloud")
    bits: tuple[int, ...] = (4, 5, 6)
    epochs: int = 3
    """Of fine-tuning; 0 for none."""


def main(config: Config) -> dict:
    """Compares; returns the folder, the records, and the points that each search wins."""
    config = config.small(models=config.models[:1], bits=config.bits[:1], epochs=1)
    results = Results(config)
    for hw in config.machines:
        open_machine(hw)  # a wrong name is an error now
    text = ""
    for model in config.models:
        subject = prepare(config, model)
        baseline(results, config, subject)
        for hw in config.machines:
            for bits in config.bits:
                searched(results, config, subject, hw, bits)
        text = differs(subject, config, _explain(config), " and ".join(config.models))
    rows = [
        _row(results.records, model, hw, bits)
        for model in config.models
        for hw in config.machines
        for bits in config.bits
    ]
    headers = (
        "network",
        "machine",
        "budget",
        "uniform, ms",
        "found, ms",
        "float, %",
        "uniform, %",
        "found, %",
        "uniform tuned, %",
        "found tuned, %",
        "PACT",
        "HAQ",
    )
    return results.finish(
        "Accuracy at the latency of uniform bits",
        headers,
        rows,
        [text],
        {"latency": draw(results.records, config)},
        points_won=[_points_won(results.records, row) for row in rows],
    )


def baseline(results: Results, config: Config, subject: Subject) -> None:
    """Measures the float network and the uniform policies, which do not depend on the machine."""
    limits = make_bounds(subject.layers)
    policies = {bits: np.asarray(uniform(bits, limits)) for bits in config.bits}
    reported = measure(subject, [np.full_like(next(iter(policies.values())), 32), *policies.values()])
    accuracies = reported.accuracy.tolist()
    results.add(kind="float", model=subject.network.name, report=accuracies[0])
    for (bits, policy), report in zip(policies.items(), accuracies[1:], strict=True):
        seeds = range(config.seeds if config.epochs else 0)
        tuned = [tune(subject, policy, _tuning(config), seed) for seed in seeds]
        results.add(kind="uniform", model=subject.network.name, bits=bits, report=report, tuned=tuned)


def searched(results: Results, config: Config, subject: Subject, hw: str, bits: int) -> None:
    """Searches at the latency of a uniform policy."""
    table = make_table(subject, hw)
    limits = make_bounds(subject.layers)
    same = np.asarray(uniform(bits, limits))
    limit = budget(table, latency=_share(table, same))
    for seed in range(config.seeds):
        found = find(config, pose(subject, table, limit), seed)
        report = float(measure(subject, [found.policy]).accuracy[0])
        tuned = tune(subject, found.policy, _tuning(config), seed) if config.epochs else report
        results.add(
            kind="found",
            model=subject.network.name,
            machine=hw,
            bits=bits,
            seed=seed,
            search=found.accuracy,
            report=report,
            tuned=tuned,
            latency=inner_latency(table, found.policy),
            uniform_latency=inner_latency(table, same),
            policy=found.policy,
        )


def draw(records: Sequence[dict], config: Config) -> Figure:
    """Draws accuracy over latency, a panel for each network and machine."""
    pairs = [(model, hw) for model in config.models for hw in config.machines]
    figure = Figure(figsize=(WIDTH, 0.5 + 2.1 * len(config.models)), layout="constrained")
    panels = figure.subplots(len(config.models), len(config.machines), squeeze=False).ravel()
    for axes, (model, hw) in zip(panels, pairs, strict=True):
        open_panel(axes, f"{model}, {hw}", "latency without first and last layer, ms")
        found = [r for r in records if r["kind"] == "found" and (r["model"], r["machine"]) == (model, hw)]
        plain = [r for r in records if r["kind"] == "uniform" and r["model"] == model]
        times = {r["bits"]: 1e3 * r["uniform_latency"] for r in found}
        after = [np.mean(r["tuned"] or np.nan) for r in plain]
        plot_policies(axes, "uniform", [times[r["bits"]] for r in plain], [r["report"] for r in plain], after)
        latencies = [1e3 * r["latency"] for r in found]
        plot_policies(axes, "found", latencies, [r["report"] for r in found], [r["tuned"] for r in found])
        plot_level(axes, "float", next(r["report"] for r in records if r["kind"] == "float" and r["model"] == model))
    return close(figure, panels)


def _share(table, policy: np.ndarray) -> float:
    each = np.asarray(table.latency)
    return float(each[np.arange(len(policy)), policy[:, 0] - 1, policy[:, 1] - 1].sum() / each[:, 7, 7].sum())


def _tuning(config: Config) -> Tuning:
    return Tuning(epochs=config.epochs)


def _row(records: Sequence[dict], model: str, hw: str, bits: int) -> tuple[str, ...]:
    whole = next(r for r in records if r["kind"] == "float" and r["model"] == model)
    plain = next(r for r in records if r["kind"] == "uniform" and (r["model"], r["bits"]) == (model, bits))
    found = [r for r in records if r["kind"] == "found" and (r["model"], r["machine"], r["bits"]) == (model, hw, bits)]
    times = f"{1e3 * found[0]['uniform_latency']:.2f}", format_mean([r["latency"] for r in found], 1e3, 2)
    untuned = (
        f"{100 * whole['report']:.1f}",
        f"{100 * plain['report']:.1f}",
        format_mean([r["report"] for r in found], 100),
    )
    tuned = format_mean(plain["tuned"] or [plain["report"]], 100), format_mean([r["tuned"] for r in found], 100)
    return (
        model,
        hw,
        f"{bits} bits",
        *times,
        *untuned,
        *tuned,
        *map(format_point, LATENCY.get((model, hw, bits), (None, None))),
    )


def _points_won(records: Sequence[dict], row: Sequence[str]) -> float:
    """Computes the points that searching wins over uniform bits after fine-tuning, on average."""
    model, hw, bits = row[0], row[1], int(row[2].split()[0])
    plain = next(r for r in records if r["kind"] == "uniform" and (r["model"], r["bits"]) == (model, bits))
    found = [r for r in records if r["kind"] == "found" and (r["model"], r["machine"], r["bits"]) == (model, hw, bits)]
    return 100 * float(np.mean([r["tuned"] for r in found]) - np.mean(plain["tuned"] or [plain["report"]]))


def _explain(config: Config) -> str:
    return (
        f" Epochs of fine-tuning: {config.epochs}, of weights alone; the paper fine-tunes for far longer, and its "
        "uniform policies are PACT's, which learns clip values. Published: top-1 at ms, with the weaker grade of the "
        "two. "
        "Milliseconds leave out the first and the last layer as the paper's do (edge: batch 1, cloud: batch 16)."
    )


if __name__ == "__main__":
    launch(main, Config, __doc__)
