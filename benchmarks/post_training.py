"""What do the options of calibration change, without any fine-tuning, and what does a quantised evaluation cost?

    python benchmarks/post_training.py                     # 20 minutes; or: --networks resnet20 --most 500

ResNet-20 on CIFAR-10 and MobileNetV2 on ImageNet, uniform policies with the first and the last layer at 8 bits, and,
with `--everywhere`, with all layers at the width. Calibration sees training images only. Options are to be compared on
the images of the search; accuracy on those of the report, which nothing is chosen by, stands beside it. Both networks
were trained on the images of the search: only differences to float count there.

Time: a policy on all images of the report against the network in floating point with the same faster forms of its
layers, in turn in one process.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import records
import tyro

from haqjax import calibrate
from haqjax.cli import keep_compiled_programs
from haqjax.data import Split, load
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.batches import suggest_batch_size
from haqjax.models import Network, equalise, load_pretrained, restore_batchnorm
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.training import reestimate_statistics
from haqjax.types import FULL_PRECISION, WIDTHS, Evaluation, Evaluator

NEAREST, OUTPUT = dict(rounding="nearest", correct_bias=False), dict(rounding="output", correct_bias=False)
OPTIONS: dict[str, dict[str, Any]] = {
    "nearest, one clip a layer": NEAREST | dict(per_channel=False),
    "nearest": NEAREST,
    "nearest, largest": NEAREST | dict(method="max"),
    "nearest, divergence": NEAREST | dict(method="kl"),
    "nearest, bias corrected": NEAREST | dict(correct_bias=True),
    "nearest, equalised": NEAREST | dict(equalised=True),
    "nearest, statistics measured again": NEAREST | dict(again=True),
    "output": OUTPUT,
    "output, divergence": OUTPUT | dict(method="kl"),
    "output, bias corrected": dict(),  # the default
    "output, equalised": OUTPUT | dict(equalised=True),
    "output, bias corrected, equalised": dict(equalised=True),
    "output, statistics measured again": OUTPUT | dict(again=True),
}
NETWORKS = {
    "resnet20": ("resnet20_cifar10.safetensors", "tfds:cifar10", (8, 6, 5, 4, 3), 64),
    "mobilenet_v2": ("mobilenet_v2_imagenet.safetensors", "folder:{}/imagenet", (8, 6, 5, 4), 8),
}
AGAIN = {"resnet20": 2560, "mobilenet_v2": 640}  # images for the statistics of batch norm, in batches
TOGETHER = {"resnet20": 64, "mobilenet_v2": 16}  # of so many


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    shared: Path = Path(__file__).parents[2] / "shared" / "data"
    networks: tuple[str, ...] = tuple(NETWORKS)
    images: int = 256  # to calibrate on
    search: int = 1000  # images to compare options on, at most
    most: int | None = None  # images to report on; None is all
    options: tuple[str, ...] = tuple(OPTIONS)
    everywhere: bool = False
    name: str = "post_training"  # of the result


def main(config: Config) -> list[dict]:
    """Measures and writes the figures of all networks."""
    figures = [bench(config, name) for name in config.networks]
    records.write(config.name, figures)
    return figures


def bench(config: Config, name: str) -> dict:
    """Measures one network."""
    weights, source, widths, batch = NETWORKS[name]
    network, preprocessing = load_pretrained(str(config.shared / weights), name)
    data = load(source.format(config.shared), data_dir=str(config.shared / "tfds"), preprocessing=preprocessing)
    rows = np.random.default_rng(0).permutation(len(data.train))[: config.images]
    images = data.train.take(np.sort(rows)).images
    few = [images[at : at + batch] for at in range(0, len(images), batch)]
    splits = {"search": first(data.search, config.search), "report": first(data.report, config.most)}
    print(name, {split: len(found) for split, found in splits.items()}, flush=True)
    more, size = first(data.train, AGAIN[name]).images, TOGETHER[name]
    more = [more[at : at + size] for at in range(0, len(more) - size + 1, size)]
    found = {}
    for option in config.options:
        found[option] = measure(config, network, few, more, splits, widths, dict(OPTIONS[option]))
        print(name, option, found[option], flush=True)
    return {
        "network": name,
        "images": {split: len(s) for split, s in splits.items()},
        "calibrated_on": len(images),
        "options": found,
        "time": bench_time(network, few, splits["report"]),
    }


def first(split: Any, most: int | None) -> Split:
    """Takes the first images of a split."""
    return split.take(np.arange(min(most or len(split), len(split))))


def measure(
    config: Config,
    network: Network,
    few: list,
    more: list,
    splits: dict[str, Split],
    widths: tuple[int, ...],
    choice: dict,
) -> dict:
    """Measures seconds to calibrate, and accuracies by policy."""
    equalised, again = choice.pop("equalised", False), choice.pop("again", False)
    params = network.params
    if equalised and network.name.startswith("mobilenet"):
        params = equalise(network, params, few)
    if again and network.name.startswith("mobilenet"):  # whose batch norm is folded
        params = restore_batchnorm(network, params, more)
    start = time.perf_counter()
    ranges = calibrate(network.apply, params, few, **choice)
    calibrated = time.perf_counter() - start
    found: dict[str, Any] = {"calibration_seconds": calibrated, "search": {}, "report": {}}
    for policy_name, policy in policies(len(ranges.signed), widths, config.everywhere).items():
        moved = params
        if again and policy_name != "float":
            moved = reestimate_statistics(network.apply_train, params, policy, ranges, more)
        for split, images in splits.items():
            evaluator = make_evaluator(network.apply, moved, images, ranges)
            found[split][policy_name] = float(evaluate(evaluator, policy[None]).accuracy[0])
    return found


def policies(count: int, widths: tuple[int, ...], everywhere: bool) -> dict[str, jax.Array]:
    """Makes uniform policies by name."""
    named = {"float": np.full((count, 2), FULL_PRECISION)}
    for bits in widths:
        if everywhere:
            named[f"{bits} everywhere"] = np.full((count, 2), bits)
        named[f"{bits}"] = np.full((count, 2), bits)
        named[f"{bits}"][[0, -1]] = WIDTHS
    return {name: jnp.asarray(policy) for name, policy in named.items()}


@jax.jit
def evaluate(evaluator: Evaluator, policies: jax.Array) -> Evaluation:
    """Evaluates policies in one compiled program."""
    return evaluator(policies)


def bench_time(network: Network, few: list, split: Split) -> dict:
    """Measures seconds of one policy on all images of a split, beside the float network."""
    ranges = calibrate(network.apply, network.params, few[:4])
    evaluator = make_evaluator(network.apply, network.params, split, ranges)
    apply = with_hook(network.apply, use_cpu_kernels)

    @jax.jit
    def count(params: Any, batches: jax.Array, labels: jax.Array) -> jax.Array:
        def right(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            return (apply(params, batch[0]).argmax(-1) == batch[1]).sum()

        return jax.lax.map(right, (batches, labels)).sum()

    two = jnp.stack([jnp.full((len(ranges.signed), 2), bits) for bits in (8, 4)])
    runs = {
        "policy": functools.partial(evaluate, evaluator, two),
        "float": functools.partial(count, network.params, evaluator.images, evaluator.labels),
    }
    seconds = records.measure_in_turn(runs, 3)
    seconds["policy"] /= len(two)
    return {
        "images": len(split),
        "images_at_a_time": suggest_batch_size(split.images.shape[1] * split.images.shape[2]),
        "seconds": seconds,
        "ratio": seconds["policy"] / seconds["float"],
    }


if __name__ == "__main__":
    keep_compiled_programs()
    main(tyro.cli(Config, description=__doc__))
