"""BitFusion, an array of fusible 2-bit multipliers, as its authors' simulator prices it.

The equations stand in docs/hardware.md; tiling.py counts the work of one layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.hardware.tiling import NEVER, Bitfusion, Shape, Work, as_tile, energies, layer_work, loop_orders, tile_fits
from haqjax.types import WIDTHS, LayerTable


def work(numbers: Bitfusion, layers: LayerTable) -> Work:
    """Counts cycles and traffic of every layer at every pair of bit-widths, for one batch of images.

    Args:
      numbers: the machine.
      layers: the network, L layers.

    Returns:
      Exact int64 counts on the host, each [L, 8, 8], indexed `[layer, weight_bits - 1, activation_bits - 1]`.

    Raises:
      ValueError: the smallest tile of a layer exceeds a buffer.

    >>> from haqjax.capture import layers
    >>> from haqjax.hardware import machine
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((64, 32))}, np.ones((1, 64)))
    >>> counts = work(machine("bitfusion").numbers, network)
    >>> counts.busy[0, [1, 3, 7], [1, 3, 7]].tolist()  # 16 images x 64 inputs / 16 units of 16, 4 and 1 products
    [16, 16, 64]
    """
    given = shapes(numbers, layers)
    rows = np.concatenate([np.reshape(field, (len(layers), -1)) for field in given], axis=1)
    _, chosen, back = np.unique(rows, axis=0, return_index=True, return_inverse=True)  # networks repeat themselves
    unique = Shape(*(field[chosen] for field in given))
    orders = loop_orders(square=bool((given.out_size[:, 0] == given.out_size[:, 1]).all()))
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, _network_work(numbers, unique, _candidates(numbers, unique), orders))
    impossible = (found.cycles == NEVER).any(axis=(1, 2))[back]
    if impossible.any():
        name = layers.names[int(np.argmax(impossible))]
        raise ValueError(f"layer {name}: its smallest tile exceeds half a buffer; give the machine larger buffers")
    return jax.tree.map(lambda field: field[back], found)


def price(numbers: Bitfusion, layers: LayerTable) -> tuple[Float[np.ndarray, "L 8 8"], Float[np.ndarray, "L 8 8"]]:
    """Seconds and joules of every layer at every pair of bit-widths, for one batch of images.

    Args:
      numbers: the machine.
      layers: the network, L layers.

    Returns:
      Latency in s and energy in J, float64 on the host.
    """
    counts = work(numbers, layers)
    latency = np.asarray(counts.cycles) / numbers.clock
    return latency, np.asarray(sum(energies(numbers, counts))) + latency * numbers.leakage_power


def shapes(numbers: Bitfusion, layers: LayerTable) -> Shape:
    """Reads each layer as convolutions: a grouped layer is one a group, the rows of a dense layer are images."""
    dense = np.asarray(layers.dense)
    merged = np.asarray(layers.depthwise) & ~dense & bool(numbers.merge_depthwise)
    rows = np.where(dense, np.prod(layers.out_size, axis=1), 1)
    fields = (
        layers.kernel,
        layers.stride,
        np.where(dense[:, None], 1, layers.out_size),
        np.where(merged, layers.in_channels, layers.in_channels // layers.groups),
        layers.out_channels // layers.groups,
        numbers.batch * rows,
        np.where(merged, 1, layers.groups),
        (np.arange(len(layers)) == 0) & ~dense & bool(numbers.unroll_first),
    )
    return Shape(*(np.asarray(field, np.int64) for field in fields))


def _candidates(numbers: Bitfusion, shape: Shape) -> Int[np.ndarray, "L T 4"]:
    """The tiles of each layer that fit at some bits, as powers of two; a layer with few of them repeats its last."""
    columns = np.where(shape.unrolled, 1, numbers.outputs)
    sizes = (shape.images, shape.out_size.max(axis=1), shape.in_channels, -(-shape.out_channels // columns))
    steps = np.stack([[int(size - 1).bit_length() for size in each] for each in sizes], axis=1)
    powers = np.stack(np.meshgrid(*(np.arange(most + 1) for most in steps.max(axis=0)), indexing="ij"), -1).reshape(
        -1, 4
    )
    fit = np.asarray(_some_fit(numbers, shape, powers)) & (powers[None] <= steps[:, None]).all(axis=2)
    lists = [powers[row] if row.any() else powers[:1] for row in fit]
    most = max(map(len, lists))
    return np.stack([np.pad(each, ((0, most - len(each)), (0, 0)), mode="edge") for each in lists])


@jax.jit
def _some_fit(numbers: Bitfusion, shape: Shape, powers: Int[Array, "T 4"]) -> Bool[Array, "L T"]:
    bits = jnp.arange(1, WIDTHS + 1)

    def fits(shape: Shape, powers: Array) -> Array:
        tile = as_tile(numbers, shape, powers)
        pairs = jax.vmap(jax.vmap(tile_fits, (None, None, None, None, 0)), (None, None, None, 0, None))
        return jnp.any(pairs(numbers, shape, tile, bits, bits))

    return jax.vmap(jax.vmap(fits, (None, 0)), (0, None))(shape, powers)


@jax.jit
def _network_work(numbers: Bitfusion, shape: Shape, powers: Int[Array, "L T 4"], orders: Int[Array, "R 5"]) -> Work:
    """Layer by layer and weight bits by weight bits, so that what is compared stays in the cache."""
    bits = jnp.arange(1, WIDTHS + 1)
    each = jax.vmap(layer_work, (None, None, None, None, None, 0))

    def one_layer(given: tuple[Shape, Array]) -> Work:
        return jax.lax.map(lambda weight_bits: each(numbers, *given, orders, weight_bits, bits), bits)

    return jax.lax.map(one_layer, (shape, powers))
