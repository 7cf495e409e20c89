"""BitFusion (Sharma et al. 2018, arXiv 1712.01507), an array of fusible 2-bit multipliers, as its simulator counts.

The equations stand in docs/hardware.md; bitfusion_tiling.py chooses the tiles of a layer, bitfusion_tile.py counts one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.hardware.bitfusion_tile import Bitfusion, Shape, as_tile, summed, tile_fits
from haqjax.hardware.bitfusion_tiling import NEVER, Work, count_layer_work, energies, list_loop_orders
from haqjax.hardware.gemm import as_subpixel
from haqjax.hardware.overflow import as_floats, check_layers, check_products
from haqjax.hardware.spec import check_fields
from haqjax.hardware.usage import Energies, Streams, Usage
from haqjax.reading import quote
from haqjax.types import WIDTHS, LayerTable

LAYER_STEP, TILE_STEP = 8, 64  # layers and tiles are padded to multiples, so that one compilation serves many networks
MOST_TILES = 1 << 13  # that are compared; 576 are for ResNet-50, and 1,600 with buffers that hold all of a layer


def count_work(spec: Bitfusion, layers: LayerTable) -> Work:
    """Counts cycles and traffic of every layer at every pair of bit-widths, for one batch of images.

    Args:
      spec: the machine.
      layers: the network, L layers.

    Returns:
      Exact int64 counts on the host, each [L, 8, 8], indexed `[layer, weight_bits - 1, activation_bits - 1]`.

    Raises:
      ValueError: the smallest tile of a layer exceeds a buffer; a field of the machine is out of range, or a count may
        pass 2**62.

    >>> from haqjax.tracing.layer_table import layers
    >>> from haqjax.hardware import machine
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((64, 32))}, np.ones((1, 64)))
    >>> counts = count_work(machine("bitfusion").spec, network)
    >>> counts.busy[0, [1, 3, 7], [1, 3, 7]].tolist()  # 16 images x 64 inputs / 16 units of 16, 4 and 1 products
    [16, 16, 64]
    """
    check_fields(spec, "bitfusion")
    layers = as_subpixel(layers)
    check_layers(layers, spec.batch)
    check_products(layers, _bound_work(spec, layers))
    given = _as_convolutions(spec, layers)
    rows = np.concatenate([np.reshape(field, (len(layers), -1)) for field in given], axis=1)
    _, chosen, back = np.unique(rows, axis=0, return_index=True, return_inverse=True)  # networks repeat themselves
    unique = jax.tree.map(lambda field: _pad_rows(field[chosen], LAYER_STEP), given)
    orders = list_loop_orders(square=bool((given.out_size[:, 0] == given.out_size[:, 1]).all()))
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, _count_network(spec, unique, _candidates(spec, unique), orders))
    impossible = (found.cycles == NEVER).any(axis=(1, 2))[back]
    if impossible.any():
        name = layers.names[int(np.argmax(impossible))]
        raise ValueError(
            f"layer {quote(name)}: its smallest tile exceeds half a buffer; give the machine larger buffers"
        )
    return jax.tree.map(lambda field: field[back], found)


def estimate(spec: Bitfusion, layers: LayerTable) -> Usage:
    """Estimates the usage of every layer at every pair of bit-widths.

    Args:
      spec: the machine.
      layers: the network, L layers.

    Returns:
      The usage for one batch of images.
    """
    counts = jax.tree.map(lambda field: np.asarray(field, np.float64), count_work(spec, layers))
    loaded = counts.dram_read - counts.moved.weights - counts.moved.inputs
    moved = Streams(counts.moved.weights, counts.moved.inputs, loaded + counts.dram_write)
    transfers = Streams(*(bits / spec.dram_bits / spec.clock for bits in moved))
    bits = np.arange(1, WIDTHS + 1)
    with jax.enable_x64(True):
        products = np.asarray(summed(spec, bits[:, None], bits[None, :])) * spec.outputs  # of a cycle
    latency = counts.cycles / spec.clock
    energy = Energies(*energies(spec, counts), leakage=latency * spec.leakage_power)
    ideal = spec.batch * layers.macs[:, None, None] / products[None] / spec.clock
    return Usage(latency, ideal, counts.busy / spec.clock, transfers, moved, energy)


def _bound_work(spec: Bitfusion, layers: LayerTable) -> Float[np.ndarray, "L"]:
    """Bounds every count of a layer from above, in floating point, whatever its tiles and the order of their loops.

    Tiles are rounded up, which at most doubles each of the five sizes, and a tile is padded to whole columns (of M
    output channels) and to what a column adds up.
    """
    shape: Any = _as_convolutions(spec, as_floats(layers))
    padded, columns, bits = 16.0 * spec.inputs, float(spec.outputs), float(spec.output_bits + 2 * WIDTHS)
    area, places = np.prod(shape.kernel, axis=1), np.prod(shape.out_size, axis=1) * shape.images
    inputs, outputs = shape.in_channels, shape.out_channels
    products = 32 * places * inputs * outputs * shape.jobs
    patch = np.prod(shape.kernel + shape.stride, axis=1)
    moved = products * np.maximum(bits * (area + padded), np.maximum(bits * patch, bits * (1 + columns)))
    flow = area * (inputs + padded) * (outputs + columns) * places * bits
    return np.maximum(np.maximum(moved, products * area * bits), flow)


def _as_convolutions(spec: Bitfusion, layers: LayerTable) -> Shape:
    """Reads each layer as convolutions: a grouped layer is one a group, the rows of a dense layer are images."""
    dense = np.asarray(layers.dense)
    merged = np.asarray(layers.depthwise) & ~dense & bool(spec.merge_depthwise)
    rows = np.where(dense, np.prod(layers.out_size, axis=1), 1)
    fields = (
        layers.kernel,
        layers.stride,
        np.where(dense[:, None], 1, layers.out_size),
        np.where(merged, layers.in_channels, layers.in_channels // layers.groups),
        layers.out_channels // layers.groups,
        spec.batch * rows,
        np.where(merged, 1, layers.groups),
        (np.arange(len(layers)) == 0) & ~dense & bool(spec.unroll_first),
    )
    whole = np.asarray(layers.kernel).dtype.kind in "iu"
    return Shape(*(np.asarray(field, np.int64 if whole else np.float64) for field in fields))  # type: ignore[arg-type]


def _candidates(spec: Bitfusion, shape: Shape) -> Int[np.ndarray, "L T 4"]:
    """Lists the tiles of each layer that fit at some bits, as powers of two; all as many, repeating the last."""
    columns = np.where(shape.unrolled, 1, spec.outputs)
    sizes = (shape.images, shape.out_size.max(axis=1), shape.in_channels, -(-shape.out_channels // columns))
    steps = np.stack([[int(size - 1).bit_length() for size in each] for each in sizes], axis=1)
    grid = np.meshgrid(*(np.arange(most + 1) for most in steps.max(axis=0)), indexing="ij")
    powers = np.stack(grid, axis=-1).reshape(-1, 4)
    fit = np.asarray(_some_fit(spec, shape, powers)) & (powers[None] <= steps[:, None]).all(axis=2)
    lists = [powers[row] if row.any() else powers[:1] for row in fit]
    most = max(map(len, lists))
    if most > MOST_TILES:
        raise ValueError(
            f"bitfusion: {most} tiles of a layer to compare, more than {MOST_TILES}: make the batch smaller"
        )
    return np.stack([_pad_rows(each, _ceil_to(most, TILE_STEP)) for each in lists])


def _pad_rows(rows: np.ndarray, step: int) -> np.ndarray:
    """Repeats the last row until the rows are a multiple of `step`."""
    missing = _ceil_to(len(rows), step) - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])


def _ceil_to(count: int, step: int) -> int:
    return -(-count // step) * step


@jax.jit
def _some_fit(spec: Bitfusion, shape: Shape, powers: Int[Array, "T 4"]) -> Bool[Array, "L T"]:
    bits = jnp.arange(1, WIDTHS + 1)

    def fits(shape: Shape, powers: Array) -> Array:
        tile = as_tile(spec, shape, powers)
        pairs = jax.vmap(jax.vmap(tile_fits, (None, None, None, None, 0)), (None, None, None, 0, None))
        return jnp.any(pairs(spec, shape, tile, bits, bits))

    return jax.vmap(jax.vmap(fits, (None, 0)), (0, None))(shape, powers)


@jax.jit
def _count_network(spec: Bitfusion, shape: Shape, powers: Int[Array, "L T 4"], orders: Int[Array, "R 5"]) -> Work:
    """Counts layer by layer, weight bits by weight bits, so that what is compared stays in the cache."""
    bits = jnp.arange(1, WIDTHS + 1)
    each = jax.vmap(count_layer_work, (None, None, None, None, None, 0))

    def one_layer(given: tuple[Shape, Array]) -> Work:
        return jax.lax.map(lambda weight_bits: each(spec, *given, orders, weight_bits, bits), bits)

    return jax.lax.map(one_layer, (shape, powers))
