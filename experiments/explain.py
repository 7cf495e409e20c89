r"""Why do policies differ between edge and cloud? The roofline, the bits per layer, and what the paper reads from them.

    python experiments/explain.py --quick
    python experiments/explain.py --out runs/explain
    python experiments/explain.py --model mobilenet_v2 --data tfds:cifar10 --data-dir ../shared/data/tfds
    python experiments/explain.py --data folder:../shared/data/imagenet --halve-report \
        --weights '../shared/data/{model}_imagenet.safetensors'
    python experiments/explain.py --data tfds:imagenet2012 --data-dir DIR --images 2000 \
        --weights 'hf:google/{model}_1.0_224'

The paper's reading, tested on our policies: on the edge, which is short of bandwidth, depthwise layers get few
activation bits; on the cloud depthwise layers get more bits, and pointwise layers fewer. A claim holds where the mean
over layers points its way with every seed. Expected: the claims about activation bits hold, because the time of
depthwise layers follows these alone; weights cost them no time on either machine, so that a claim about both need not.
Takes 4 minutes on 2 CPU cores, half a minute with --quick.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from common import Subject, differs, find, limit_between, make_table, measure, open_machine, pose, prepare
from matplotlib.figure import Figure
from options import Options, launch
from results import Results, format_mean

from haqjax import budget
from haqjax.hardware import find_limits
from haqjax.hardware.usage import LIMITS
from haqjax.policies.bounds import make_bounds
from haqjax.report import bits_figure
from haqjax.report.static.roofline import roofline_figure
from haqjax.run.rooflines import find_rooflines
from haqjax.types import CostTable

MACHINES = ("edge", "cloud")
COLUMNS = ("weight", "activation")
KINDS = ("depthwise", "pointwise")
USUAL = 4  # bits, about what the budgets leave


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Search on edge and cloud, and look at the policies."""

    out: str = "runs/explain"
    model: str = "mobilenet_v1"
    place: float = 0.25
    """Of each machine's budget between its latency at the fewest bits (0) and at 8 bits (1)."""


def main(config: Config) -> dict:
    """Searches on both machines; returns the folder, the records, and which claims hold."""
    config = config.small()
    results = Results(config)
    if not config.model.startswith("mobilenet"):
        raise ValueError(
            f"model {config.model!r} has no depthwise layers to look at: give mobilenet_v1 or mobilenet_v2"
        )
    subject = prepare(config, config.model)
    limits = make_bounds(subject.layers)
    best: dict[str, np.ndarray] = {}
    for hw in MACHINES:
        table = make_table(subject, hw)
        problem = pose(subject, table, budget(table, latency_s=limit_between(table, limits, config.place)))
        found = [find(config, problem, seed) for seed in range(config.seeds)]
        reported = measure(subject, [result.policy for result in found])
        for seed, (result, report) in enumerate(zip(found, reported.accuracy, strict=True)):
            results.add(
                machine=hw,
                seed=seed,
                search=result.accuracy,
                report=float(report),
                **mean_bits(subject, result.policy),
                policy=result.policy,
            )
        best[hw] = max(found, key=lambda result: (result.accuracy, -result.loss)).policy
    claims = check_claims(results.records)
    reasons = [line for hw in MACHINES for line in explain(subject, hw, make_table(subject, hw))]
    lines = [f"* {'holds' if holds else 'does not hold'}: {claim} ({gap})" for claim, holds, gap in claims]
    remarks = (
        f" Budgets lie {config.place:g} of the way from the latency at the fewest bits to that at 8. Mean bits are "
        "over layers, without the first and the last. The paper's reading is of its policies for MobileNets on "
        "ImageNet, known to us from a third party's notes."
    )
    text = differs(subject, config, remarks)
    kinds = [f"{kind} {column}" for kind in KINDS for column in COLUMNS]
    return results.finish(
        f"Edge and cloud policies of {config.model}",
        ("mean bits", *kinds, "search, %", "report, %"),
        [_row(hw, results.records) for hw in MACHINES],
        ["\n".join(lines), "\n".join(reasons), text],
        draw(subject, best),
        claims={claim: holds for claim, holds, _ in claims},
    )


def mean_bits(subject: Subject, policy: np.ndarray) -> dict[str, float]:
    """Computes mean bits of depthwise and pointwise layers that were searched."""
    inner = np.arange(len(policy)) % (len(policy) - 1) != 0
    return {
        f"{kind}_{column}": float(policy[np.asarray(getattr(subject.layers, kind)) & inner, at].mean())
        for kind in KINDS
        for at, column in enumerate(COLUMNS)
    }


def check_claims(records: Sequence[dict]) -> list[tuple[str, bool, str]]:
    """Checks each claim of the paper: whether it holds with every seed, and the differences in bits."""
    of = {hw: [record for record in records if record["machine"] == hw] for hw in MACHINES}

    def read(hw: str, name: str) -> np.ndarray:
        return np.array([record[name] for record in of[hw]])

    def both(hw: str, kind: str) -> np.ndarray:
        return (read(hw, f"{kind}_weight") + read(hw, f"{kind}_activation")) / 2

    gaps = {
        "on the edge depthwise layers get fewer activation bits than pointwise ones": read(
            "edge", "pointwise_activation"
        )
        - read("edge", "depthwise_activation"),
        "depthwise layers get more activation bits on the cloud than on the edge": read("cloud", "depthwise_activation")
        - read("edge", "depthwise_activation"),
        "depthwise layers get more bits, of weights and activations together, on the cloud than on the edge": both(
            "cloud", "depthwise"
        )
        - both("edge", "depthwise"),
        "pointwise layers get fewer bits on the cloud than on the edge": both("edge", "pointwise")
        - both("cloud", "pointwise"),
        "on the cloud depthwise layers get more bits than pointwise ones": both("cloud", "depthwise")
        - both("cloud", "pointwise"),
    }
    return [(claim, bool((gap > 0).all()), f"by {format_mean(gap, 1, 2)} bits") for claim, gap in gaps.items()]


def explain(subject: Subject, hw: str, table: CostTable) -> list[str]:
    """Explains the time of each kind of layer on a machine: what takes the longest, and what fewer bits save."""
    latency, limit = np.asarray(table.latency), find_limits(open_machine(hw), subject.layers).limit
    lines = []
    for kind in KINDS:
        flags = np.asarray(getattr(subject.layers, kind))
        time = latency[flags].sum(axis=0)  # [8, 8]: s at these bits of weights and activations
        waits = limit[flags, USUAL - 1, USUAL - 1] != LIMITS.index("compute")
        share = latency[flags, USUAL - 1, USUAL - 1][waits].sum() / time[USUAL - 1, USUAL - 1]
        saved = 1 - time[USUAL - 1, 7] / time[7, 7], 1 - time[7, USUAL - 1] / time[7, 7]
        lines.append(
            f"* {hw}, {kind} layers: {USUAL} instead of 8 bits of weights save {100 * saved[0]:.0f} % of the time, of "
            f"activations {100 * saved[1]:.0f} %; at {USUAL} bits {100 * share:.0f} % of it goes on waiting for DRAM."
        )
    return lines


def draw(subject: Subject, best: dict[str, np.ndarray]) -> dict[str, Figure]:
    """Draws the bits per layer and the roofline, on each machine."""
    network, limits = subject.layers, make_bounds(subject.layers)
    depthwise, pointwise = np.asarray(network.depthwise), np.asarray(network.pointwise)
    pinned = np.asarray(limits.low == limits.high)
    figures = {}
    for hw, policy in best.items():
        title = f"{subject.network.name}, {hw}"
        figures[f"bits-{hw}"] = bits_figure(network.names, policy, depthwise, pinned, title, pointwise=pointwise)
        rooflines = find_rooflines(open_machine(hw), network, policy)
        figures[f"roofline-{hw}"] = roofline_figure(rooflines, depthwise, pointwise, title)
    return figures


def _row(hw: str, records: Sequence[dict]) -> tuple[str, ...]:
    mine = [record for record in records if record["machine"] == hw]
    names = [f"{kind}_{column}" for kind in KINDS for column in COLUMNS]
    bits = [format_mean([record[name] for record in mine], 1, 2) for name in names]
    return (hw, *bits, *(format_mean([record[split] for record in mine], 100) for split in ("search", "report")))


if __name__ == "__main__":
    launch(main, Config, __doc__)
