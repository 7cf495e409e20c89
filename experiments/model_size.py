r"""How accurate are searched k-means weights beside uniform ones of the same size? The paper's model-size table.

    python experiments/model_size.py --quick
    python experiments/model_size.py --out runs/model-size
    python experiments/model_size.py --data tfds:cifar10 --data-dir ../shared/data/tfds --epochs 10
    python experiments/model_size.py --data folder:../shared/data/imagenet --halve-report \
        --models mobilenet_v1 mobilenet_v2 --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/model_size.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224' --models mobilenet_v1 mobilenet_v2

Weights of MobileNet-V1, V2 and ResNet-50 are shared by k-means at 2, 3, 4 bits everywhere (Deep Compression) or at bits
that a search chose for the same size (HAQ); activations stay as they are; weights and shared values are fine-tuned.
Expected: the searched bits are ahead at 2 bits, and less so at 3 and 4.
Takes 30 minutes on 2 CPU cores, half a minute with --quick.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from charts import close, open_panel, plot_level, plot_policies
from common import Subject, cost, differs, find, make_table, measure, pose, prepare, tune
from matplotlib.figure import Figure
from options import Options, launch
from published import SIZE, format_point
from results import Results, format_mean

from haqjax import budget
from haqjax.policies.bounds import make_bounds
from haqjax.report.static.style import WIDTH
from haqjax.training import Tuning
from haqjax.types import FULL_PRECISION, CostTable

MIB = 2.0**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Search weight bits at the size of uniform ones."""

    out: str = "runs/model_size"
    models: tuple[str, ...] = ("mobilenet_v1", "mobilenet_v2", "resnet50")
    bits: tuple[int, ...] = (2, 3, 4)
    episodes: int = 200
    """Policies that a search evaluates."""
    seeds: int = 2
    """Searches with different random numbers; the network is the same."""
    epochs: int = 2
    """Of fine-tuning; 0 for none."""
    codebook_rate: float = 1e-3
    """Learning rate of the shared values."""


def main(config: Config) -> dict:
    """Compares at each size; returns the folder and the records."""
    config = config.small(models=config.models[:1], bits=config.bits[:1], epochs=1)
    results = Results(config)
    for model in config.models:
        subject = prepare(config, model, codebooks=True)
        table = make_table(subject, "edge")  # the size is the same on every machine
        whole = measure(subject, [np.full((len(table), 2), FULL_PRECISION)]).accuracy[0]
        results.add(name="float", model=model, report=float(whole), size=float_size(table))
        for bits in config.bits:
            compare(results, config, subject, table, bits)
    rows = [_row(results.records, model, bits) for model in config.models for bits in config.bits]
    size_of = "the network as published" if not config.quick or config.weights else "a narrow network"
    text = differs(
        subject,
        config,
        f" Sizes are of {size_of}: every convolution and dense weight at its bits and the rest at 32; codebooks are "
        f"left out, as in the published sizes. Epochs of fine-tuning: {config.epochs}. The first and the last layer "
        "are searched like all others. Published: top-1 at MiB.",
        " and ".join(config.models),
    )
    accuracies = ("float, %", "uniform, %", "found, %", "uniform tuned, %", "found tuned, %")
    headers = ("network", "bits", "uniform, MiB", "found, MiB", *accuracies, "Deep Compression", "HAQ")
    figures = {"model-size": draw(results.records, config)}
    return results.finish("Accuracy of k-means weights at equal size", headers, rows, [text], figures)


def float_size(table: CostTable) -> float:
    """Computes the bytes with 32 bits everywhere."""
    eight, fixed = cost(table, np.full((len(table), 2), 8)).size, float(table.fixed.size)
    return 4 * (eight - fixed) + fixed


def compare(results: Results, config: Config, subject: Subject, table: CostTable, bits: int) -> None:
    """Measures the uniform policy of a size, and searches at that size."""
    same = np.full((len(table), 2), 8)
    same[:, 0] = bits
    limits = make_bounds(subject.layers, low=(1, 8), pinned={})
    problem = pose(subject, table, budget(table, size_bytes=cost(table, same).size), limits)
    found = [find(config, problem, seed).policy for seed in range(config.seeds)]
    for name, policies in (("uniform", [same]), ("found", found)):
        reported = measure(subject, policies).accuracy
        for seed, (policy, report) in enumerate(zip(policies, reported, strict=True)):
            tuning = Tuning(epochs=max(config.epochs, 1), codebook_rate=config.codebook_rate)
            tuned = tune(subject, policy, tuning, seed) if config.epochs else float(report)
            results.add(
                name=name,
                model=subject.network.name,
                bits=bits,
                seed=seed,
                report=float(report),
                tuned=tuned,
                size=cost(table, policy).size,
                policy=policy[:, 0],
            )


def draw(records: Sequence[dict], config: Config) -> Figure:
    """Draws accuracy over size, a panel a network."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    panels = figure.subplots(1, len(config.models), squeeze=False)[0]
    for axes, model in zip(panels, config.models, strict=True):
        open_panel(axes, model, "size, MiB")
        for name in ("uniform", "found"):
            mine = [r for r in records if r["name"] == name and r["model"] == model]
            sizes = [r["size"] / MIB for r in mine]
            plot_policies(axes, name, sizes, [r["report"] for r in mine], [r["tuned"] for r in mine])
        plot_level(axes, "float", next(r["report"] for r in records if r["name"] == "float" and r["model"] == model))
    return close(figure, panels)


def _row(records: Sequence[dict], model: str, bits: int) -> tuple[str, ...]:
    whole = next(r for r in records if r["name"] == "float" and r["model"] == model)
    mine = {
        name: [r for r in records if (r["name"], r["model"], r.get("bits")) == (name, model, bits)]
        for name in ("uniform", "found")
    }
    sizes = [format_mean([r["size"] / MIB for r in rows], 1, 2) for rows in mine.values()]
    accuracies = [format_mean([r[key] for r in rows], 100) for key in ("report", "tuned") for rows in mine.values()]
    published = SIZE.get((model, bits), (None, None))
    return (model, str(bits), *sizes, f"{100 * whole['report']:.1f}", *accuracies, *map(format_point, published))


if __name__ == "__main__":
    launch(main, Config, __doc__)
