"""Restores batch norm where a file has it folded into the convolutions."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from haqjax.models.network import Apply, Network, Params
from haqjax.tracing.cpu_kernels import use_cpu_kernels
from haqjax.tracing.hooks import Compute, with_records
from haqjax.tracing.jaxpr import Layer
from haqjax.tracing.layer_table import layers
from haqjax.types import AnyArray


class Moments(NamedTuple):
    """Mean and variance of each channel of one layer's output, over images and places."""

    mean: Float[AnyArray, "C"]
    var: Float[AnyArray, "C"]


def restore_batchnorm(network: Network, params: Params, batches: Iterable[Float[Array, "B H W 3"]]) -> Params:
    """Gives batch norm the statistics of real images and leaves the function of the network as it is.

    Folded weights compute `a z + c` from a convolution's output `z`, with what batch norm there is for `a` and `c`.
    With the mean `m` and the variance `v` of `z` over the images, `scale = a sqrt(v + epsilon)`, `bias = c + a m`,
    `mean = m` and `var = v` compute the same, and training has statistics to start from.

    Args:
      network: of `haqjax.models`; its own parameters are not read.
      params: parameters of the network.
      batches: calibration images, float32 [B, H, W, 3] each.

    Returns:
      `params` with another `norm` beside each convolution; the variance is the population's, as in training.

    Raises:
      ValueError: there is no batch.

    >>> from haqjax.models import build
    >>> network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    >>> images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    >>> restored = restore_batchnorm(network, network.params, [images])
    >>> apply = jax.jit(network.apply)
    >>> bool(jnp.allclose(apply(restored, images), apply(network.params, images), rtol=1e-4))
    True
    """
    measured = [(len(images), _measure(network.apply, params, images)) for images in batches]
    if not measured:
        raise ValueError("cannot measure batch norm on no images: give at least one batch")
    sizes = np.array([size for size, _ in measured])
    names = layers(network.apply, network.params, network.example).names
    moments = {name: _together(sizes, [found[i] for _, found in measured]) for i, name in enumerate(names)}
    return _restored(params, moments, network.epsilon)


@functools.partial(jax.jit, static_argnums=0)
def _measure(apply: Apply, params: Params, images: Float[Array, "B H W 3"]) -> tuple[Moments, ...]:
    def hook(layer: Layer, activation: Array, weight: Array, compute: Compute) -> tuple[Array, Moments]:
        output = use_cpu_kernels(layer, activation, weight, compute)
        axes = tuple(range(output.ndim - 1))
        return output, Moments(output.mean(axes), output.var(axes))

    return with_records(apply, hook)(params, images)[1]


def _together(sizes: np.ndarray, parts: list[Moments]) -> Moments:
    """Joins the moments of all batches: the mean variance within a batch plus the variance of the batches' means."""
    means, variances = (np.asarray(column, np.float64) for column in zip(*parts, strict=True))
    weight = (sizes / sizes.sum())[:, None]
    mean = (weight * means).sum(0)
    return Moments(mean, (weight * (variances + (means - mean[None]) ** 2)).sum(0))


def _restored(params: Params, moments: dict[str, Moments], epsilon: float, path: str = "") -> Params:
    """Replaces each `norm`; `path` is the place of `params` in all of them, with a dot at its end."""
    if "norm" in params:
        return params | {"norm": _norm(params["norm"], moments[path.rstrip(".")], epsilon)}
    return {
        name: _restored(child, moments, epsilon, f"{path}{name}.") if isinstance(child, dict) else child
        for name, child in params.items()
    }


def _norm(norm: Params, moments: Moments, epsilon: float) -> Params:
    old = {name: np.asarray(leaf, np.float64) for name, leaf in norm.items()}
    slope = old["scale"] / np.sqrt(old["var"] + epsilon)
    offset = old["bias"] - slope * old["mean"]
    new = {
        "scale": slope * np.sqrt(moments.var + epsilon),
        "bias": offset + slope * moments.mean,
        "mean": moments.mean,
        "var": moments.var,
    }
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in new.items()}
