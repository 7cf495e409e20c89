"""Roofline model (Williams et al. 2009): an array of multipliers, or a systolic one, against DRAM bandwidth."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.hardware.gemm import Gemm, as_gemm, as_subpixel
from haqjax.hardware.overflow import check_layers
from haqjax.hardware.spec import Amount, Count, Positive, Switch, check_fields
from haqjax.hardware.usage import Energies, Streams, Usage
from haqjax.types import WIDTHS, LayerTable


class Roofline(NamedTuple):
    """An array that multiplies a rows x depth by a depth x columns matrix a cycle, at its narrowest widths."""

    rows: Count  # activation vectors at a time
    columns: Count  # outputs at a time
    depth: Count  # summands at a time
    weight_step: Count  # weight bits of a cycle; wider weights take several, 8 is fixed hardware and 1 bit-serial
    activation_step: Count  # activation bits of a cycle
    dram_bits: Count  # moved a cycle
    output_bits: Count  # width of an output on its way to DRAM
    batch: Count  # images
    clock: Positive  # Hz
    overhead: Amount  # s a layer
    mac_energy: Amount  # J per multiply-accumulate, whatever its widths
    mac_bit_energy: Amount  # J per multiply-accumulate and product of its widths
    sram_energy: Amount  # J per bit between the buffers and the array
    dram_energy: Amount  # J per bit
    leakage_power: Amount  # W


class Systolic(NamedTuple):
    """A systolic array of 8-bit multiplier cells, one multiply-accumulate a cell and cycle at any widths."""

    rows: Count
    columns: Count
    output_stationary: Switch  # outputs stay in their cells; where false, weights do
    dram_bits: Count  # the rest as in Roofline
    output_bits: Count
    batch: Count
    clock: Positive
    overhead: Amount
    mac_energy: Amount
    mac_bit_energy: Amount
    sram_energy: Amount
    dram_energy: Amount
    leakage_power: Amount


class Fetched(NamedTuple):
    """Elements that come from DRAM, for the whole batch."""

    weights: Float[Array, "*n"]
    inputs: Float[Array, "*n"]


class _ArrayWork(NamedTuple):
    """Work of the array of multipliers."""

    cycles: Float[Array, "*n"]
    ideal: Float[Array, "*n"]  # cycles, had every multiplier done useful work in each
    bit_products: Float[Array, "*n"]  # of one multiply-accumulate


Spec = TypeVar("Spec", Roofline, Systolic)


def estimate(spec: Spec, layers: LayerTable) -> Usage:
    """Estimates the usage of every layer at every pair of bit-widths: the slower of array and DRAM, side by side.

    Every weight, input and output moves between DRAM and the machine once.

    Args:
      spec: the machine.
      layers: the network, L layers.

    Returns:
      The usage for one batch.

    Raises:
      ValueError: a field of the machine is out of range, or the sizes of a layer multiply to more than 2**62.

    >>> from haqjax.tracing.layer_table import layers
    >>> from haqjax.hardware import machine
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((64, 32))}, np.ones((1, 64)))
    >>> usage = estimate(machine("systolic").spec, network)
    >>> float(usage.compute[0, 7, 7] * 5e8)  # one row of 64 through 32 x 32 cells
    125.0
    """
    check_fields(spec, type(spec).__name__.lower())
    layers = as_subpixel(layers)
    check_layers(layers, spec.batch)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _estimate_network(spec, layers))


@jax.jit
def _estimate_network(spec: Spec, layers: LayerTable) -> Usage:
    gemm = as_gemm(spec.batch, layers, pack=False)
    fetched = Fetched(
        weights=gemm.outputs * gemm.length * layers.groups,
        inputs=layers.in_channels * jnp.prod(jnp.asarray(layers.in_size), axis=-1) * spec.batch,
    )
    gemm, fetched = jax.tree.map(lambda field: field[:, None, None].astype(float), (gemm, fetched))
    bits = jnp.arange(1.0, WIDTHS + 1)
    usage = estimate_layer(spec, gemm, fetched, bits[None, :, None], bits[None, None, :])
    return jax.tree.map(lambda field: jnp.broadcast_to(field, (len(layers), WIDTHS, WIDTHS)), usage)


def estimate_layer(
    spec: Spec, layer: Gemm, fetched: Fetched, weight_bits: jax.Array, activation_bits: jax.Array
) -> Usage:
    """Estimates layers element by element: scalars for one layer at one pair, or arrays that broadcast."""
    results = layer.vectors * layer.outputs * layer.jobs
    macs = results * layer.length
    count = _count_padded if isinstance(spec, Roofline) else _count_systolic
    array = count(spec, layer, macs, weight_bits, activation_bits)
    moved = Streams(fetched.weights * weight_bits, fetched.inputs * activation_bits, results * spec.output_bits)
    transfers = Streams(*(bits / spec.dram_bits / spec.clock for bits in moved))
    compute = array.cycles / spec.clock
    latency = jnp.maximum(compute, sum(transfers)) + spec.overhead
    weight_reads = layer.outputs * weight_bits * _ceil_div(layer.vectors, spec.rows)
    activation_reads = layer.vectors * activation_bits * _ceil_div(layer.outputs, spec.columns)
    read = layer.jobs * layer.length * (weight_reads + activation_reads) + results * spec.output_bits
    energy = Energies(
        array=macs * (spec.mac_energy + spec.mac_bit_energy * array.bit_products),
        buffers=read * spec.sram_energy,
        dram=sum(moved) * spec.dram_energy,
        leakage=latency * spec.leakage_power,
    )
    return Usage(latency, array.ideal / spec.clock, compute, transfers, moved, energy)


def _count_padded(
    spec: Roofline, layer: Gemm, macs: jax.Array, weight_bits: jax.Array, activation_bits: jax.Array
) -> _ArrayWork:
    steps = _ceil_div(weight_bits, spec.weight_step) * _ceil_div(activation_bits, spec.activation_step)
    tiles = _ceil_div(layer.vectors, spec.rows) * _ceil_div(layer.outputs, spec.columns)
    cycles = layer.jobs * tiles * _ceil_div(layer.length, spec.depth) * steps
    ideal = macs * steps / (spec.rows * spec.columns * spec.depth)
    return _ArrayWork(cycles, ideal, steps * spec.weight_step * spec.activation_step)


def _count_systolic(
    spec: Systolic, layer: Gemm, macs: jax.Array, weight_bits: jax.Array, activation_bits: jax.Array
) -> _ArrayWork:
    """Counts by SCALE-Sim's closed forms (Samajdar et al. 2018), free of stalls."""
    rows, columns = spec.rows, spec.columns
    skew = rows + columns - 2  # cycles until the data has gone through the array
    outputs_stay = _ceil_div(layer.vectors, rows) * _ceil_div(layer.outputs, columns) * (layer.length + skew)
    weights_stay = _ceil_div(layer.length, rows) * _ceil_div(layer.outputs, columns) * (layer.vectors + rows + skew)
    cycles = layer.jobs * (jnp.where(spec.output_stationary, outputs_stay, weights_stay) - 1)
    return _ArrayWork(cycles, macs / (rows * columns), jnp.asarray(float(WIDTHS**2)))


def _ceil_div(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.ceil(a / b)  # exact below 2**52
