"""One layer on BitFusion: the tiles and the order of loops that take the fewest cycles.

Everything is traced 64-bit integers; call it where `jax.enable_x64` is on.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from haqjax.hardware.fields import Amount, Count, Positive, Switch


class Bitfusion(NamedTuple):
    """One instance."""

    inputs: Count  # N: fusion units that add up to an output
    outputs: Count  # M: columns of them, an output channel each
    weight_buffer: Count  # bytes; as in the other buffers, half is in use while the other half fills
    input_buffer: Count  # bytes
    output_buffer: Count  # bytes
    dram_bits: Count  # moved a cycle
    output_bits: Count  # width at which outputs move
    batch: Count  # images
    clock: Positive  # Hz
    core_energy: Amount  # J per busy cycle of the whole array
    weight_read_energy: Amount  # J per bit, as all below
    weight_write_energy: Amount
    input_read_energy: Amount
    input_write_energy: Amount
    output_read_energy: Amount
    output_write_energy: Amount
    dram_energy: Amount
    leakage_power: Amount  # W, as long as the batch takes
    unroll_first: Switch = True  # the first convolution multiplies unrolled patches (im2col)
    reread_outputs: Switch = True  # outputs come in from DRAM even before the first partial sum
    merge_depthwise: Switch = False  # a depthwise layer is one convolution of all channels instead of one a channel
    share_bricks: Switch = False  # any free 2-bit multipliers fuse, instead of widths of 2, 4 and 8 bits only


class Shape(NamedTuple):
    """A layer as `jobs` equal convolutions."""

    kernel: Int[Array, "*n 2"]
    stride: Int[Array, "*n 2"]
    out_size: Int[Array, "*n 2"]
    in_channels: Int[Array, "*n"]
    out_channels: Int[Array, "*n"]
    images: Int[Array, "*n"]
    jobs: Int[Array, "*n"]
    unrolled: Bool[Array, "*n"]


class Tile(NamedTuple):
    """What of a layer is in the buffers at a time; or how many times each loop runs."""

    images: Int[Array, "*n"]
    height: Int[Array, "*n"]  # of the output
    width: Int[Array, "*n"]
    in_channels: Int[Array, "*n"]
    out_channels: Int[Array, "*n"]


class Operands(NamedTuple):
    """A number for each operand."""

    weights: Int[Array, "*n"]
    inputs: Int[Array, "*n"]
    outputs: Int[Array, "*n"]


class Work(NamedTuple):
    """What a layer makes the machine do; bits, but for the cycles."""

    cycles: Int[Array, "*n"]
    busy: Int[Array, "*n"]  # cycles in which the array works
    dram_read: Int[Array, "*n"]
    dram_write: Int[Array, "*n"]
    filled: Operands  # from DRAM to buffers; outputs the other way, too
    read: Operands  # from buffers to the array; outputs the other way, too


NEVER = np.iinfo(np.int64).max  # cycles where no tile fits the buffers
# Which loops change the block that an operand needs, in the order of the fields of Tile.
DEPENDS = (
    np.array([False, False, False, True, True]),  # weights
    np.array([True, True, True, True, False]),  # inputs
    np.array([True, True, True, False, True]),  # outputs
)


def loop_orders(square: bool) -> Int[np.ndarray, "R 5"]:
    """All orders of the five loops, innermost first; where maps are square, rows and columns need not change places."""
    orders = np.array(list(itertools.permutations(range(5))))
    place = np.argsort(orders, axis=1)
    return orders[place[:, 1] < place[:, 2]] if square else orders


def layer_work(
    numbers: Bitfusion,
    shape: Shape,
    powers: Int[Array, "T 4"],
    orders: Int[Array, "R 5"],
    weight_bits: Int[Array, ""],
    activation_bits: Int[Array, ""],
) -> Work:
    """Counts the work of one layer in its best tiles and order: fewest cycles, then least energy.

    Args:
      numbers: the machine.
      shape: the layer.
      powers: tiles to try, as in `as_tile`.
      orders: orders of the loops to try, from `loop_orders`.
      weight_bits, activation_bits: widths.

    Returns:
      Counts; cycles are `NEVER` where no tile fits the buffers.
    """

    def count(powers: Array, order: Array) -> Work:
        return _tile_work(numbers, shape, as_tile(numbers, shape, powers), order, weight_bits, activation_bits)

    orders = jnp.asarray(orders)

    def score(powers: Array, order: Array) -> tuple[Array, Array]:
        counts = count(powers, order)
        return counts.cycles, jnp.asarray(sum(energies(numbers, counts)))

    cycles, energy = jax.lax.optimization_barrier(jax.vmap(jax.vmap(score, (None, 0)), (0, None))(powers, orders))
    best = _first_least(cycles, energy)
    found = count(powers[best // len(orders)], orders[best % len(orders)])
    scaled = jax.tree.map(lambda field: field * shape.jobs, found)
    return scaled._replace(cycles=jnp.where(found.cycles == NEVER, NEVER, scaled.cycles))


def _first_least(*keys: Array) -> Array:
    """Flat index of the least entry, by the first key, then by the next."""
    least = jnp.ones(keys[0].shape, bool)
    for key in (*keys, jnp.arange(keys[0].size).reshape(keys[0].shape)):
        least &= key == jnp.min(key, where=least, initial=jnp.inf if key.dtype == jnp.float64 else NEVER)
    return jnp.argmax(least)


def energies(numbers: Bitfusion, counts: Work) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Joules of the array, of the buffers and of DRAM."""
    filled, read = counts.filled, counts.read
    buffers = read.weights * numbers.weight_read_energy + filled.weights * numbers.weight_write_energy
    buffers += read.inputs * numbers.input_read_energy + filled.inputs * numbers.input_write_energy
    loaded = counts.dram_read - filled.weights - filled.inputs
    buffers += (counts.dram_write + read.outputs) * numbers.output_read_energy
    buffers += (loaded + read.outputs) * numbers.output_write_energy
    return counts.busy * numbers.core_energy, buffers, (counts.dram_read + counts.dram_write) * numbers.dram_energy


def as_tile(numbers: Bitfusion, shape: Shape, powers: Int[Array, "4"]) -> Tile:
    """A tile from powers of two: images, rows and columns, input channels, output channels (in full columns)."""
    images, side, in_channels, out_channels = (jnp.left_shift(1, power) for power in powers)
    columns = jnp.where(shape.unrolled, 1, numbers.outputs)
    return Tile(
        images=jnp.minimum(images, shape.images),
        height=jnp.minimum(side, shape.out_size[0]),
        width=jnp.minimum(side, shape.out_size[1]),
        in_channels=jnp.minimum(in_channels, shape.in_channels),
        out_channels=jnp.minimum(out_channels * columns, shape.out_channels),
    )


def tile_fits(numbers: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Array:
    """Whether the blocks of a tile fit half their buffers."""
    blocks, halves = _blocks(numbers, shape, tile, weight_bits, activation_bits), _halves(numbers)
    fits = [block <= half for block, half in zip(blocks, halves, strict=True)]
    return fits[0] & fits[1] & fits[2]


def _tile_work(
    numbers: Bitfusion, shape: Shape, tile: Tile, order: Array, weight_bits: Array, activation_bits: Array
) -> Work:
    counts = _loop_counts(shape, tile)
    blocks = _blocks(numbers, shape, tile, weight_bits, activation_bits)
    totals, residents = _traffic(numbers, blocks, counts, order)
    tiles = counts.images * counts.height * counts.width * counts.in_channels * counts.out_channels
    busy = tiles * _tile_cycles(numbers, shape, tile, weight_bits, activation_bits)
    once = blocks.outputs * counts.images * counts.height * counts.width * counts.out_channels
    loaded = jnp.where(numbers.reread_outputs, totals.outputs, totals.outputs - once)
    dram_read = totals.weights + totals.inputs + loaded
    first = residents.weights + residents.inputs + jnp.where(loaded > 0, residents.outputs, 0)
    last = residents.outputs
    between = _ceil_div(dram_read + totals.outputs - first - last, numbers.dram_bits)
    cycles = jnp.maximum(busy, between) + _ceil_div(first, numbers.dram_bits) + _ceil_div(last, numbers.dram_bits)
    cycles = jnp.where(tile_fits(numbers, shape, tile, weight_bits, activation_bits), cycles, NEVER)
    read = Operands(*(tiles * bits for bits in _tile_reads(numbers, shape, tile, weight_bits, activation_bits)))
    return Work(cycles, busy, dram_read, totals.outputs, totals, read)


def _loop_counts(shape: Shape, tile: Tile) -> Tile:
    sizes = (shape.images, shape.out_size[0], shape.out_size[1], shape.in_channels, shape.out_channels)
    return Tile(*(_ceil_div(size, part) for size, part in zip(sizes, tile, strict=True)))


def _traffic(numbers: Bitfusion, blocks: Operands, counts: Tile, order: Array) -> tuple[Operands, Operands]:
    """Bits of each operand that move in all, and the block of it that stays in its buffer."""
    counts_in_order = jax.lax.optimization_barrier(jnp.stack(counts)[order])
    pairs = [
        _operand_traffic(block, half, counts_in_order, jax.lax.optimization_barrier(jnp.asarray(depends)[order]))
        for block, half, depends in zip(blocks, _halves(numbers), DEPENDS, strict=True)
    ]
    return Operands(*(total for total, _ in pairs)), Operands(*(resident for _, resident in pairs))


def _operand_traffic(block: Array, half: Array, counts: Array, depends: Array) -> tuple[Array, Array]:
    """Grows the block loop by loop; once it exceeds its buffer, every further loop fetches all of it again."""
    total, resident, fits = block, block, jnp.array(True)
    for count, changes in zip(counts, depends, strict=True):
        grown = total * count
        still = fits & (~changes | (grown <= half))
        total = jnp.where(changes | ~fits, grown, total)
        resident = jnp.where(still, total, resident)
        fits = still
    return total, resident


def _halves(numbers: Bitfusion) -> Operands:
    """Bits of half of each buffer."""
    return Operands(numbers.weight_buffer * 4, numbers.input_buffer * 4, numbers.output_buffer * 4)


def _blocks(numbers: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Operands:
    """Bits of each operand's block."""
    height, width = (shape.kernel[i] + (side - 1) * shape.stride[i] for i, side in enumerate((tile.height, tile.width)))
    patch = jnp.where(shape.unrolled, tile.height * tile.width * _area(shape), height * width)
    depth = _padded(_area(shape) * tile.in_channels, summed(numbers, weight_bits, activation_bits))
    wide = _padded(tile.out_channels, numbers.outputs)
    return Operands(
        weights=depth * tile.out_channels * weight_bits,
        inputs=patch * tile.in_channels * tile.images * activation_bits,
        outputs=tile.height * tile.width * wide * tile.images * numbers.output_bits,
    )


def _tile_cycles(numbers: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Array:
    together, area = summed(numbers, weight_bits, activation_bits), _area(shape)
    steps = jnp.where(
        shape.unrolled, _ceil_div(area * tile.in_channels, together), area * _ceil_div(tile.in_channels, together)
    )
    return tile.images * tile.height * tile.width * _ceil_div(tile.out_channels, numbers.outputs) * steps


def _tile_reads(numbers: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Operands:
    """Bits between the buffers and the array, in the cheapest of input-, output- and weight-stationary dataflow."""
    area, together = _area(shape), summed(numbers, weight_bits, activation_bits)
    places = tile.images * tile.height * tile.width
    inner = jnp.where(
        shape.unrolled, _padded(area * tile.in_channels, together), area * _padded(tile.in_channels, together)
    )
    outer = _padded(tile.out_channels, numbers.outputs)
    w, a, y = weight_bits, activation_bits, numbers.output_bits
    flow_input = inner * places * (a + outer * (w + y))
    flow_output = outer * places * (y + inner * (a + w))
    flow_weight = inner * outer * (w + places * (a + y))
    by_input = (flow_input <= flow_output) & (flow_input <= flow_weight)
    by_output = ~by_input & (flow_output <= flow_weight)
    by_weight = ~by_input & ~by_output
    patches, products = area * tile.in_channels * places, area * tile.in_channels * places * tile.out_channels
    return Operands(
        weights=jnp.where(by_weight, area * tile.in_channels * tile.out_channels, products) * w,
        inputs=jnp.where(by_input, patches, products) * a,
        outputs=jnp.where(by_output, places * tile.out_channels, products) * y,
    )


def _area(shape: Shape) -> Array:
    return shape.kernel[0] * shape.kernel[1]


def summed(numbers: Bitfusion, weight_bits: Array | np.ndarray, activation_bits: Array | np.ndarray) -> Array:
    """Products that one column of the array adds up a cycle."""
    fused = (8 // jnp.maximum(activation_bits, 2)) * (8 // jnp.maximum(weight_bits, 2))
    shared = 16 // (_ceil_div(activation_bits, 2) * _ceil_div(weight_bits, 2))
    return numbers.inputs * jnp.where(numbers.share_bricks, shared, fused)


def _padded(size: Array, step: Array) -> Array:
    return _ceil_div(size, step) * step


def _ceil_div(a: Array | np.ndarray, b: Array | int) -> Array:
    # Exact below 2**52, and many times faster than dividing integers.
    return jnp.ceil(a / b).astype(jnp.int64)
