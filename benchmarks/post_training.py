"""What do the options of calibration change, without any fine-tuning?

    python benchmarks/post_training.py --shared ../shared/data

ResNet-20 on CIFAR-10 and MobileNetV2 on ImageNet, uniform policies with the first and the last layer at 8 bits, and,
with `--everywhere`, with all layers at the width. Calibration sees training images only; accuracy is of images that
nothing was chosen by.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import records
import tyro

from haqjax import calibrate
from haqjax.data import Split, load
from haqjax.models import Network, load_pretrained
from haqjax.train import make_evaluate
from haqjax.types import FULL_PRECISION, WIDTHS

OPTIONS: dict[str, dict[str, Any]] = {
    "one clip a layer": dict(rounding="nearest", per_channel=False),
    "nearest": dict(rounding="nearest"),
    "nearest, largest": dict(rounding="nearest", method="max"),
    "nearest, divergence": dict(rounding="nearest", method="kl"),
    "nearest, bias corrected": dict(rounding="nearest", correct_bias=True),
    "output": dict(),
    "output, bias corrected": dict(correct_bias=True),
}
NETWORKS = {
    "resnet20": ("resnet20_cifar10.safetensors", "tfds:cifar10", (8, 6, 5, 4, 3), 64),
    "mobilenet_v2": ("mobilenet_v2_imagenet.safetensors", "folder:{}/imagenet", (8, 6, 5, 4), 8),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    shared: str = "../shared/data"
    networks: tuple[str, ...] = tuple(NETWORKS)
    images: int = 256  # to calibrate on
    most: int | None = None  # images to report on; None is all
    options: tuple[str, ...] = tuple(OPTIONS)
    everywhere: bool = False


def main(config: Config) -> list[dict]:
    """Measures and writes the figures of all networks."""
    figures = [bench(config, name) for name in config.networks]
    records.write("post_training", figures)
    return figures


def bench(config: Config, name: str) -> dict:
    """The figures of one network."""
    weights, source, widths, batch = NETWORKS[name]
    network, preprocessing = load_pretrained(str(Path(config.shared) / weights), name)
    data = load(source.format(config.shared), data_dir=str(Path(config.shared) / "tfds"), preprocessing=preprocessing)
    rows = np.random.default_rng(0).permutation(len(data.train))[: config.images]
    images = data.train.take(np.sort(rows)).images
    few = [images[at : at + batch] for at in range(0, len(images), batch)]
    report = data.report.take(np.arange(min(config.most or len(data.report), len(data.report))))
    found = {option: measure(config, network, few, report, widths, OPTIONS[option]) for option in config.options}
    return {"network": name, "images": len(report), "calibrated_on": len(images), "options": found}


def measure(config: Config, network: Network, few: list, report: Split, widths: tuple[int, ...], choice: dict) -> dict:
    """Seconds to calibrate, and accuracies by policy."""
    start = time.perf_counter()
    ranges = calibrate(network.apply, network.params, few, **choice)
    calibrated = time.perf_counter() - start
    judge = make_evaluate(network.apply, network.params, report, ranges)
    count = len(ranges.signed)
    named = {"float": np.full((count, 2), FULL_PRECISION)}
    for bits in widths:
        if config.everywhere:
            named[f"{bits} everywhere"] = np.full((count, 2), bits)
        named[f"{bits}"] = np.full((count, 2), bits)
        named[f"{bits}"][[0, -1]] = WIDTHS
    accuracy = np.asarray(jax.jit(lambda judge, policies: judge(policies))(judge, jnp.stack(list(named.values()))))
    return {"calibration_seconds": calibrated, "accuracy": dict(zip(named, accuracy.tolist(), strict=True))}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
