"""Checks of labels and counts of classes, before anything is made of them."""

from collections.abc import Callable, Sized
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Int

from haqjax.reading import one_line, quote

MOST_CLASSES = 2**16  # the largest public sets have 20,000 to 30,000; 65,536 outputs are 320 MB of MobileNetV2
SPARSE = 10  # classes an image from which on a count that is taken from the labels is taken for a wrong label


class Labelled(Sized, Protocol):
    """Images with labels: a `Split` or a `Source`."""

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """Returns the class of each image."""


def check_labels(images: Labelled, classes: int) -> None:
    """Checks that the labels of a split are classes of a network; on the host, before a training or an evaluation.

    Under `jit` a label beyond the classes is no error: the loss of its image is NaN, or that of another class.

    Args:
      images: a `Split` or a `Source`.
      classes: number of logits.

    Raises:
      ValueError: a label outside of 0 .. classes - 1; counts them and names the first.

    >>> from haqjax.data import Split
    >>> check_labels(Split(np.zeros((2, 4, 4, 3), np.float32), np.array([0, 10])), 10)
    Traceback (most recent call last):
    ValueError: 1 of 2 labels are not in 0 .. 9; the first is 10, of image 1
    """
    check_range("", images.labels, classes)


def check_answers(apply: Callable[..., Any], params: Any, images: Labelled, example: Any) -> None:
    """Checks the labels of a split against the logits that a network gives, of which only the shape is looked at.

    Args:
      apply: pure function `apply(params, images)` with logits [B, classes], or with a tuple that begins with them.
      example: images, or their shape.

    Raises:
      ValueError: as `check_labels`.
    """
    logits = jax.tree.leaves(jax.eval_shape(apply, params, example))[0]
    check_labels(images, logits.shape[-1])


def check_range(name: str, labels: Int[np.ndarray, "n"], classes: int) -> None:
    """Raises a ValueError that counts the labels outside of 0 .. classes - 1, and names the first."""
    labels = np.asarray(labels)
    check_whole(name or "the labels", labels)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = f"the first is {labels[wrong[0]]}, of image {wrong[0]}"
        of = f" of {name}" if name else ""
        raise ValueError(f"{len(wrong)} of {len(labels)} labels{of} are not in 0 .. {classes - 1}; {first}")


def check_whole(name: str, labels: Any) -> None:
    """Raises a ValueError where labels are not whole numbers, one an image; True and False are none."""
    dtype, shape = getattr(labels, "dtype", None), getattr(labels, "shape", ())
    if dtype is None or dtype.kind not in "iu" or len(shape) != 1:  # a span of time is an integer to NumPy
        kind = type(labels).__name__ if dtype is None else f"{one_line(dtype, 60)}{[*shape]}"
        raise ValueError(f"{name}: labels must be whole numbers, one an image, not {kind}")


def check_split(images: Any, labels: Any) -> None:
    """Raises a ValueError where labels are no whole numbers from 0 on, one an image; values that are traced pass."""
    check_whole("a split", labels)
    for leaf in jax.tree.leaves(images) or [images]:
        shape = getattr(leaf, "shape", ())
        if not shape or shape[0] != len(labels):
            many = shape[0] if shape else "no"
            raise ValueError(f"a split of {many} images has {len(labels)} labels: give one an image")
        kinds = (np.number, np.bool_)
        if not any(np.issubdtype(leaf.dtype, kind) or jax.dtypes.issubdtype(leaf.dtype, kind) for kind in kinds):
            raise ValueError(f"images of a split must be numbers, not {one_line(leaf.dtype, 60)}")
    if not isinstance(labels, jax.core.Tracer) and len(labels):
        check_range("", labels, 2**31)


def check_classes(name: str, classes: Any) -> int:
    """Checks a number of classes, and returns it as an int.

    Raises:
      ValueError: no whole number from 1 to 65,536.

    >>> check_classes("mine", np.array(10.0)), check_classes("mine", np.array([3]))
    (10, 3)
    """
    found = np.asarray(classes)
    number = found.item() if found.size == 1 and found.dtype.kind in "iuf" else None
    if number is None or not 1 <= number <= MOST_CLASSES or number != int(number):
        said = quote(number) if number is not None else f"{one_line(found.dtype, 60)}{[*found.shape]}"
        raise ValueError(f"{name}: classes is {said}, no whole number from 1 to {MOST_CLASSES}")
    return int(number)


def count_classes(name: str, labels: Int[np.ndarray, "n"]) -> int:
    """Counts the classes of a training split whose file does not say how many there are: the largest label, and one.

    Raises:
      ValueError: so many that a label must be wrong.
    """
    classes, most = int(labels.max()) + 1, max(SPARSE * len(labels), SPARSE)
    if classes > min(most, MOST_CLASSES):
        first = int(np.argmax(labels))
        raise ValueError(
            f"{name}: a label of {classes - 1} (of image {first}) among {len(labels)} images: mend it, or say "
            f"`classes`, at most {MOST_CLASSES}"
        )
    return classes
