"""Micro-batches of images: how many suit a device, and a split cut into them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from haqjax.data import Split

CACHED_PIXELS = 4 * 224 * 224  # at a time on a CPU: what one layer makes of so many stays in its cache
CPU_IMAGES = 128  # at a time at most
ACCELERATOR_IMAGES = 512  # at a time elsewhere


def balance_batch_size(split: Split, batch_size: int | None = None) -> int:
    """Chooses the images of a micro-batch: all alike, in as few as if each held `batch_size`, or what suits the device.

    >>> balance_batch_size(Split(np.zeros((10, 2, 2, 1), np.float32), np.zeros(10, np.int32)), 4)
    4
    >>> balance_batch_size(Split(np.zeros((9, 2, 2, 1), np.float32), np.zeros(9, np.int32)), 8)
    5
    """
    most = batch_size or suggest_batch_size(math.prod(split.images.shape[1:3]))
    return -(-len(split) // -(-len(split) // most))


def suggest_batch_size(pixels: int) -> int:
    """Suggests how many images of so many pixels go through a network at a time, by the device in use."""
    if jax.default_backend() == "cpu":
        return max(1, min(CPU_IMAGES, CACHED_PIXELS // pixels))
    return ACCELERATOR_IMAGES


def split_into_batches(split: Split, batch_size: int) -> tuple[Float[Array, "m b H W C"], Int[Array, "m b"]]:
    """Cuts images and labels into micro-batches; blank images labelled -1 complete the last."""
    missing = -len(split) % batch_size
    images = np.pad(split.images, ((0, missing), *((0, 0),) * (split.images.ndim - 1)))
    labels = np.pad(split.labels, (0, missing), constant_values=-1)
    return jnp.asarray(images.reshape(-1, batch_size, *images.shape[1:])), jnp.asarray(labels.reshape(-1, batch_size))
