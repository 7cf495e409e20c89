"""Micro-batches of images: how many suit a device, and a split cut into them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

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
    most = batch_size or suggest_batch_size(split.pixels)
    return -(-len(split) // -(-len(split) // most))


def suggest_batch_size(pixels: int) -> int:
    """Suggests how many images of so many pixels go through a network at a time, by the device in use."""
    if jax.default_backend() == "cpu":
        return max(1, min(CPU_IMAGES, CACHED_PIXELS // pixels))
    return ACCELERATOR_IMAGES


def split_into_batches(split: Split, batch_size: int) -> tuple[PyTree, Int[Array, "m b"]]:
    """Cuts images and labels into micro-batches [m, b, ...]; blank images labelled -1 complete the last."""
    missing = -len(split) % batch_size

    def cut(leaf: np.ndarray, blank: float = 0) -> Array:
        whole = np.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)), constant_values=blank)
        return jnp.asarray(whole.reshape(-1, batch_size, *whole.shape[1:]))

    return jax.tree.map(cut, split.images), cut(split.labels, -1)


def first_batch(batches: PyTree) -> PyTree:
    """Returns the first micro-batch."""
    return nth_batch(batches, 0)


def nth_batch(batches: PyTree, number: int | Int[Array, ""]) -> PyTree:
    """Returns one micro-batch."""
    return jax.tree.map(lambda leaf: leaf[number], batches)
