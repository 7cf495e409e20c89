"""BISMO (Umuroglu et al. 2018, arXiv 1806.08862), a bit-serial matrix multiplier, as HAQ runs it: exact cycles.

The equations stand in docs/hardware.md. Everything is 64-bit integers, in a scope of its own: cycle counts pass 2**32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.hardware.gemm import Gemm, as_gemm, as_subpixel
from haqjax.hardware.overflow import as_floats, check_layers, check_products
from haqjax.hardware.spec import Amount, Count, Positive, check_fields
from haqjax.hardware.usage import Energies, Streams, Usage
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, LayerTable


class Bismo(NamedTuple):
    """One instance; fields with leading axes are a family of machines."""

    array: Count  # D: the array is D x D dot-product units
    dot_bits: Count  # Dk: binary products of one unit and cycle
    port_bits: Count  # bits that the port of each operand delivers a cycle
    buffer_words: Count  # words of Dk bits in one row of an operand's buffer
    result_bits: Count  # width of a result
    batch: Count  # images
    clock: Positive  # Hz
    operation_energy: Amount  # J per binary operation; a product and its sum are two
    dram_energy: Amount  # J per bit moved
    leakage_power: Amount  # W, as long as the batch takes


class Work(NamedTuple):
    """Cycles and traffic of a layer."""

    cycles: Int[Array, "*n"]
    busy: Int[Array, "*n"]  # cycles in which the array works
    weight_bits: Int[Array, "*n"]  # read from DRAM
    activation_bits: Int[Array, "*n"]  # read from DRAM
    result_bits: Int[Array, "*n"]  # written to DRAM


def count_work(spec: Bismo, layers: LayerTable) -> Work:
    """Counts cycles and traffic of every layer at every pair of bit-widths, for one batch of images.

    Args:
      spec: one machine, or a family of them along leading axes.
      layers: the network, L layers.

    Returns:
      Exact int64 counts on the host, [*machines, L, 8, 8]: `[..., layer, weight_bits - 1, activation_bits - 1]`.

    Raises:
      ValueError: a field of the machine is out of range, or a count may pass 2**62.
    """
    bits = range(1, WIDTHS + 1)
    _, weight_bits, activation_bits = np.meshgrid(range(len(layers)), bits, bits, indexing="ij")
    return _count(spec, layers, weight_bits, activation_bits)


def count_policy_work(spec: Bismo, layers: LayerTable, policy: Int[np.ndarray, "L 2"]) -> Work:
    """Counts cycles and traffic of every layer under one policy, on one machine or a whole family in one call.

    Args:
      spec: one machine, or a family of them along leading axes.
      layers: the network, L layers.
      policy: bits of weights and activations.

    Returns:
      Exact int64 counts on the host, [*machines, L].

    Raises:
      ValueError: the policy is not of whole bits of at least 1, or of another number of layers.

    >>> from haqjax.tracing.layer_table import layers
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((256, 8))}, np.ones((1, 8, 256)))
    >>> family = Bismo(8, 256, np.array([32, 64, 128]), 1024, 32, 1, 2e8, 0.0, 0.0, 0.0)
    >>> count_policy_work(family, network, np.array([[1, 1]])).cycles[:, 0].tolist()  # the wider the port, the sooner
    [64, 32, 16]
    """
    bits = np.asarray(policy)
    if bits.shape != (len(layers), 2) or not np.issubdtype(bits.dtype, np.integer) or (bits < 1).any():
        raise ValueError(f"policy has shape {bits.shape} and type {bits.dtype}, expected whole bits [{len(layers)}, 2]")
    return _count(spec, layers, bits[:, WEIGHT], bits[:, ACTIVATION])


def count_cycles(spec: Bismo, layers: LayerTable) -> Int[np.ndarray, "*machines L 8 8"]:
    """Counts the cycles of every layer at every pair of bit-widths, for one batch of images.

    Equal to every entry of the table that HAQ's authors released from their simulator.

    Args:
      spec: one machine, or a family of them along leading axes.
      layers: the network, L layers.

    Returns:
      Exact int64 counts on the host, indexed `[..., layer, weight_bits - 1, activation_bits - 1]`.

    >>> from haqjax.tracing.layer_table import layers
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((256, 8))}, np.ones((1, 8, 256)))
    >>> spec = Bismo(8, 256, 64, 1024, 32, 1, 2e8, 0.0, 0.0, 0.0)
    >>> count_cycles(spec, network)[0, 0, :3].tolist()  # 8 rows of 4 beats arrive for each bit, then one product
    [32, 64, 96]
    """
    return np.asarray(count_work(spec, layers).cycles)


def estimate(spec: Bismo, layers: LayerTable) -> Usage:
    """Estimates the usage of every layer at every pair of bit-widths.

    The energy is an assumption: busy operations and DRAM bits at constant costs, plus leakage.

    Args:
      spec: one machine.
      layers: the network, L layers.

    Returns:
      The usage for one batch of images.
    """
    counts = jax.tree.map(lambda field: np.asarray(field, np.float64), count_work(spec, layers))
    operations = 2.0 * spec.array**2 * spec.dot_bits  # of a cycle; a product and its sum are two
    moved = Streams(counts.weight_bits, counts.activation_bits, counts.result_bits)
    read = Streams(moved.weights, moved.activations, np.zeros_like(moved.outputs))  # writes of results are free
    transfers = Streams(*(bits / spec.port_bits / spec.clock for bits in read))
    bits = np.arange(1, WIDTHS + 1)
    useful = 2.0 * spec.batch * layers.macs[:, None, None] * (bits[:, None] * bits[None, :])[None]
    latency = counts.cycles / spec.clock
    energy = Energies(
        array=counts.busy * operations * spec.operation_energy,
        buffers=np.zeros_like(latency),  # in operation_energy, a bound for a whole board
        dram=np.sum(moved, axis=0) * spec.dram_energy,
        leakage=latency * spec.leakage_power,
    )
    return Usage(latency, useful / operations / spec.clock, counts.busy / spec.clock, transfers, moved, energy)


def _count(spec: Bismo, layers: LayerTable, weight_bits: np.ndarray, activation_bits: np.ndarray) -> Work:
    """Counts in 64 bits, for bits whose first axis is the layers'; back on the host, where JAX leaves 64 bits alone."""
    check_fields(spec, "bismo")
    layers = as_subpixel(layers)
    check_layers(layers, spec.batch)
    check_products(layers, _bound_work(spec, layers))
    given = (Bismo(*np.broadcast_arrays(*spec)), layers, weight_bits, activation_bits)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _count_batch(*jax.tree.map(_widen, given)))


def _bound_work(spec: Bismo, layers: LayerTable) -> Float[np.ndarray, "*machines L"]:
    """Bounds every count of a layer from above, in floating point.

    An operand of R rows has at most T = R // D + 1 groups, which together have at most R + T D < 2 (R + D) rows.
    """
    array, dot, port, result, batch = (  # [*machines, 1]
        np.asarray(field, np.float64)[..., None]
        for field in (spec.array, spec.dot_bits, spec.port_bits, spec.result_bits, spec.batch)
    )
    gemm: Any = as_gemm(batch, as_floats(layers), pack=True, numpy=np)
    steps = gemm.length // dot + 1
    row = WIDTHS * steps * (dot + port)  # bits of a row, in whole transfers
    tiles = [rows // array + 1 for rows in (gemm.vectors, gemm.outputs)]
    fetched = [2 * (rows + array) * row for rows in (gemm.vectors, gemm.outputs)]
    busy = 4 * tiles[0] * tiles[1] * steps * WIDTHS**2
    written = 4 * (gemm.vectors + array) * (gemm.outputs + array) * result
    return 4 * gemm.jobs * (busy + fetched[0] * tiles[1] + fetched[1] * tiles[0] + written)


def _widen(number: np.ndarray) -> np.ndarray:
    return np.asarray(number, np.int64) if np.issubdtype(np.asarray(number).dtype, np.integer) else np.asarray(number)


@jax.jit
def _count_batch(spec: Bismo, layers: LayerTable, weight_bits: jax.Array, activation_bits: jax.Array) -> Work:
    def count_network(spec: Bismo) -> Work:
        count = count_layer_work
        for _ in range(weight_bits.ndim - 1):
            count = jax.vmap(count, (None, None, 0, 0))
        gemm = as_gemm(spec.batch, layers, pack=True)
        return jax.vmap(count, (None, 0, 0, 0))(spec, gemm, weight_bits, activation_bits)

    for _ in range(spec.array.ndim):
        count_network = jax.vmap(count_network)
    return count_network(spec)


def count_layer_work(spec: Bismo, layer: Gemm, weight_bits: Int[Array, ""], activation_bits: Int[Array, ""]) -> Work:
    """Counts the work of one layer; scalars of 64 bits, so call it where `jax.enable_x64` is on.

    Each operand is split into groups that fit its buffer; every pair of groups is one job, fetched anew.
    """
    steps = _ceil_div(layer.length, spec.dot_bits)
    vector_counts, vector_rows = _groups(spec, layer.vectors, activation_bits, steps)
    output_counts, output_rows = _groups(spec, layer.outputs, weight_bits, steps)

    def job(vectors: jax.Array, outputs: jax.Array) -> Work:
        return _job(spec, layer._replace(vectors=vectors, outputs=outputs), weight_bits, activation_bits)

    jobs = jax.vmap(jax.vmap(job, (None, 0)), (0, None))(vector_rows, output_rows)
    counts = layer.jobs * vector_counts[:, None] * output_counts[None, :]
    return jax.tree.map(lambda each: jnp.sum(counts * each), jobs)


def _groups(spec: Bismo, rows: jax.Array, bits: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts the full groups and the last group of an operand, with the rows of each."""
    tiles = _ceil_div(rows, spec.array)
    most = jnp.maximum(1, spec.buffer_words // (steps * bits))
    groups = _ceil_div(tiles, most)
    full = _ceil_div(tiles, groups) * spec.array
    return jnp.stack([groups - 1, jnp.ones_like(groups)]), jnp.stack([full, rows - (groups - 1) * full])


def _job(spec: Bismo, layer: Gemm, weight_bits: jax.Array, activation_bits: jax.Array) -> Work:
    activations, weights = (layer.vectors, activation_bits), (layer.outputs, weight_bits)
    steps, whole_beats, last_beats = _split(spec, layer.length)
    busy = _ceil_div(layer.vectors, spec.array) * _ceil_div(layer.outputs, spec.array) * steps
    busy = busy * weight_bits * activation_bits
    stalled = jnp.minimum(
        _delay(spec, layer.length, activations, weights), _delay(spec, layer.length, weights, activations)
    )
    row_bits = (whole_beats * (steps - 1) + last_beats) * spec.port_bits
    read = [rows * bits * row_bits for rows, bits in (weights, activations)]
    return Work(busy - 1 + stalled, busy, read[0], read[1], layer.vectors * layer.outputs * spec.result_bits)


def _split(spec: Bismo, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts the steps along a row, the beats that a whole step of it takes to arrive, those of the last step."""
    steps = _ceil_div(length, spec.dot_bits)
    rest = length - spec.dot_bits * (steps - 1)
    return steps, _ceil_div(spec.dot_bits, spec.port_bits), _ceil_div(rest, spec.port_bits)


Operand = tuple[jax.Array, jax.Array]  # rows, bits


def _delay(spec: Bismo, length: jax.Array, outer: Operand, inner: Operand) -> jax.Array:
    """Counts the wait that the order outer tile, inner tile, step, inner bit, outer bit adds, plus one."""
    steps, _, _ = _split(spec, length)
    inner_bits, outer_bits = inner[1], outer[1]
    turn = _ceil_div(inner[0], spec.array) * steps * inner_bits * outer_bits  # cycles of one outer tile
    late = (
        _lateness(spec, length, outer, lambda t, s, b: t * turn + s * inner_bits * outer_bits + b),
        _lateness(spec, length, inner, lambda t, s, b: ((t * steps + s) * inner_bits + b) * outer_bits),
    )
    return jnp.maximum(1, jnp.maximum(*late))


def _lateness(spec: Bismo, length: jax.Array, operand: Operand, first_use: Callable) -> jax.Array:
    """Counts by how many cycles the words of an operand come after their first use, at most.

    Arrival and first use are linear in tile, step and bit but for the last tile and step, so the corners are enough.
    """
    rows, bits = operand
    steps, whole_beats, last_beats = _split(spec, length)
    tiles = _ceil_div(rows, spec.array)
    tile, step = _corners(tiles)[:, None, None], _corners(steps)[None, :, None]
    bit = jnp.stack([jnp.zeros_like(bits), bits - 1])[None, None, :]
    height = jnp.where(tile == tiles - 1, rows - spec.array * (tiles - 1), spec.array)
    beats = jnp.where(step == steps - 1, last_beats, whole_beats)
    tile_beats = spec.array * (whole_beats * (steps - 1) + last_beats) * bits
    arrival = tile_beats * tile + height * (whole_beats * step * bits + beats * (bit + 1))
    return jnp.max(arrival - first_use(tile, step, bit))


def _corners(count: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.stack([jnp.zeros_like(count), count - 2, count - 1]), 0)


def _ceil_div(a: jax.Array, b: jax.Array) -> jax.Array:
    return -(-a // b)
