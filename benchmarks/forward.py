"""What does a quantised forward pass cost, per image and policy, against the same network in floating point?

    make bench        # or: python benchmarks/forward.py

ResNet-50 and MobileNetV2 at several sizes: quantised under 4 policies one after another, in the arithmetic that tuning
finds fastest here; float with the same faster forms of the layers; float as XLA compiles the model; and, of the extra
`bench`, PyTorch float in channels-last and onnxruntime's own int8. All in turn in one process. The limits are the
network's multiply-accumulates at the speed of a large matrix product: in float32, and in the fastest type of codes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import records
import rivals

from haqjax import calibrate, layers
from haqjax.data import Split
from haqjax.evaluation import make_evaluator, tune_arithmetic
from haqjax.evaluation.batches import split_into_batches, suggest_batch_size
from haqjax.models import build
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.tracing.integer_products import FORMS

IMAGES = {("mobilenet_v2", 32): 512, ("mobilenet_v2", 96): 128, ("mobilenet_v2", 224): 32}
IMAGES |= {("resnet50", 32): 256, ("resnet50", 224): 16}
POLICIES = 4


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
    here = min(batch, count)
    others = rivals.torch_float(name, size, here) | rivals.onnx_int8(name, size, here)
    runs = {"quantised": lambda: evaluate(evaluator, policies), **floats, **others}
    images_of = {"quantised": count * POLICIES} | dict.fromkeys(others, here)
    seconds = records.measure_in_turn(runs)
    per_image = {name: 1e3 * taken / images_of.get(name, count) for name, taken in seconds.items()}
    macs = int(layers(network.apply, network.params, network.example).macs.sum())
    flops = {form: records.matmul_limit(dtype=form) for form in FORMS}
    limit, limit_of_codes = (1e3 * 2 * macs / speed for speed in (flops["float32"], max(flops.values())))
    return {
        "network": name,
        "pixels": size,
        "forms": sorted({layer.form for layer in arithmetic}),
        "images_at_a_time": batch,
        "ms_per_image_and_policy": per_image,
        "quantised_over_float": per_image["quantised"] / per_image["float"],
        "product_gflops": {form: speed / 1e9 for form, speed in flops.items()},
        "limit_ms": limit,
        "limit_of_codes_ms": limit_of_codes,
        "quantised_over_limit_of_codes": per_image["quantised"] / limit_of_codes,
    }


if __name__ == "__main__":
    records.write("forward", [bench(*one) for one in IMAGES])
