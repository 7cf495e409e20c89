"""Layout of a file: the names and shapes that it gives the weights of a network here."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from haqjax.models.batchnorm import EPSILON, SYMMETRIC

FROM_OIHW = (2, 3, 1, 0)  # a convolution's axes, as PyTorch has them, in our order
FROM_OUT_IN = (1, 0)  # a dense layer's
TENSORFLOW_EPSILON = 1e-3  # of the MobileNets' batch norm as their authors released them
BACKGROUND_APART = r"classifier_background\.[wb]"  # the logit of no class, where a file keeps it to itself
BACKGROUND = 1001  # logits of TensorFlow's ImageNet networks
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}  # ours: PyTorch's

Shape = tuple[int, ...]


class Unit(NamedTuple):
    """Names in a file of one convolution and its batch norm; a classifier has no second."""

    weight: str
    norm: str | None = None


class Tensor(NamedTuple):
    """A tensor of a file that is one of our parameters, with its axes in our order (None: they are ours)."""

    name: str
    axes: tuple[int, ...] | None = None
    background: bool = False  # where the first axis has 1,001 entries, the first of them is dropped

    def take(self, array: np.ndarray) -> np.ndarray:
        """Brings the file's tensor into our form; one of another rank stays as it is."""
        array = array[1:] if self.background and array.shape[:1] == (BACKGROUND,) else array
        return array if self.axes is None or array.ndim != len(self.axes) else array.transpose(self.axes)

    def shape(self, ours: Shape) -> Shape:
        """Returns the shape that the file's tensor has for ours.

        >>> Tensor("conv1.weight", FROM_OIHW).shape((3, 3, 8, 16))
        (16, 8, 3, 3)
        """
        return ours if self.axes is None else tuple(ours[self.axes.index(axis)] for axis in range(len(ours)))


Source = Tensor | float  # a float is the value of every element


@dataclasses.dataclass(frozen=True)
class Layout:
    """One naming of one network's weights, with the convention that the network needs for them.

    The pattern `ignored` matches names that are known and not needed here. With `background`, the first of 1,001 logits
    is TensorFlow's "none of the 1,000 classes", which is dropped. With `folded`, a convolution has a bias in place of
    batch norm, names end in `.w` and `.b`, and kernels are HWIO already.
    """

    name: str  # of the naming
    model: str  # of `haqjax.models.MODELS`
    units: dict[str, Unit]  # for each of our modules, such as `blocks.3.depthwise`
    preprocessing: str  # of `haqjax.data.PREPROCESSING`: how the images were made that the weights were trained on
    image_size: int = 224  # height and width of those images
    padding: str = SYMMETRIC
    epsilon: float = EPSILON
    ignored: str = r".*\.num_batches_tracked"
    background: bool = False
    folded: bool = False

    def sources(self) -> dict[str, Source]:
        """Lists the source of each of our parameters, such as `stem.norm.mean`."""
        parts = self._folded if self.folded else self._pytorch
        return {f"{ours}.{leaf}": source for ours, unit in self.units.items() for leaf, source in parts(unit)}

    def is_ignored(self, name: str) -> bool:
        """Returns True for a tensor that is known and not needed."""
        return re.fullmatch(self.ignored, name) is not None

    def _pytorch(self, unit: Unit) -> Iterator[tuple[str, Source]]:
        if unit.norm is None:
            yield "kernel", Tensor(f"{unit.weight}.weight", FROM_OUT_IN, self.background)
            yield "bias", Tensor(f"{unit.weight}.bias", background=self.background)
            return
        yield "kernel", Tensor(f"{unit.weight}.weight", FROM_OIHW)
        for ours, theirs in NORM.items():
            yield f"norm.{ours}", Tensor(f"{unit.norm}.{theirs}")

    def _folded(self, unit: Unit) -> Iterator[tuple[str, Source]]:
        """Yields batch norm that adds the bias alone: of mean 0, and of variance and epsilon together 1."""
        yield "kernel", Tensor(f"{unit.weight}.w")
        if unit.norm is None:
            yield "bias", Tensor(f"{unit.weight}.b")
            return
        yield "norm.bias", Tensor(f"{unit.norm}.b")
        for ours, constant in (("scale", 1.0), ("mean", 0.0), ("var", 1 - self.epsilon)):
            yield f"norm.{ours}", constant


def staged(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Lists (stage, block within it) of each block of a network, both from 0.

    >>> staged((1, 2))
    [(0, 0), (1, 0), (1, 1)]
    """
    return [(stage, block) for stage, count in enumerate(counts) for block in range(count)]
