"""Proxy costs, which know no machine: bit operations (BOPs) of a network, bytes of its stored weights."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from haqjax.types import WIDTHS, LayerTable

CONVENTIONS = ("products", "accumulated")
PARAMETER_BYTES = 4.0  # what stays unquantised is stored in 32 bits: biases, batch norm, scales, shared values
STORAGES = ("plain", "scales", "codebook")


def bop_table(layers: LayerTable, convention: str = "products") -> Float[np.ndarray, "L 8 8"]:
    """Counts the bit operations of every layer at every pair of bit-widths, for one image.

    There are two conventions, whose numbers must not be compared:

    * "products": w a for each multiply-accumulate (HAWQ-V3, Yao et al. 2021).
    * "accumulated": w a + w + a + log2 K, with K summands of an output: the accumulator's width counts, too (UNIQ,
      Baskin et al. 2018).

    Args:
      layers: the network, L layers.
      convention: "products" or "accumulated".

    Returns:
      Operations, indexed `[layer, weight_bits - 1, activation_bits - 1]`.

    Raises:
      ValueError: the convention is neither.

    >>> from haqjax.tracing.layer_table import layers
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((64, 10))}, np.ones((1, 64)))
    >>> bop_table(network)[0, 3, 7], bop_table(network, "accumulated")[0, 3, 7]
    (np.float64(20480.0), np.float64(32000.0))
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention}, expected one of {', '.join(CONVENTIONS)}")
    bits = np.arange(1.0, WIDTHS + 1)
    w, a = bits[None, :, None], bits[None, None, :]
    of_each = w * a
    if convention == "accumulated":
        summands = np.prod(layers.kernel, axis=1) * (layers.in_channels // layers.groups)
        of_each = of_each + w + a + np.log2(summands)[:, None, None]
    found = dataclasses.replace(layers, further=None, further_of=None).macs[:, None, None] * of_each
    if layers.further is not None and layers.further_of is not None:
        np.add.at(found, layers.further_of, bop_table(layers.further, convention))
    return found


def _is_lookup(layers: LayerTable) -> Bool[np.ndarray, "L"]:
    return np.zeros(len(layers), bool) if layers.lookup is None else layers.lookup


def size_table(layers: LayerTable, storage: str = "plain") -> Float[np.ndarray, "L 8 8"]:
    """Counts the bytes of every layer's weights at every pair of bit-widths, bits packed without gaps.

    Args:
      layers: the network, L layers.
      storage: "plain" counts the weights alone, as HAQ's published sizes do; "scales" adds a 32-bit scale for each
        output channel, or entry of a table that is looked up in (linear quantisation); "codebook" adds 2**w shared
        values of 32 bits (k-means).

    Returns:
      Bytes, indexed `[layer, weight_bits - 1, activation_bits - 1]`; activations do not matter.

    Raises:
      ValueError: the storage is none of these.

    >>> from haqjax.tracing.layer_table import layers
    >>> network = layers(lambda params, x: x @ params["w"], {"w": np.ones((64, 10))}, np.ones((1, 64)))
    >>> [float(size_table(network, storage)[0, 3, 7]) for storage in STORAGES]
    [320.0, 360.0, 384.0]
    """
    if storage not in STORAGES:
        raise ValueError(f"storage is {storage}, expected one of {', '.join(STORAGES)}")
    bits = np.arange(1, WIDTHS + 1)
    extra = {
        "plain": np.zeros((1, 1)),
        "scales": np.where(_is_lookup(layers), layers.in_channels, layers.out_channels)[:, None],
        "codebook": 2 ** bits[None, :],
    }[storage]
    size = layers.weights[:, None] * bits[None, :] / 8 + PARAMETER_BYTES * extra
    return np.repeat(size[:, :, None], WIDTHS, axis=2)
