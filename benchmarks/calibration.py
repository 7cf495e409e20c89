"""How long does calibration take, with the levels that COMQ chooses, in a fresh process with nothing compiled?

    make bench        # or: python benchmarks/calibration.py
    python benchmarks/calibration.py --before ../old-checkout --networks toy,resnet20

Each measurement is a process of its own without a compilation cache, on 256 images as a search takes them. Two are
measured in turn where another checkout is named, so that a busy machine is busy for both. Processor seconds are of all
threads, and wait for nobody. `first` compiles; `again` is a second call in the same process.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHILD = "--child"
IMAGES, BATCH = 256, 64


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure calibration."""

    networks: str = "toy,resnet20,mobilenet_v2,resnet50"
    """With commas between."""
    before: str | None = None
    """Another checkout, to compare with."""
    repeats: int = 3
    """Processes each; the least seconds count."""


def make_case(name: str) -> tuple:
    """Makes a network, its parameters and batches: two layers, or one of the zoo on digits of 32 pixels."""
    import jax
    import jax.numpy as jnp

    from haqjax.data import load
    from haqjax.models import build

    if name != "toy":
        network, data = build(name, classes=10, image_size=32, key=jax.random.key(0)), load("digits", image_size=32)
        images = data.train.images[:IMAGES]
        return network.apply, network.params, [images[at : at + BATCH] for at in range(0, IMAGES, BATCH)]

    def apply(params: dict, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y).reshape(len(x), -1) @ params["dense"]

    first, second, third = jax.random.split(jax.random.key(0), 3)
    params = {"conv": jax.random.normal(first, (3, 3, 1, 4)), "dense": jax.random.normal(second, (36, 3))}
    return apply, params, [jax.random.normal(third, (BATCH, 6, 6, 1)), jnp.ones((BATCH, 6, 6, 1))]


def calibrate_twice(name: str) -> dict[str, float]:
    """Calibrates in this process; seconds of the clock and of processors."""
    from haqjax import calibrate

    apply, params, batches = make_case(name)
    found = {}
    for call in ("first", "again"):
        clock, processor = time.perf_counter(), time.process_time()
        calibrate(apply, params, batches)
        found[call] = time.perf_counter() - clock
        found[f"{call}_processor"] = time.process_time() - processor
    return found


def ask(name: str, checkout: Path) -> dict[str, float]:
    """Measures in another process, with the package of a checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment |= {"PYTHONPATH": str(checkout)}
    words = [sys.executable, str(Path(__file__).resolve()), CHILD, name]
    done = subprocess.run(words, env=environment, cwd=checkout, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> None:
    """Measures and writes."""
    import records

    checkouts = {"now": ROOT} | ({"before": Path(config.before).resolve()} if config.before else {})
    figures: dict[str, Any] = {}
    for name in config.networks.split(","):
        runs: dict[str, list[dict[str, float]]] = {which: [] for which in checkouts}
        for _ in range(config.repeats):
            for which, checkout in checkouts.items():
                runs[which].append(ask(name, checkout))
        least = {which: {key: min(run[key] for run in each) for key in each[0]} for which, each in runs.items()}
        if config.before:
            least["ratio"] = {key: least["now"][key] / least["before"][key] for key in least["now"]}
        figures[name] = least
        print(name, least, flush=True)
    records.write("calibration", {"seconds": figures, "before": config.before and Path(config.before).name})


if __name__ == "__main__":
    if CHILD in sys.argv:
        print(json.dumps(calibrate_twice(sys.argv[-1])))
    else:
        import tyro

        main(tyro.cli(Config, description=__doc__))
