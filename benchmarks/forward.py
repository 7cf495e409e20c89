"""What does a quantised forward pass cost, per image and policy, against the same network in floating point?

    make bench        # or: python benchmarks/forward.py

ResNet-50 and MobileNetV2 at several sizes: quantised under 4 policies one after another, in the arithmetic that tuning
finds fastest here; float with the same faster forms of the layers; float as XLA compiles the model; and PyTorch float
in channels-last where PyTorch is installed. All in turn in one process; the limit is the network's
multiply-accumulates at the speed of a large matrix product in float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import records

from haqjax import calibrate, layers
from haqjax.data import Split
from haqjax.evaluation import make_evaluator, tune_arithmetic
from haqjax.evaluation.batches import split_into_batches, suggest_batch_size
from haqjax.models import build
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook

IMAGES = {("mobilenet_v2", 32): 512, ("mobilenet_v2", 96): 128, ("mobilenet_v2", 224): 32}
IMAGES |= {("resnet50", 32): 256, ("resnet50", 224): 16}
POLICIES = 4


def torch_network(name):
    """Makes a network of 1,000 classes in PyTorch, for the time only: its weights are random."""
    from torch import nn

    def block(c_in, c_out, kernel, stride=1, groups=1, activate=True, act=nn.ReLU6):
        parts = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
        return nn.Sequential(*parts, *([act(True)] if activate else []))

    class Residual(nn.Module):
        """An inverted residual of MobileNetV2, or a bottleneck of ResNet."""

        def __init__(self, body, skip, end):
            super().__init__()
            self.body, self.skip, self.end = body, skip, end

        def forward(self, x):
            y = self.body(x)
            return self.end(y if self.skip is None else y + self.skip(x))

    def inverted(c_in, c_out, stride, expand):
        wide = c_in * expand
        widen = [block(c_in, wide, 1)] if expand > 1 else []
        body = nn.Sequential(*widen, block(wide, wide, 3, stride, wide), block(wide, c_out, 1, activate=False))
        return Residual(body, nn.Identity() if stride == 1 and c_in == c_out else None, nn.Identity())

    def bottleneck(c_in, c_out, stride):
        narrow = c_out // 4
        body = nn.Sequential(
            block(c_in, narrow, 1, act=nn.ReLU),
            block(narrow, narrow, 3, stride, act=nn.ReLU),
            block(narrow, c_out, 1, activate=False),
        )
        same = stride == 1 and c_in == c_out
        return Residual(body, nn.Identity() if same else block(c_in, c_out, 1, stride, activate=False), nn.ReLU(True))

    if name == "resnet50":
        parts, c_in = [block(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)], 64
        stages = [(256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2)]
        make = lambda c_in, c_out, stride, _: bottleneck(c_in, c_out, stride)  # noqa: E731
        rows = [(0, c_out, count, stride) for c_out, count, stride in stages]
    else:
        parts, c_in = [block(3, 32, 3, 2)], 32
        rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)]
        rows, make = [*rows, (6, 320, 1, 1)], inverted
    for expand, c_out, count, stride in rows:
        for number in range(count):
            parts.append(make(c_in, c_out, stride if number == 0 else 1, expand))
            c_in = c_out
    if name != "resnet50":
        parts, c_in = [*parts, block(320, 1280, 1)], 1280
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1000)).eval()


def torch_run(name, size, count):
    """Makes a run of the PyTorch network on one batch, or none where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    network = torch_network(name).to(memory_format=torch.channels_last)
    x = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return network(x).numpy()

    return {"pytorch_float": run}


def bench(name, size):
    """Measures one network at one image size."""
    network = build(name, classes=1000, image_size=size, key=jax.random.key(0))
    count, batch = IMAGES[name, size], suggest_batch_size(size * size)
    images = np.asarray(jax.random.normal(jax.random.key(1), (count, size, size, 3)))
    split = Split(images, np.zeros(count, np.int32))
    ranges = calibrate(network.apply, network.params, [images[:batch]], "max", rounding="nearest")
    arithmetic = tune_arithmetic(network.apply, network.params, images[:batch], ranges, cache=None)
    policies = jnp.full((POLICIES, len(ranges.signed), 2), 6)
    evaluate = jax.jit(lambda evaluator, policies: evaluator(policies))
    evaluator = make_evaluator(network.apply, network.params, split, ranges, arithmetic=arithmetic)
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
    runs = {"quantised": lambda: evaluate(evaluator, policies), **floats, **torch_run(name, size, min(batch, count))}
    images_of = {"quantised": count * POLICIES, "pytorch_float": min(batch, count)}
    seconds = records.measure_in_turn(runs)
    per_image = {name: 1e3 * taken / images_of.get(name, count) for name, taken in seconds.items()}
    macs = int(layers(network.apply, network.params, network.example).macs.sum())
    limit = 1e3 * 2 * macs / records.matmul_limit()
    return {
        "network": name,
        "pixels": size,
        "forms": sorted({layer.form for layer in arithmetic}),
        "images_at_a_time": batch,
        "ms_per_image_and_policy": per_image,
        "quantised_over_float": per_image["quantised"] / per_image["float"],
        "limit_ms": limit,
        "quantised_over_limit": per_image["quantised"] / limit,
    }


if __name__ == "__main__":
    records.write("forward", [bench(*one) for one in IMAGES])
