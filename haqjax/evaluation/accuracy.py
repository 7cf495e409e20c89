"""Accuracy of a network on a split, with its standard error."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from haqjax.data import Split


class Accuracy(NamedTuple):
    """Fraction of correct answers, in 0 .. 1, and its standard error over the draw of the images."""

    value: float
    error: float


def measure_accuracy(
    apply: Callable[[Any, Array], Array], params: Any, split: Split, *, batch_size: int = 64
) -> Accuracy:
    """Measures the fraction of images whose largest logit is at the label.

    An image with a logit that is not finite counts as wrong, whatever its label.

    Args:
      apply: `apply(params, images [batch_size, H, W, C])` gives logits [batch_size, classes]; compiled once for each
        function, so pass the same object again rather than an equal one.
      params: its parameters.
      split: at least one image.
      batch_size: images at a time; small ones stay in a CPU's cache. Blank images, which are not counted, complete
        the last batch.

    Returns:
      The fraction `p` and `sqrt(p (1 - p) / n)`.

    Raises:
      ValueError: the split is empty.

    >>> split = Split(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.array([0, 1, 2, 0], np.int32))
    >>> measure_accuracy(lambda params, x: x.reshape(-1, 4), None, split, batch_size=3)
    Accuracy(value=0.75, error=0.21650635094610965)
    """
    if not len(split):
        raise ValueError("cannot measure accuracy on no images")
    counts = [_count_correct(apply, params, *batch) for batch in _batches(split, batch_size)]
    value = int(sum(counts)) / len(split)
    return Accuracy(value, (value * (1 - value) / len(split)) ** 0.5)


@functools.partial(jax.jit, static_argnums=0)
def _count_correct(apply: Callable, params: Any, images: Array, labels: Array) -> Array:
    logits = apply(params, images)
    return ((logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)).sum()


def _batches(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(split), batch_size):
        some = split.take(slice(start, start + batch_size))
        missing = batch_size - len(some)

        def complete(leaf: np.ndarray, missing: int = missing) -> np.ndarray:
            return np.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))

        images = jax.tree.map(complete, some.images)
        yield images, np.pad(some.labels, (0, missing), constant_values=-1)
