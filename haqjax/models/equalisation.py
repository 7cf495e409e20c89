"""Cross-layer equalisation (Nagel et al. 2019, arXiv 1906.04721, section 4.1): rescales channels of layers in a row."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.models.network import Apply, Network, Params
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Compute, with_records
from haqjax.tracing.jaxpr import Layer
from haqjax.tracing.layer_table import layers

CAP = 6.0  # of ReLU6, which is between the two layers of a pair


def equalise(network: Network, params: Params, batches: Iterable[Float[Array, "B H W 3"]]) -> Params:
    """Rescales channels so that a layer's weights are of like size for every channel that it reads.

    Where one layer alone reads the channels of another through ReLU6, channel `c` is divided by `s[c]` on the way out
    and its weights multiplied by it on the way in, `s = sqrt(r1 / r2)` for the largest weights `r1` of the first and
    `r2` of the second layer. The paper replaces ReLU6 by ReLU; here the cap stays, so `s` is at least what keeps the
    channel's largest value on the images below 6, and a channel that reaches 6 is left alone: on these images the
    function is the same.

    Args:
      network: a MobileNet of `haqjax.models`; its own parameters are not read.
      params: parameters of the network.
      batches: calibration images, float32 [B, H, W, 3] each.

    Returns:
      `params` with other kernels, and other scales and biases of batch norm.

    Raises:
      ValueError: another network, which has no such pairs, or no batch.

    >>> from haqjax.models import build
    >>> network = build("mobilenet_v2", classes=2, image_size=32, width=0.1, key=jax.random.key(0))
    >>> images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    >>> apply, equal = jax.jit(network.apply), equalise(network, network.params, [images])
    >>> bool(jnp.allclose(apply(equal, images), apply(network.params, images), atol=1e-4))
    True
    """
    names = layers(network.apply, network.params, network.example).names
    pairs = _pairs(network.name, names)
    extremes = [_measure(network.apply, params, images) for images in batches]
    if not extremes:
        raise ValueError("cannot equalise on no images: give at least one batch")
    measured = dict(zip(names, zip(*extremes, strict=True), strict=True))
    found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for first, second in pairs:
        _equalise_pair(_at(found, first), _at(found, second), np.stack(measured[first]), network.epsilon)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)


def _pairs(name: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Lists layers with the one layer that reads each of them through ReLU6, in the order of the network."""
    if name == "mobilenet_v1":
        return list(zip(names, names[1:], strict=False))
    if name == "mobilenet_v2":
        inner = ("expand", "depthwise", "head")  # outputs that others are added to are linear
        return [(one, other) for one, other in zip(names, names[1:], strict=False) if one.endswith(inner)]
    raise ValueError(f"no pairs of layers to equalise are known in {name!r}: there are mobilenet_v1 and mobilenet_v2")


@functools.partial(jax.jit, static_argnums=0)
def _measure(apply: Apply, params: Params, images: Float[Array, "B H W 3"]) -> tuple[Float[Array, "2 C"], ...]:
    """Measures the least and the largest output of each layer's channels, before batch norm."""

    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, Array]:
        output = use_cpu_kernels(layer, activation, weight, compute)
        axes = tuple(range(output.ndim - 1))
        return output, jnp.stack([output.min(axes), output.max(axes)])

    return with_records(apply, hook)(params, images)[1]


def _equalise_pair(first: Params, second: Params, extremes: Float[np.ndarray, "M 2 C"], epsilon: float) -> None:
    """Rescales the channels between two layers, in place."""
    norm, kernel = first["norm"], second["kernel"]
    slope = norm["scale"] / np.sqrt(norm["var"] + epsilon)
    largest = (slope * (extremes - norm["mean"]) + norm["bias"]).max((0, 1))
    alone = kernel.ndim > 2 and kernel.shape[-2] == 1  # depthwise: a channel of its own a kernel
    read = np.abs(kernel).max((0, 1, 2)) if alone else np.abs(kernel).max(axis=(*range(kernel.ndim - 2), -1))
    written = np.abs(slope) * np.abs(first["kernel"]).max(axis=tuple(range(first["kernel"].ndim - 1)))
    usable = (largest < CAP) & (read > 0) & (written > 0)
    wanted = np.sqrt(np.where(usable, written, 1) / np.where(usable, read, 1))
    scale = np.where(usable, np.maximum(wanted, largest / CAP), 1)
    first["norm"] = norm | {"scale": norm["scale"] / scale, "bias": norm["bias"] / scale}
    second["kernel"] = kernel * (scale if alone else scale[:, None])


def _at(params: Params, name: str) -> Params:
    keys: list[Any] = [int(key) if key.isdigit() else key for key in name.split(".")]
    return functools.reduce(lambda node, key: node[key], keys, params)
