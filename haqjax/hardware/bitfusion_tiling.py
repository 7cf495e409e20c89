"""Tiling on BitFusion: the tiles of a layer, in the order of loops that takes the fewest cycles.

Everything is traced 64-bit integers; call it where `jax.enable_x64` is on.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.hardware.bitfusion_tile import (
    Bitfusion,
    Operands,
    Shape,
    Tile,
    as_tile,
    ceil_div,
    half_buffers,
    tile_blocks,
    tile_cycles,
    tile_fits,
    tile_reads,
)


class Work(NamedTuple):
    """Cycles and traffic of a layer; bits, but for the cycles."""

    cycles: Int[Array, "*n"]
    busy: Int[Array, "*n"]  # cycles in which the array works
    dram_read: Int[Array, "*n"]
    dram_write: Int[Array, "*n"]
    moved: Operands  # from DRAM to buffers; outputs the other way, too
    read: Operands  # from buffers to the array; outputs the other way, too


NEVER = np.iinfo(np.int64).max  # cycles where no tile fits the buffers
# True for loops that change the block that an operand needs, in the order of the fields of Tile.
DEPENDS = (
    np.array([False, False, False, True, True]),  # weights
    np.array([True, True, True, True, False]),  # inputs
    np.array([True, True, True, False, True]),  # outputs
)


def list_loop_orders(square: bool) -> Int[np.ndarray, "R 5"]:
    """Lists all orders of the five loops, innermost first; where maps are square, rows stay inside columns."""
    orders = np.array(list(itertools.permutations(range(5))))
    place = np.argsort(orders, axis=1)
    return orders[place[:, 1] < place[:, 2]] if square else orders


def count_layer_work(
    spec: Bitfusion,
    shape: Shape,
    powers: Int[Array, "T 4"],
    orders: Int[Array, "R 5"],
    weight_bits: Int[Array, ""],
    activation_bits: Int[Array, ""],
) -> Work:
    """Counts the work of one layer in its best tiles and order: fewest cycles, then least energy.

    Args:
      spec: the machine.
      shape: the layer.
      powers: tiles to try, as in `as_tile`.
      orders: orders of the loops to try, from `list_loop_orders`.
      weight_bits, activation_bits: widths.

    Returns:
      Counts; cycles are `NEVER` where no tile fits the buffers.
    """
    orders = jnp.asarray(orders)

    def count(powers: Array, order: Array) -> Work:
        return _count_tile(spec, shape, as_tile(spec, shape, powers), order, weight_bits, activation_bits)

    def score(powers: Array, order: Array) -> tuple[Array, Array]:
        counts = count(powers, order)
        return counts.cycles, jnp.asarray(sum(energies(spec, counts)))

    cycles, energy = jax.lax.optimization_barrier(jax.vmap(jax.vmap(score, (None, 0)), (0, None))(powers, orders))
    best = _first_least(cycles, energy)
    found = count(powers[best // len(orders)], orders[best % len(orders)])
    scaled = jax.tree.map(lambda field: field * shape.jobs, found)
    return scaled._replace(cycles=jnp.where(found.cycles == NEVER, NEVER, scaled.cycles))


def _first_least(*keys: Array) -> Array:
    """Finds the flat index of the least entry, by the first key, then by the next."""
    least = jnp.ones(keys[0].shape, bool)
    for key in (*keys, jnp.arange(keys[0].size).reshape(keys[0].shape)):
        least &= key == jnp.min(key, where=least, initial=jnp.inf if key.dtype == jnp.float64 else NEVER)
    return jnp.argmax(least)


def energies(spec: Bitfusion, counts: Work) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Computes the joules of the array, of the buffers, of DRAM."""
    moved, read = counts.moved, counts.read
    buffers = read.weights * spec.weight_read_energy + moved.weights * spec.weight_write_energy
    buffers += read.inputs * spec.input_read_energy + moved.inputs * spec.input_write_energy
    loaded = counts.dram_read - moved.weights - moved.inputs
    buffers += (counts.dram_write + read.outputs) * spec.output_read_energy
    buffers += (loaded + read.outputs) * spec.output_write_energy
    return counts.busy * spec.core_energy, buffers, (counts.dram_read + counts.dram_write) * spec.dram_energy


def _count_tile(
    spec: Bitfusion, shape: Shape, tile: Tile, order: Array, weight_bits: Array, activation_bits: Array
) -> Work:
    sizes = (shape.images, shape.out_size[0], shape.out_size[1], shape.in_channels, shape.out_channels)
    counts = Tile(*(ceil_div(size, part) for size, part in zip(sizes, tile, strict=True)))
    blocks = tile_blocks(spec, shape, tile, weight_bits, activation_bits)
    totals, residents = _traffic(spec, blocks, counts, order)
    tiles = counts.images * counts.height * counts.width * counts.in_channels * counts.out_channels
    busy = tiles * tile_cycles(spec, shape, tile, weight_bits, activation_bits)
    once = blocks.outputs * counts.images * counts.height * counts.width * counts.out_channels
    loaded = jnp.where(spec.reread_outputs, totals.outputs, totals.outputs - once)
    dram_read = totals.weights + totals.inputs + loaded
    first = residents.weights + residents.inputs + jnp.where(loaded > 0, residents.outputs, 0)
    last = residents.outputs
    between = ceil_div(dram_read + totals.outputs - first - last, spec.dram_bits)
    cycles = jnp.maximum(busy, between) + ceil_div(first, spec.dram_bits) + ceil_div(last, spec.dram_bits)
    cycles = jnp.where(tile_fits(spec, shape, tile, weight_bits, activation_bits), cycles, NEVER)
    read = Operands(*(tiles * bits for bits in tile_reads(spec, shape, tile, weight_bits, activation_bits)))
    return Work(cycles, busy, dram_read, totals.outputs, totals, read)


def _traffic(spec: Bitfusion, blocks: Operands, counts: Tile, order: Array) -> tuple[Operands, Operands]:
    """Counts the bits of each operand that move in all; also returns the block of it that stays in its buffer."""
    # The barriers keep XLA from gathering anew for every tile and order that it compares.
    counts_in_order = jax.lax.optimization_barrier(jnp.stack(counts)[order])
    pairs = [
        _operand_traffic(block, half, counts_in_order, jax.lax.optimization_barrier(jnp.asarray(depends)[order]))
        for block, half, depends in zip(blocks, half_buffers(spec), DEPENDS, strict=True)
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
