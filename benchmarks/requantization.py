"""What would it save to pass codes from layer to layer, where only a ReLU stands between?

    make bench        # or: python benchmarks/requantization.py

Chains of eight matrix products with a ReLU between, each in three types of codes. `floats`: as haqjax computes them,
sums times the product of both steps, ReLU, division by the next step, rounding, clip. `codes`: sums times one ratio of
steps, rounding, clip, which is the ReLU, too. The second saves one multiplication and one maximum an activation, and
rounds once less, so that its numbers are others. `products` is the chain without any rounding: the least there is.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import records

LAYERS = 8
SHAPES = [(12544, 64), (3136, 128), (784, 256), (196, 512)]  # rows and channels: maps of ResNet-50 at 4 images
TYPES = {"float32": "float32", "bfloat16": "float32", "int8": "int32"}  # of codes, and of their sums
STEP, RATIO, LARGEST = 0.1, 0.003, 127.0


def make_chain(between: Callable[[jax.Array], jax.Array], dtype: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the chain with this between two products."""

    @jax.jit
    def run(codes: jax.Array, weights: jax.Array) -> jax.Array:
        for weight in weights:
            sums = jnp.matmul(codes, weight, preferred_element_type=TYPES[dtype])
            codes = between(sums).astype(dtype)
        return codes

    return run


def pass_floats(sums: jax.Array) -> jax.Array:
    """Dequantises, applies the ReLU, quantises: two grids, two roundings."""
    y = jax.nn.relu(sums.astype(jnp.float32) * (STEP * RATIO))
    return jnp.clip(jnp.round(y * (1 / STEP)), 0, LARGEST)


def pass_codes(sums: jax.Array) -> jax.Array:
    """Requantises: one multiplication, one rounding, one clip."""
    return jnp.clip(jnp.round(sums.astype(jnp.float32) * RATIO), 0, LARGEST)


def bench(rows: int, channels: int, dtype: str) -> dict:
    """Measures one chain in one type, all three ways in turn."""
    keys = jax.random.split(jax.random.key(0))
    codes = jax.random.randint(keys[0], (rows, channels), 0, 128).astype(dtype)
    weights = jax.random.randint(keys[1], (LAYERS, channels, channels), -7, 8).astype(dtype)
    ways = {"floats": pass_floats, "codes": pass_codes, "products": lambda sums: sums}
    chains = {name: make_chain(between, dtype) for name, between in ways.items()}
    runs = {name: functools.partial(chain, codes, weights) for name, chain in chains.items()}
    seconds = records.measure_in_turn(runs, repeats=25)
    milliseconds = {name: 1e3 * taken / LAYERS for name, taken in seconds.items()}
    ratio = milliseconds["codes"] / milliseconds["floats"]
    return {"rows": rows, "channels": channels, "type": dtype, "ms_a_layer": milliseconds, "codes_over_floats": ratio}


if __name__ == "__main__":
    records.write("requantization", [bench(*shape, dtype) for shape in SHAPES for dtype in TYPES])
