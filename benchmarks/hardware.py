"""How long does a cost table take, and how many policies are costed a second at each number of them?

    make bench        # or: python benchmarks/hardware.py

Tables of MobileNetV2 and ResNet-50 at 224 pixels on every machine, after compilation. Policies are costed against a
plain loop in NumPy over the same table, in the same run: for MobileNetV2 that table is HAQ's own, which the cloud
machine equals entry by entry. One policy on 1,000 variants of the edge machine is one call.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import records

from haqjax import cost_table, layers, machine, total_cost
from haqjax.hardware import bismo
from haqjax.models import outline

MACHINES = ("bismo_edge", "bismo_cloud", "bitfusion", "roofline", "systolic")
COUNTS = (10**3, 10**4, 10**5, 10**6)
VARIANTS = 1000


def seconds(run, repeats=5):
    """Measures the first (with compilation) and the least later wall-clock seconds."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return {"first": times[0], "later": min(times[1:])}


def loop_in_numpy(latency, policies):
    """Measures policies a second, one entry at a time."""
    start = time.perf_counter()
    for policy in policies:
        sum(latency[i, w - 1, a - 1] for i, (w, a) in enumerate(policy))
    return len(policies) / (time.perf_counter() - start)


def bench(model):
    """Measures one network."""
    network = outline(model)
    table_of = layers(network.apply, network.params, network.example)
    tables = {name: seconds(lambda name=name: cost_table(machine(name), table_of).latency) for name in MACHINES}
    table = cost_table(machine("cloud"), table_of)
    policies = jax.random.randint(jax.random.key(0), (max(COUNTS), len(table_of), 2), 2, 9)
    priced = {str(n): n / records.measure(lambda n=n: total_cost(table, policies[:n])) for n in COUNTS}
    looped = loop_in_numpy(table.latency, np.asarray(policies[:200]))
    edge = machine("edge").spec
    family = jax.tree.map(lambda x: np.broadcast_to(x, (VARIANTS,)), edge)
    family = family._replace(buffer_words=np.arange(1, VARIANTS + 1) * 16)
    on_variants = functools.partial(bismo.count_policy_work, family, table_of, np.asarray(policies[0]))
    return {
        "model": model,
        "layers": len(table_of),
        "seconds_per_table": tables,
        "policies_priced_per_second": priced,
        "policies_priced_per_second_by_a_numpy_loop": looped,
        "ratio_at_most_policies": priced[str(max(COUNTS))] / looped,
        f"seconds_for_one_policy_on_{VARIANTS}_machines": seconds(on_variants),
        "fractional_policies_per_second": COUNTS[1]
        / records.measure(lambda: total_cost(table, policies[: COUNTS[1]].astype(jnp.float32) - 0.5)),
    }


if __name__ == "__main__":
    records.write("hardware", [bench(model) for model in ("mobilenet_v2", "resnet50")])
