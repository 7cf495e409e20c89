"""GEMM: layers as matrix products, the input of accelerator models."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from haqjax.types import AnyArray, LayerTable


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
