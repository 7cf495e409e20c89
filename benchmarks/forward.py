"""What does a quantised forward pass cost, per image and policy, against the same network in floating point?

    make bench        # or: python benchmarks/forward.py

MobileNetV2 at 32, 96 and 224 pixels: quantised under 4 policies one after another, float with the same faster forms of
the layers, float as XLA compiles the model, and PyTorch float in channels-last where PyTorch is installed. All in turn
in one process; the limit is the network's multiply-accumulates at the speed of a large matrix product.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import records

from haqjax import calibrate, layers
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.batches import split_into_batches, suggest_batch_size
from haqjax.models import build
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook

IMAGES = {32: 256, 96: 64, 224: 16}
POLICIES = 4


def torch_network():
    """Makes MobileNetV2 of 1,000 classes in PyTorch, for the time only: its weights are random."""
    from torch import nn

    def block(c_in, c_out, kernel, stride=1, groups=1, activate=True):
        parts = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
        return nn.Sequential(*parts, *([nn.ReLU6(True)] if activate else []))

    class Bottleneck(nn.Module):
        def __init__(self, c_in, c_out, stride, expand):
            super().__init__()
            wide = c_in * expand
            widen = [block(c_in, wide, 1)] if expand > 1 else []
            self.body = nn.Sequential(*widen, block(wide, wide, 3, stride, wide), block(wide, c_out, 1, activate=False))
            self.residual = stride == 1 and c_in == c_out

        def forward(self, x):
            return x + self.body(x) if self.residual else self.body(x)

    parts, c_in = [block(3, 32, 3, 2)], 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, c_out, count, stride in stages:
        for number in range(count):
            parts.append(Bottleneck(c_in, c_out, stride if number == 0 else 1, expand))
            c_in = c_out
    parts += [block(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*parts).eval()


def torch_run(size, count):
    """Makes a run of the PyTorch network on one batch, or none where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    network = torch_network().to(memory_format=torch.channels_last)
    x = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return network(x).numpy()

    return {"pytorch_float": run}


def bench(size):
    """Measures at one image size."""
    network = build("mobilenet_v2", classes=1000, image_size=size, key=jax.random.key(0))
    count, batch = IMAGES[size], suggest_batch_size(size * size)
    images = np.asarray(jax.random.normal(jax.random.key(1), (count, size, size, 3)))
    split = Split(images, np.zeros(count, np.int32))
    ranges = calibrate(network.apply, network.params, [images[:batch]])
    policies = jnp.full((POLICIES, len(ranges.signed), 2), 6)
    evaluate = jax.jit(lambda evaluator, policies: evaluator(policies))
    evaluator = make_evaluator(network.apply, network.params, split, ranges)
    batches, _ = split_into_batches(split, min(batch, count))

    def over_batches(apply, params, batches):
        return jax.lax.map(lambda x: apply(params, x).argmax(-1), batches)

    floats = {
        name: functools.partial(jax.jit(functools.partial(over_batches, apply)), network.params, batches)
        for name, apply in (
            ("float", with_hook(network.apply, use_cpu_kernels)),
            ("float_as_xla_compiles_it", network.apply),
        )
    }
    runs = {"quantised": lambda: evaluate(evaluator, policies), **floats, **torch_run(size, min(batch, count))}
    images_of = {"quantised": count * POLICIES, "pytorch_float": min(batch, count)}
    seconds = records.measure_in_turn(runs)
    per_image = {name: 1e3 * taken / images_of.get(name, count) for name, taken in seconds.items()}
    macs = int(layers(network.apply, network.params, network.example).macs.sum())
    limit = 1e3 * 2 * macs / records.matmul_limit()
    return {
        "pixels": size,
        "images_at_a_time": batch,
        "ms_per_image_and_policy": per_image,
        "quantised_over_float": per_image["quantised"] / per_image["float"],
        "limit_ms": limit,
        "quantised_over_limit": per_image["quantised"] / limit,
    }


if __name__ == "__main__":
    records.write("forward", [bench(size) for size in IMAGES])
