"""One tile of a layer on BitFusion: its blocks in the buffers, its cycles, its reads.

Everything is traced 64-bit integers; call it where `jax.enable_x64` is on.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from haqjax.hardware.spec import Amount, Count, Positive, Switch


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
    """The part of a layer that is in the buffers at a time; or the number of turns of each loop."""

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


def as_tile(spec: Bitfusion, shape: Shape, powers: Int[Array, "4"]) -> Tile:
    """Makes a tile from powers of two: images, rows as columns, input channels, output channels (in full columns)."""
    images, side, in_channels, out_channels = (jnp.left_shift(1, power) for power in powers)
    columns = jnp.where(shape.unrolled, 1, spec.outputs)
    return Tile(
        images=jnp.minimum(images, shape.images),
        height=jnp.minimum(side, shape.out_size[0]),
        width=jnp.minimum(side, shape.out_size[1]),
        in_channels=jnp.minimum(in_channels, shape.in_channels),
        out_channels=jnp.minimum(out_channels * columns, shape.out_channels),
    )


def tile_fits(spec: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Array:
    """Returns True where the blocks of a tile fit half their buffers."""
    blocks = tile_blocks(spec, shape, tile, weight_bits, activation_bits)
    fits = [block <= half for block, half in zip(blocks, half_buffers(spec), strict=True)]
    return fits[0] & fits[1] & fits[2]


def tile_blocks(spec: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Operands:
    """Counts the bits of each operand's block."""
    height, width = (shape.kernel[i] + (side - 1) * shape.stride[i] for i, side in enumerate((tile.height, tile.width)))
    patch = jnp.where(shape.unrolled, tile.height * tile.width * _area(shape), height * width)
    depth = _padded(_area(shape) * tile.in_channels, summed(spec, weight_bits, activation_bits))
    wide = _padded(tile.out_channels, spec.outputs)
    return Operands(
        weights=depth * tile.out_channels * weight_bits,
        inputs=patch * tile.in_channels * tile.images * activation_bits,
        outputs=tile.height * tile.width * wide * tile.images * spec.output_bits,
    )


def half_buffers(spec: Bitfusion) -> Operands:
    """Counts the bits of half of each buffer."""
    return Operands(spec.weight_buffer * 4, spec.input_buffer * 4, spec.output_buffer * 4)


def tile_cycles(spec: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Array:
    """Counts the cycles in which the array computes a tile."""
    together, area = summed(spec, weight_bits, activation_bits), _area(shape)
    steps = jnp.where(
        shape.unrolled, ceil_div(area * tile.in_channels, together), area * ceil_div(tile.in_channels, together)
    )
    return tile.images * tile.height * tile.width * ceil_div(tile.out_channels, spec.outputs) * steps


def tile_reads(spec: Bitfusion, shape: Shape, tile: Tile, weight_bits: Array, activation_bits: Array) -> Operands:
    """Counts bits between buffers and array, in the cheapest of input-, output-, weight-stationary dataflow."""
    area, together = _area(shape), summed(spec, weight_bits, activation_bits)
    places = tile.images * tile.height * tile.width
    inner = jnp.where(
        shape.unrolled, _padded(area * tile.in_channels, together), area * _padded(tile.in_channels, together)
    )
    outer = _padded(tile.out_channels, spec.outputs)
    w, a, y = weight_bits, activation_bits, spec.output_bits
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


def summed(spec: Bitfusion, weight_bits: Array | np.ndarray, activation_bits: Array | np.ndarray) -> Array:
    """Counts the products that one column of the array adds up a cycle."""
    fused = (8 // jnp.maximum(activation_bits, 2)) * (8 // jnp.maximum(weight_bits, 2))
    any_free = 16 // (ceil_div(activation_bits, 2) * ceil_div(weight_bits, 2))
    return spec.inputs * jnp.where(spec.share_bricks, any_free, fused)


def _area(shape: Shape) -> Array:
    return shape.kernel[0] * shape.kernel[1]


def _padded(size: Array, step: Array) -> Array:
    return ceil_div(size, step) * step


def ceil_div(a: Array | np.ndarray, b: Array | int) -> Array:
    """Rounds the quotient up; exact below 2**52, and many times faster than dividing integers."""
    return jnp.ceil(a / b).astype(jnp.int64)
