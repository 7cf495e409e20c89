"""Checks that counts stay within 64-bit integers: one that passes 2**63 becomes another number, unseen."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from haqjax.reading import quote
from haqjax.types import WIDTHS, LayerTable

MOST = 2.0**62


def check_layers(layers: LayerTable, batch: Any = 1) -> None:
    """Checks the products of a network's own sizes, for a batch and at the widest bits.

    Args:
      layers: the network, L layers.
      batch: images; of a family of machines one for each, [*machines].

    Raises:
      ValueError: one passes 2**62.
    """
    of, images = as_floats(layers), np.asarray(batch, np.float64)[..., None]
    area, rows, inputs = (np.prod(field, axis=-1) for field in (of.kernel, of.out_size, of.in_size))
    products = area * of.in_channels * of.out_channels * np.maximum(rows, 1) * WIDTHS**2
    check_products(layers, images * np.maximum(products, of.in_channels * inputs * WIDTHS))


def check_products(layers: LayerTable, products: Float[np.ndarray, "*machines L"]) -> None:
    """Checks upper bounds of what is counted for each layer.

    Raises:
      ValueError: one passes 2**62.
    """
    largest = np.max(products.reshape(-1, len(layers)), axis=0)
    bad = ~(largest <= MOST)
    if bad.any():
        layer = int(np.argmax(bad))
        raise ValueError(
            f"layer {quote(layers.names[layer])}: with the machine's counts its sizes multiply to as much as "
            f"{largest[layer]:.1e}, more than the {MOST:.1e} that can be counted: make the batch or the counts smaller"
        )


def as_floats(layers: LayerTable) -> LayerTable:
    """Returns the sizes as float64, whose products are never another number."""
    names = ("kernel", "stride", "in_channels", "out_channels", "groups", "in_size", "out_size")
    fields: dict[str, Any] = {name: np.asarray(getattr(layers, name), np.float64) for name in names}
    return dataclasses.replace(layers, **fields)
