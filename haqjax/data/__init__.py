"""Data to train on, to search by, to report: labelled images in three disjoint splits."""

from haqjax.data.digits import digits
from haqjax.data.splits import Dataset, Split, stratified
from haqjax.data.tfds import tfds

__all__ = ["Dataset", "Split", "load", "stratified"]


def load(spec: str, *, seed: int = 0, data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
      spec: "digits", or "tfds:NAME" for a set of TensorFlow Datasets that is on disk.
      seed: fixes which image goes to which split; it has no part in training or search.
      data_dir: where "tfds:NAME" looks; None is the library's own place.
      image_size: for "digits", the height and width they are enlarged to; None is 32. Other sets keep their own.

    Returns:
      Three splits without common images, float32 [n, H, W, 3] and int32 [n] each.

    Raises:
      ValueError: unknown `spec`, or a data set that cannot be read.

    >>> data = load("digits", image_size=8)
    >>> data.classes, len(data.train), len(data.search), len(data.report)
    (10, 1077, 360, 360)
    """
    kind, _, name = spec.partition(":")
    if spec == "digits":
        return digits(seed=seed, image_size=image_size or 32)
    if kind == "tfds" and name:
        return tfds(name, seed=seed, data_dir=data_dir)
    raise ValueError(f"unknown data set {spec!r}; there are 'digits' and 'tfds:NAME'")
