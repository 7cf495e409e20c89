"""GEMM: layers as matrix products, the input of accelerator models."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from haqjax.types import AnyArray, LayerTable


def as_subpixel(layers: LayerTable) -> LayerTable:
    """Reads transposed convolutions as plain ones, whose outputs are shuffled into a larger map.

    One that spreads its input map by a factor s has, for each of the s x s places that an output can have between two
    inputs, a convolution of its own with an s x s-th of the taps (Shi et al. 2016, arXiv 1609.05158). Where s does not
    divide the kernel, all of them have as many taps as the largest, which is more work than `LayerTable.macs` counts.

    Returns:
      The table of the plain convolutions; the same one where none is transposed.

    >>> from haqjax.tracing.layer_table import layers
    >>> from jax.lax import conv_transpose
    >>> network = lambda params, x: conv_transpose(x, params["w"], (2, 2), "SAME")
    >>> table = as_subpixel(layers(network, {"w": np.ones((4, 4, 8, 8))}, np.ones((1, 8, 8, 8))))
    >>> table.kernel.tolist(), table.out_size.tolist(), table.out_channels.tolist(), table.macs.tolist()
    ([[2, 2]], [[8, 8]], [32], [65536])
    """
    if layers.upsampling is None or (np.asarray(layers.upsampling) == 1).all():
        return layers
    factor = np.asarray(layers.upsampling)
    return dataclasses.replace(
        layers,
        kernel=-(-np.asarray(layers.kernel) // factor),
        out_size=layers.places,
        out_channels=np.asarray(layers.out_channels) * np.prod(factor, axis=-1),
        upsampling=None,
    )


class Gemm(NamedTuple):
    """A layer as `jobs` equal matrix products."""

    vectors: Int[Array, "*n"]  # P: activation vectors
    outputs: Int[Array, "*n"]  # N: results of each
    length: Int[Array, "*n"]  # K: summands of each result
    jobs: Int[Array, "*n"]


def as_gemm(batch: Int[AnyArray, "*n"], layers: LayerTable, pack: bool, numpy: Any = jnp) -> Gemm:
    """Reads each layer as matrix products; 64-bit integers where `jax.enable_x64` is on.

    A convolution is one product per image, a grouped one a product per image and group. A dense layer is one product
    with the images among the vectors.

    Args:
      batch: images.
      layers: the network, L layers.
      pack: whether a depthwise layer is one product per channel, the images side by side in a block-diagonal matrix.
      numpy: what computes it, `jax.numpy` or `numpy`.

    Returns:
      The products, each [L].
    """
    area, rows = (numpy.prod(numpy.asarray(n), axis=-1) for n in (layers.kernel, layers.out_size))
    packed = numpy.where(layers.depthwise & ~layers.dense & pack, batch, 1)
    return Gemm(
        vectors=numpy.where(layers.dense, batch, 1) * rows,
        outputs=packed * layers.out_channels // layers.groups,
        length=packed * area * layers.in_channels // layers.groups,
        jobs=numpy.where(layers.dense, 1, batch) // packed * layers.groups,
    )
