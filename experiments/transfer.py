r"""Does an agent that has learned on MobileNet-V1 do better on MobileNet-V2 than one that starts anew?

    python experiments/transfer.py --quick
    python experiments/transfer.py --out runs/transfer
    python experiments/transfer.py --data tfds:cifar10 --data-dir ../shared/data/tfds
    python experiments/transfer.py --data folder:../shared/data/imagenet --halve-report \
        --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/transfer.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224'

The paper's transfer: actor and critic of HAQ's agent go to another network, whose search then needs no warm-up.
Expected: the transferred agent's first policies are better; given enough policies both reach the same.
Takes 10 minutes on 2 CPU cores, a minute with --quick.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from common import differs, limit_between, make_table, measure, method, pose, prepare
from compare_searches import best_so_far
from matplotlib.figure import Figure
from options import Options, launch
from results import Results, format_mean

from haqjax import budget, search
from haqjax.policies.bounds import make_bounds
from haqjax.report.static.style import TEXT, WIDTH, outline_axes
from haqjax.searchers.warm_start import start_warm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Search with a new and with a transferred agent."""

    out: str = "runs/transfer"
    searcher: str = "haq"
    """Only haq has an agent."""
    source: str = "mobilenet_v1"
    target: str = "mobilenet_v2"
    machine: str = "edge"
    place: float = 0.25
    """Of the budgets between the latency at the fewest bits (0) and at 8 bits (1)."""


def main(config: Config) -> dict:
    """Searches with both agents; returns the folder, the records and the float network's accuracy."""
    config = config.small()
    if config.searcher != "haq":
        raise ValueError(f"searcher {config.searcher!r} has no agent: leave it at haq")
    results = Results(config)
    subjects = {model: prepare(config, model) for model in (config.source, config.target)}
    problems = {}
    for model, subject in subjects.items():
        table = make_table(subject, config.machine)
        limit = limit_between(table, make_bounds(subject.layers), config.place)
        problems[model] = pose(subject, table, budget(table, latency_s=limit))
    curves: dict[str, list[np.ndarray]] = {"new": [], "transferred": []}
    usual, prepared = method("haq", config.episodes), method("haq", config.episodes, warmup=0)
    for seed in range(config.seeds):
        source_key, new_key, begin_key, move_key = jax.random.split(jax.random.key(seed), 4)
        source = search(problems[config.source], usual, episodes=config.episodes, key=source_key)
        new = search(problems[config.target], usual, episodes=config.episodes, key=new_key)
        begun = start_warm(source.state.agent, prepared, problems[config.target], begin_key)
        moved = search(problems[config.target], prepared, episodes=config.episodes, key=move_key, resume=begun)
        reported = measure(subjects[config.target], [new.policy, moved.policy])
        for name, found, report in zip(curves, (new, moved), reported.accuracy, strict=True):
            curves[name].append(best_so_far(found))
            results.add(
                agent=name,
                seed=seed,
                search=found.accuracy,
                report=float(report),
                best_so_far=curves[name][-1],
                source=source.accuracy,
                policy=found.policy,
            )
    reference = float(problems[config.target].reference)
    moments = sorted({max(1, config.episodes * part // 100) for part in (5, 20, 50, 100)})
    remarks = (
        f" The source is {config.source}, searched with as many policies; {config.machine}, budget at {config.place:g} "
        f"of the way from the fewest bits to 8. The new agent's first {min(20, config.episodes // 5)} policies are its "
        "warm-up, at random. The level is what both agents reached in the end, the lower of the two for each seed; "
        "counted are the policies until then. The paper reports transfer to MobileNet-V2 in words and one figure, "
        "without numbers that we can stand beside."
    )
    text = differs(subjects[config.target], config, remarks)
    headers = ("agent", *(f"best of {count}, %" for count in moments), "policies to the level", "report, %")
    needed = dict(zip(curves, zip(*map(until_level, *curves.values()), strict=True), strict=True))
    rows = []
    for name, each in curves.items():
        best = [format_mean([curve[count - 1] for curve in each], 100) for count in moments]
        report = format_mean([r["report"] for r in results.records if r["agent"] == name], 100)
        rows.append((name, *best, format_mean(needed[name], digits=0), report))
    figures = {"transfer": draw(curves, reference)}
    title = f"HAQ's agent from {config.source} to {config.target}"
    return results.finish(title, headers, rows, [text], figures, reference=reference, policies_to_level=needed)


def until_level(new: np.ndarray, transferred: np.ndarray) -> tuple[int, int]:
    """Counts policies until each of two searches first has what both have in the end.

    >>> until_level(np.array([np.nan, 0.5, 0.75, 0.75]), np.array([0.75, 0.75, 0.75, 1.0]))
    (3, 1)
    """
    level = min(new[-1], transferred[-1])  # a search that found nothing has raised an error
    return int(np.argmax(new >= level)) + 1, int(np.argmax(transferred >= level)) + 1


def draw(curves: dict[str, Sequence[np.ndarray]], reference: float) -> Figure:
    """Draws best so far over episodes: each seed thin, the mean thick."""
    figure = Figure(figsize=(WIDTH * 0.7, 2.8), layout="constrained")
    axes = figure.subplots()
    outline_axes(axes, "best so far, search split, %")
    axes.set_xlabel("policies evaluated", fontsize=TEXT)
    for (name, each), colour, style in zip(curves.items(), ("#c8590a", "#23679e"), ("--", "-"), strict=True):
        episodes = np.arange(1, len(each[0]) + 1)
        for curve in each:
            axes.plot(episodes, 100 * curve, style, color=colour, lw=0.6, alpha=0.5)
        axes.plot(episodes, 100 * np.mean(each, axis=0), style, color=colour, lw=1.8, label=f"{name} agent")
    axes.axhline(100 * reference, color="0.4", lw=0.8, ls=":", label="float")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=TEXT, frameon=False)
    return figure


if __name__ == "__main__":
    launch(main, Config, __doc__)
