"""What does an accelerator make of quantised networks? The same script on a GPU, a TPU and a CPU.

    python benchmarks/accelerator.py [--small]

Forward passes in each type of the products beside the float network; policies a second by how many go side by side; one
search from its start; and all devices against one, where there are several. Weights are random: only time counts here,
and that no way of computing changes a loss.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import records

import haqjax
from haqjax.data import Split
from haqjax.evaluation import make_evaluator, tune_arithmetic
from haqjax.models import build
from haqjax.quantizers.arithmetic import choose_arithmetic
from haqjax.sharding import make_mesh
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import with_hook
from haqjax.tracing.integer_products import FORMS

FULL = {"networks": (("resnet50", 224), ("mobilenet_v2", 224), ("resnet50", 32)), "images": 512, "at_a_time": 128}
SMALL = {"networks": (("resnet20", 16),), "images": 8, "at_a_time": 4}
SIDE_BY_SIDE = (1, 4, 16)
POLICIES, EPISODES = 16, 40


@jax.jit
def evaluate(evaluator, policies):
    """Losses of policies."""
    return evaluator(policies).loss


def prepare(name, pixels, images):
    """Makes a network with random weights, a split of random images, and ranges."""
    network = build(name, classes=10, image_size=pixels, key=jax.random.key(0))
    random = np.random.default_rng(0)
    split = Split(
        random.normal(size=(images, pixels, pixels, 3)).astype(np.float32), random.integers(0, 10, images, np.int32)
    )
    ranges = haqjax.calibrate(network.apply, network.params, [split.images[:8]], "max", rounding="nearest")
    return network, split, jax.tree.map(jnp.asarray, ranges)


def time_types(network, split, ranges, at_a_time):
    """Times the float network and the quantised one in each type, milliseconds per image (and policy)."""
    layers, few = len(ranges.clip), split.images[:1]
    batches = jnp.asarray(split.images.reshape(-1, at_a_time, *split.images.shape[1:]))
    policy = jnp.full((1, layers, 2), 8)
    run = jax.jit(lambda params, x: jax.lax.map(lambda x: with_hook(network.apply, use_cpu_kernels)(params, x), x))
    forms = {form: choose_arithmetic(network.apply, network.params, few, ranges, [form] * layers) for form in FORMS}
    forms["tuned"] = tune_arithmetic(network.apply, network.params, batches[0], ranges, cache=None)
    make = functools.partial(make_evaluator, network.apply, network.params, split, ranges, batch_size=at_a_time)
    evaluators = {name: make(arithmetic=arithmetic) for name, arithmetic in forms.items()}
    runs = {name: functools.partial(evaluate, evaluator, policy) for name, evaluator in evaluators.items()}
    seconds = records.measure_in_turn({"float": lambda: run(network.params, batches), **runs})
    losses = {name: float(evaluate(evaluator, policy)[0]) for name, evaluator in evaluators.items()}
    chosen = [layer.form for layer in forms["tuned"]]
    return {
        "ms_per_image": {name: 1e3 * taken / len(split) for name, taken in seconds.items()},
        "over_float": {name: taken / seconds["float"] for name, taken in seconds.items()},
        "losses_differ": len(set(losses.values())) > 1,
        "chosen": {form: chosen.count(form) for form in FORMS},
    }


def time_batching(network, split, ranges, at_a_time):
    """Times policies side by side: policy-images a second."""
    random = np.random.default_rng(1)
    policies = jnp.asarray(random.integers(2, 9, (POLICIES, len(ranges.clip), 2)))
    found = {}
    for count in SIDE_BY_SIDE:
        evaluator = make_evaluator(
            network.apply, network.params, split, ranges, batch_size=at_a_time, policies_at_once=count
        )
        seconds = records.measure(functools.partial(evaluate, evaluator, policies), repeats=3)
        found[count] = POLICIES * len(split) / seconds
    return {"policy_images_per_second": found}


def time_search(network, split, ranges):
    """Times one search by integer programming, compilation included."""
    layers = haqjax.layers(network.apply, network.params, network.example)
    table = haqjax.cost_table(haqjax.machine("edge"), layers)
    evaluator = make_evaluator(network.apply, network.params, split, ranges)
    budget = haqjax.budget(table, latency=0.6)
    problem = haqjax.make_problem(layers, table, haqjax.make_bounds(layers), budget, evaluator, reference=1.0)
    start = time.perf_counter()
    found = haqjax.search(problem, "ilp", episodes=EPISODES, key=jax.random.key(0))
    return {"episodes": EPISODES, "seconds": time.perf_counter() - start, "cost": float(found.cost.latency)}


def time_mesh(network, split, ranges):
    """Times all devices against one, and counts losses that differ; None where there is one."""
    if jax.device_count() == 1:
        return None
    policies = jnp.asarray(np.random.default_rng(1).integers(2, 9, (POLICIES, len(ranges.clip), 2)))
    arguments = network.apply, network.params, split, ranges
    size = max(1, len(split) // jax.device_count())
    evaluators = {
        "one": make_evaluator(*arguments),
        "all": make_evaluator(*arguments, batch_size=size, mesh=make_mesh()),
    }
    runs = {name: functools.partial(evaluate, evaluator, policies) for name, evaluator in evaluators.items()}
    seconds = records.measure_in_turn(runs, repeats=3)
    differ = int((np.asarray(runs["one"]()) != np.asarray(runs["all"]())).sum())
    return {"devices": jax.device_count(), "seconds": seconds, "losses_that_differ": differ}


def bench(name, pixels, sizes):
    """Measures everything on one network."""
    network, split, ranges = prepare(name, pixels, sizes["images"])
    return {
        "network": name,
        "pixels": pixels,
        "images": sizes["images"],
        "types": time_types(network, split, ranges, sizes["at_a_time"]),
        "batching": time_batching(network, split, ranges, sizes["at_a_time"]),
        "search": time_search(network, split, ranges),
        "mesh": time_mesh(network, split, ranges),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small network and few images, to try the script")
    chosen = SMALL if parser.parse_args().small else FULL
    records.write("accelerator", [bench(*network, chosen) for network in chosen["networks"]])
