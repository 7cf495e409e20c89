"""Does anything that computes a quantised network change its numbers?

    python benchmarks/identity.py

ResNet-20 and MobileNetV2 at 32 pixels under 50 random policies. Logits are compared as bit patterns between numbers of
images at a time, policies at a time and types of the products, and with a reference that multiplies in 64-bit NumPy
integers; losses between one, two and eight devices (forced on the host), and with reuse of first layers. Each figure is
the number of values that differ; all should be 0.
"""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
import jax.numpy as jnp
import numpy as np
import records

from haqjax import calibrate
from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.evaluation.evaluator import map_policies
from haqjax.evaluation.prefix_reuse import make_prefix_evaluator
from haqjax.models import build
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.quantizers.integer_layers import prepare_layers, with_prepared
from haqjax.sharding import make_mesh
from haqjax.tracing.integer_products import FORMS
from references_integer import run_reference

SIZE, CLASSES, IMAGES, POLICIES = 32, 10, 64, 50
AT_A_TIME = (64, 1, 2, 7)
REFERENCE = 5, 2  # policies and images of the reference, which is slow


def compute_logits(network, images, ranges, policies, *, size, arithmetic=None, at_once=1):
    """Computes the logits of each policy and image, so many images and policies at a time."""
    count = -(-len(images) // size) * size
    batches = np.resize(images, (count, *images.shape[1:])).reshape(-1, size, *images.shape[1:])

    @jax.jit
    def run(params, batches, policies, ranges):
        def prepare(policy):
            return prepare_layers(network.apply, params, batches[0], policy, ranges, arithmetic)

        def one(prepared):
            quantised = with_prepared(network.apply, prepared, ranges, arithmetic)
            return jax.lax.map(lambda x: quantised(params, x), batches)

        return map_policies(prepare, one, policies, at_once)

    logits = run(network.params, batches, policies, ranges)
    return np.asarray(logits).reshape(len(policies), count, -1)[:, : len(images)]


def count_differences(a, b):
    """Counts values whose bits differ."""
    a, b = (np.asarray(x, np.float32).view(np.uint32) for x in (a, b))
    return int((a != b).sum())


def bench(name):
    """Compares all ways of computing one network."""
    network = build(name, classes=CLASSES, image_size=SIZE, key=jax.random.key(0))
    random = np.random.default_rng(0)
    images = random.normal(size=(IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    ranges = jax.tree.map(jnp.asarray, calibrate(network.apply, network.params, [images]))
    layers = len(ranges.clip)
    policies = jnp.asarray(random.integers(2, 9, (POLICIES, layers, 2)))
    policies = policies.at[1::2, : layers // 2].set(policies[0, : layers // 2])  # every second begins like the first
    logits = compute_logits(network, images, ranges, policies, size=IMAGES)
    differ = {}
    for size in AT_A_TIME[1:]:
        differ[f"{size} images at a time"] = compute_logits(network, images, ranges, policies, size=size)
    differ["4 policies at once"] = compute_logits(network, images, ranges, policies, size=16, at_once=4)
    for form in FORMS:
        arithmetic = choose_arithmetic(network.apply, network.params, images[:1], ranges, [form] * layers)
        differ[form] = compute_logits(network, images, ranges, policies, size=16, arithmetic=arithmetic)
    figures = {f"logits that differ: {way}": count_differences(found, logits) for way, found in differ.items()}
    figures |= compare_evaluators(network, Split(images, np.asarray(logits[0].argmax(-1), np.int32)), ranges, policies)
    figures["logits that differ: NumPy reference"] = compare_reference(network, images, ranges, policies, logits)
    return {"network": name, "pixels": SIZE, "policies": POLICIES, "images": IMAGES, "logits": logits.size, **figures}


def compare_evaluators(network, split, ranges, policies):
    """Counts losses that differ from those of one device."""
    arguments = network.apply, network.params, split, ranges
    evaluators = {
        "1 device": make_evaluator(*arguments),
        "2 devices": make_evaluator(*arguments, mesh=make_mesh(2)),
        "8 devices": make_evaluator(*arguments, batch_size=8, mesh=make_mesh(8)),
        "8 devices, 4 for policies": make_evaluator(*arguments, batch_size=8, mesh=make_mesh(8, policies=4)),
        "cuts": make_prefix_evaluator(*arguments, policies[0], [len(ranges.clip) // 3, len(ranges.clip) // 2]),
    }
    losses = {way: jax.jit(lambda e, p: e(p).loss)(evaluator, policies) for way, evaluator in evaluators.items()}
    return {f"losses that differ: {way}": count_differences(loss, losses["1 device"]) for way, loss in losses.items()}


def compare_reference(network, images, ranges, policies, logits):
    """Counts logits that differ from those of the reference."""
    count, few = REFERENCE
    prepare = jax.jit(lambda params, p, ranges: prepare_layers(network.apply, params, images[:1], p, ranges).operands())
    found = [
        run_reference(network.apply, network.params, images[:few], prepare(network.params, policy, ranges))
        for policy in policies[:count]
    ]
    return count_differences(np.stack(found), logits[:count, :few])


if __name__ == "__main__":
    records.write("identity", [bench(name) for name in ("resnet20", "mobilenet_v2")])
