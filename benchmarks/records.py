"""Records of benchmarks: figures, with the device, the versions and the commit."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def _find_commit() -> str:
    """Finds the commit, and whether anything but results differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent)

    commit = git("describe", "--always").stdout.strip() or "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results").returncode == 1
    return f"{commit}-dirty" if changed else commit


COMMIT = _find_commit()  # at the start: what is committed while a benchmark runs is not what it measures


def measure(run: Callable[[], Any], repeats: int = 5) -> float:
    """Measures the least wall-clock seconds of several runs, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def measure_in_turn(runs: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Measures the least seconds of each, in turn in every round, so that a noisy machine is noisy for all alike."""
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: min(taken) for name, taken in times.items()}


def matmul_limit(size: int = 2048, dtype: str = "float32") -> float:
    """Measures operations a second of one large matrix product here: the limit that figures are held against."""
    a = jax.random.randint(jax.random.key(0), (size, size), -100, 100).astype(dtype)
    sums = "int32" if dtype == "int8" else "float32"
    product = jax.jit(lambda a: jax.numpy.matmul(a, a, preferred_element_type=sums))
    return 2 * size**3 / measure(lambda: product(a))


def write(name: str, figures: Any) -> None:
    """Writes results/NAME.json and prints it."""
    record = {"benchmark": name, "device": _device(), "versions": _versions(), "commit": COMMIT, "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    backend = jax.default_backend()
    path = RESULTS / (f"{name}.json" if backend == "cpu" else f"{name}-{backend}.json")
    text = json.dumps(record, indent=2, default=lambda x: np.asarray(x).tolist())
    path.write_text(text + "\n")
    print(text)


def _device() -> str:
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}, {os.cpu_count()} CPU cores ({_processor()})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    wanted = ("haqjax", "jax", "jaxlib", "flax", "numpy", "torch")
    there = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in wanted if n in there}
