"""Lookups in tables, such as embeddings, on an accelerator: entries move from DRAM, and nothing is multiplied."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from haqjax.hardware.usage import Energies, Streams, Usage
from haqjax.types import WIDTHS, LayerTable


def blank_lookups(layers: LayerTable, lookup: Bool[np.ndarray, "L"]) -> LayerTable:
    """Replaces lookups by a product of two numbers, which every machine can price."""
    products = ~lookup
    return dataclasses.replace(
        layers,
        lookup=None,
        in_channels=np.where(products, layers.in_channels, 1),
        out_channels=np.where(products, layers.out_channels, 1),
        in_size=np.where(products[:, None], layers.in_size, 1),
        out_size=np.where(products[:, None], layers.out_size, 1),
    )


def price_lookups(usage: Usage, spec: Any, port_bits: int, layers: LayerTable, lookup: Bool[np.ndarray, "L"]) -> Usage:
    """Replaces what lookups use: the time and energy of moving the entries that are read, at their bits.

    Args:
      usage: of all layers.
      spec: of the machine: its batch, clock, and energies.
      port_bits: that arrive in a cycle.
      layers: with the sizes of the lookups.
    """
    entries = spec.batch * layers.out_size[:, 0] * layers.out_channels
    bits = np.arange(1.0, WIDTHS + 1)[None, :, None]
    moved = np.broadcast_to(entries[:, None, None] * bits, usage.latency.shape)
    nothing, seconds = np.zeros_like(moved), moved / port_bits / spec.clock
    energy = Energies(nothing, nothing, dram=moved * spec.dram_energy, leakage=seconds * spec.leakage_power)
    others = [nothing] * (len(Streams._fields) - 1)
    found = Usage(seconds, nothing, nothing, Streams(seconds, *others), Streams(moved, *others), energy)
    return jax.tree.map(lambda new, old: np.where(lookup[:, None, None], new, old), found, usage)
