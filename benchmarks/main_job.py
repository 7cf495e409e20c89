"""How long does the main job take, from empty caches and again, and what does it find?

    make bench        # or: python benchmarks/main_job.py
    python benchmarks/main_job.py --before ../old-checkout

Each run is the command of `make search` in a process of its own, installation left out. The first of two begins with
nothing trained, tuned or compiled. With another checkout both are run in turn, each with what is its own default.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import records
import tyro

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the main job."""

    jobs: str = "resnet50:cloud,mobilenet_v2:edge"
    """Network and machine of each, with commas between."""
    before: str | None = None
    """Another checkout, to compare with."""


def run(checkout: Path, model: str, hw: str, cache: Path, out: Path) -> float:
    """Runs the command of a checkout; seconds of the clock."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {"PYTHONPATH": str(checkout), "HAQJAX_CACHE": str(cache)}
    words = [sys.executable, "-m", "haqjax", "search", "--model", model, "--hw", hw, "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(words, env=environment, cwd=checkout, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def read_front(out: Path) -> dict[str, Any]:
    """Reads what was found within each budget, on the report split; nothing of a run within one budget."""
    path = out / "front.json"
    if not path.is_file():
        return {}
    front = json.loads(path.read_text())
    rows = [
        {
            "budget": row["budget"]["fraction"],
            "found": row["accuracies"]["report"],
            "uniform": row["uniform"]["accuracies"]["report"],
            "uniform_bits": row["uniform"]["bits"],
        }
        for row in front["policies"]
    ]
    return {"evaluations": front["episodes"], "float": front["float"]["accuracies"]["report"], "front": rows}


def bench(checkout: Path, model: str, hw: str) -> dict[str, Any]:
    """Runs one job twice."""
    with tempfile.TemporaryDirectory() as folder:
        cache, outs = Path(folder) / "cache", [Path(folder) / name for name in ("first", "again")]
        seconds = [run(checkout, model, hw, cache, out) for out in outs]
        return {"seconds": dict(zip(("first", "again"), seconds, strict=True)), **read_front(outs[0])}


def main(config: Config) -> None:
    """Measures and writes."""
    checkouts = {"now": ROOT} | ({"before": Path(config.before).resolve()} if config.before else {})
    figures = {}
    for job in config.jobs.split(","):
        figures[job] = {which: bench(checkout, *job.split(":")) for which, checkout in checkouts.items()}
        print(job, figures[job], flush=True)
    records.write("main-job", figures)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
