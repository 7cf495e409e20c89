"""What does fine-tuning win back at low widths, and how many images a second does it take in?

    python benchmarks/finetune.py              # or: --data FOLDER --epochs 3 --only 4/4 3/3 2-kmeans speed search

ResNet-20 with published weights on a subset of CIFAR-10: 18,000 training images to fine-tune on, 2,000 others of the
training split, and 5,000 test images. Accuracy with 4 and 3 bits throughout, and with 2-bit k-means weights beside
8-bit activations, first and last layer at 8 bits. Speed of a training step beside PyTorch's fake quantisation of the
same network, in turn in one process. Seconds a policy where a search fine-tunes each policy it evaluates.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import records

from haqjax import calibrate, layers
from haqjax.data import load
from haqjax.evaluation import make_evaluator, make_finetuned_evaluator
from haqjax.models import load_pretrained
from haqjax.quantizers.codebook import make_codebook
from haqjax.quantizers.trainable import begin
from haqjax.training import Tuning, finetune_all
from haqjax.training.finetuning import make_program
from haqjax.training.steps import begin_state, take_step

SHARED = Path(__file__).parents[2] / "shared" / "data"
TUNING = Tuning(
    epochs=3,
    batch_size=64,
    learning_rate=0.01,
    clip_rate=0.01,
    weight_decay=1e-4,
    shift=4,
    flip=True,
    smoothing=0.0,
    distill=1.0,
)
KMEANS = dataclasses.replace(TUNING, codebook_rate=0.01)
CASES = {"4/4": (4, 4, TUNING), "3/3": (3, 3, TUNING), "2-kmeans": (2, 8, KMEANS)}  # weight bits, activation bits
BATCH = 64  # images of a timed step
STEPS, POLICIES = 8, 4  # of fine-tuning inside a search


def read(folder):
    """Reads the network and the data; makes ranges with and without k-means weights."""
    network, preprocessing = load_pretrained(str(folder / "resnet20_cifar10.safetensors"), "resnet20")
    data = load("tfds:cifar10", data_dir=str(folder / "tfds"), preprocessing=preprocessing)
    few = [data.train.images[start : start + 128] for start in range(0, 512, 128)]
    linear = calibrate(network.apply, network.params, few)
    clustered = dataclasses.replace(linear, codebook=make_codebook(network.apply, network.params, network.example))
    return network, data, linear, clustered


def make_policy(count, weight_bits, activation_bits):
    """Makes a policy of the same widths throughout, but for the first and the last layer."""
    policy = np.tile([weight_bits, activation_bits], (count, 1))
    policy[[0, -1]] = 8
    return jnp.asarray(policy)


def measure_accuracy(network, params, ranges, policy, data):
    """Measures accuracy and its standard error, in per cent, on the images of the search and of the report."""
    found = {}
    for name in ("search", "report"):
        split = getattr(data, name)
        right = float(make_evaluator(network.apply, params, split, ranges)(policy[None]).accuracy[0])
        found[name] = {"percent": 100 * right, "standard_error": 100 * (right * (1 - right) / len(split)) ** 0.5}
    return found


def bench_accuracy(network, data, ranges, case, epochs):
    """Measures one pair of widths, before and after fine-tuning."""
    weight_bits, activation_bits, tuning = CASES[case]
    tuning = dataclasses.replace(tuning, epochs=epochs or tuning.epochs)
    policy = make_policy(len(ranges.signed), weight_bits, activation_bits)
    whole = measure_accuracy(network, network.params, ranges, jnp.full_like(policy, 32), data)
    before = measure_accuracy(network, network.params, ranges, policy, data)
    curve, start = [], time.perf_counter()
    world = (network.apply, network.params, policy, ranges, data.train, tuning)
    options = dict(apply_train=network.apply_train, on_epoch=lambda progress: curve.append(progress._asdict()))
    tuned = finetune_all(*world, key=jax.random.key(0), **options)
    seconds = time.perf_counter() - start
    after = measure_accuracy(network, *tuned, policy, data)
    return {
        "case": case,
        "tuning": dataclasses.asdict(tuning),
        "images": {"train": len(data.train), "search": len(data.search), "report": len(data.report)},
        "float": whole,
        "before": before,
        "after": after,
        "points_below_float": whole["report"]["percent"] - after["report"]["percent"],
        "seconds_with_compilation": seconds,
        "images_a_second_with_compilation": tuning.epochs * len(data.train) / seconds,
        "epochs": curve,
    }


def torch_steps():
    """Makes training steps of ResNet-20 in PyTorch, float and with 4-bit fake quantisation; none without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    from torch import nn
    from torch.nn import functional

    class Convolution(nn.Conv2d):
        """Weights per output channel, to their largest; activations per tensor, to a clip that is held."""

        quantised = True

        def forward(self, x):
            if not self.quantised:
                return super().forward(x)
            x = torch.fake_quantize_per_tensor_affine(x, 2.0 / 15, 0, 0, 15)
            scale = self.weight.detach().abs().amax((1, 2, 3)) / 7
            zero = torch.zeros_like(scale, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zero, 0, -7, 7)
            return functional.conv2d(x, weight, None, self.stride, self.padding)

    class Block(nn.Module):
        def __init__(self, c_in, c_out, stride):
            super().__init__()
            self.first, self.second = Convolution(c_in, c_out, 3, stride, 1, bias=False), None
            self.second = Convolution(c_out, c_out, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)])
            self.stride, self.missing = stride, (c_out - c_in) // 2

        def forward(self, x):
            y = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)))))
            shortcut = x[:, :, :: self.stride, :: self.stride]
            return functional.relu(y + functional.pad(shortcut, (0, 0, 0, 0, self.missing, self.missing)))

    channels = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 + (a != b)) for a, b in zip(channels, channels[1:], strict=False)]
    stem = [Convolution(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    network = network.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step(quantised):
        Convolution.quantised = quantised
        sgd.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        sgd.step()

    return {"pytorch_fake_quantisation": lambda: step(True), "pytorch_float": lambda: step(False)}


def our_steps(network, data, ranges):
    """Makes training steps of ours, compiled: clips held, clips learned, and with the float network as teacher."""
    held = dataclasses.replace(TUNING, clip_rate=0.0, distill=0.0)
    kinds = {
        "clips_held": held,
        "clips_learned": dataclasses.replace(held, clip_rate=0.01),
        "clips_learned_distilled": TUNING,
    }
    policy = make_policy(len(ranges.signed), 4, 4)
    images, labels = jnp.asarray(data.train.images[:BATCH]), jnp.asarray(data.train.labels[:BATCH])
    steps = {}
    for name, tuning in kinds.items():
        objective, optimiser = make_program(network.apply, network.apply_train, tuning, 100)
        learned = begin(network.params, policy, ranges)
        state = begin_state(learned, optimiser.init(learned))
        step = jax.jit(lambda *arguments, o=objective, d=optimiser: take_step(o, d, *arguments))
        context = (policy, ranges, network.params if tuning.distill else None)
        steps[name] = lambda step=step, state=state, context=context: step(state, images, labels, context)
    return steps


def bench_speed(network, data, ranges, repeats):
    """Measures images a second of a training step, ours and PyTorch's."""
    seconds = records.measure_in_turn({**our_steps(network, data, ranges), **torch_steps()}, repeats)
    macs = int(layers(network.apply, network.params, network.example).macs.sum())
    limit = records.matmul_limit() / (3 * 2 * macs)  # forward, by the input, by the weight
    found = {name: BATCH / taken for name, taken in seconds.items()}
    figures = {"batch": BATCH, "images_a_second": found, "arithmetic_limit": limit}
    if "pytorch_fake_quantisation" in found:
        figures["clips_held_over_pytorch"] = found["clips_held"] / found["pytorch_fake_quantisation"]
    return figures | {"share_of_limit": found["clips_held"] / limit}


def bench_search(network, data, ranges):
    """Measures seconds a policy and step inside a search, beside the same step on its own."""
    tuning = dataclasses.replace(TUNING, clip_rate=0.0, distill=0.0)
    world = (network.apply, network.params, data.search.take(np.arange(256)), ranges)
    options = dict(steps=STEPS, key=jax.random.key(0), apply_train=network.apply_train)
    plain = make_evaluator(*world)
    tuned = make_finetuned_evaluator(*world, data.train, tuning, **options)
    run = jax.jit(lambda evaluator, policies: evaluator(policies).accuracy)
    policies = jnp.stack([make_policy(len(ranges.signed), 3, bits) for bits in (3, 4, 5, 6)][:POLICIES])
    step = our_steps(network, data, ranges)["clips_held"]
    runs = {"tuned": lambda: run(tuned, policies), "plain": lambda: run(plain, policies), "step": step}
    seconds = records.measure_in_turn(runs, 3)
    each = (seconds["tuned"] - seconds["plain"]) / POLICIES / STEPS
    return {
        "policies": POLICIES,
        "steps": STEPS,
        "batch": BATCH,
        "seconds_a_policy": seconds["tuned"] / POLICIES,
        "seconds_a_step_inside": each,
        "seconds_a_step_alone": seconds["step"],
        "accuracy_before": run(plain, policies),
        "accuracy_after": run(tuned, policies),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "speed", "search"], default=[*CASES, "speed", "search"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="finetune", help="of the result")
    asked = parser.parse_args()
    network, data, linear, clustered = read(asked.data)
    figures = {}
    for case in asked.only:
        if case in CASES:
            figures[case] = bench_accuracy(network, data, clustered if "kmeans" in case else linear, case, asked.epochs)
            print(case, figures[case]["before"], figures[case]["after"], flush=True)  # the rest takes minutes
    if "speed" in asked.only:
        figures["speed"] = bench_speed(network, data, linear, asked.repeats)
    if "search" in asked.only:
        figures["search"] = bench_search(network, data, linear)
    records.write(asked.name, figures)
