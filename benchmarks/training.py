"""How many epochs does the float network of a search need?

    python benchmarks/training.py --networks mobilenet_v2,resnet50

Trains the networks of `haqjax.training.RECIPES` on the digits at 32 pixels, with fewer epochs and the rest of the
recipe as it is, from several seeds; top-1 on the report split, by which nothing is chosen, with the standard error of
its images. Processor seconds are of all threads, with compilation.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import records
import tyro

from haqjax.data import load
from haqjax.evaluation import measure_accuracy
from haqjax.models import build
from haqjax.training import RECIPES, fit


@dataclasses.dataclass(frozen=True)
class Config:
    """Train with fewer epochs."""

    networks: str = "mobilenet_v2,resnet50"
    """With commas between."""
    fractions: tuple[float, ...] = (1.0, 0.75, 0.5, 0.375)
    """Of the recipe's epochs."""
    seeds: int = 3
    image_size: int = 32


def train(name: str, epochs: int, seed: int, data: Any) -> dict[str, float]:
    """Trains once; top-1 on the search and the report split, and processor seconds."""
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    fresh = build(name, classes=data.classes, image_size=data.search.images.shape[1], key=init_key)
    started = time.process_time()
    params = jax.block_until_ready(fit(fresh, data.train, **RECIPES[name] | {"epochs": epochs}, key=fit_key))
    spent = time.process_time() - started
    search, report = (float(measure_accuracy(fresh.apply, params, split).value) for split in (data.search, data.report))
    return {"search": search, "report": report, "processor_seconds": spent}


def main(config: Config) -> None:
    """Measures and writes."""
    data = load("digits", image_size=config.image_size)
    figures: dict[str, Any] = {"images": len(data.report)}
    for name in config.networks.split(","):
        for fraction in config.fractions:
            epochs = max(1, round(fraction * RECIPES[name]["epochs"]))
            runs = [train(name, epochs, seed, data) for seed in range(config.seeds)]
            mean = float(np.mean([run["report"] for run in runs]))
            error = float(np.sqrt(mean * (1 - mean) / len(data.report)))
            figures.setdefault(name, {})[epochs] = {"report": mean, "standard_error": error, "runs": runs}
            print(name, epochs, figures[name][epochs], flush=True)
    records.write("training", figures)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
