"""Bit operations: a cost of mixed precision that knows no machine."""

import numpy as np
from jaxtyping import Float

from haqjax.types import WIDTHS, LayerTable

CONVENTIONS = ("products", "accumulated")


def bop_table(layers: LayerTable, convention: str = "products") -> Float[np.ndarray, "L 8 8"]:
    """Bit operations of every layer at every pair of bit-widths, for one image.

    Two conventions are in use, and their numbers must not be compared:

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

    >>> from haqjax.tracing.hooks import layers
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
    return layers.macs[:, None, None] * of_each
