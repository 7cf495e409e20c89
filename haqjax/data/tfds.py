"""Image classification sets of TensorFlow Datasets, read without TensorFlow."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from haqjax.data.splits import Dataset, Split, stratified

MEAN = (0.485, 0.456, 0.406)  # ImageNet's mean and deviation of red, green and blue, the usual scaling of images
DEVIATION = (0.229, 0.224, 0.225)
SEARCH_SHARE = 0.1  # of the training split


def tfds(
    name: str, *, seed: int = 0, data_dir: str | None = None, splits: tuple[str, str] = ("train", "test")
) -> Dataset:
    """Reads a prepared data set of `image` and `label`, such as "cifar10".

    The set must be on disk in a format of random access (`array_record` or `parquet`); nothing is downloaded.
    It is read whole into memory: four bytes a value.

    Args:
      name: as TensorFlow Datasets calls it.
      seed: which tenth of the training split becomes the search split (stratified).
      data_dir: the folder that has `name` in it; None is TensorFlow Datasets' own.
      splits: what to train and search on, what to report on; slices as in "train[:1000]" work.

    Returns:
      `train` and `search` from the first of `splits`, `report` from the second. Images are scaled to [0, 1], then
      shifted and divided by ImageNet's mean and deviation of each channel; grey images get three equal channels.

    Raises:
      ValueError: the set cannot be read, naming it and `data_dir`; it has no `image` and `label`; its images have
        several sizes.
      ImportError: tensorflow-datasets, or one of the modules it needs, is not installed.
    """
    known, unseen = _open(name, data_dir, splits)
    images, labels = _read(name, known)
    size = round(SEARCH_SHARE * len(labels))
    rows = stratified(labels, (len(labels) - size, size), seed)
    train, search = (Split(normalise(images[part]), labels[part]) for part in rows)
    images, labels = _read(name, unseen)
    classes = known.dataset_info.features["label"].num_classes
    return Dataset(f"tfds:{name}", classes, train, search, Split(normalise(images), labels))


def normalise(images: UInt8[np.ndarray, "n H W c"]) -> Float[np.ndarray, "n H W 3"]:
    """Turns pixels of one or three channels into float32 of three, around zero.

    >>> normalise(np.array([[[[0, 255, 0]]]], np.uint8)).round(2)
    array([[[[-2.12,  2.43, -1.8 ]]]], dtype=float32)
    """
    scaled = np.broadcast_to(images, (*images.shape[:-1], 3)).astype(np.float32)
    scaled /= 255  # in place: a set is large
    scaled -= np.asarray(MEAN, np.float32)
    scaled /= np.asarray(DEVIATION, np.float32)
    return scaled


def _open(name: str, data_dir: str | None, splits: tuple[str, str]) -> list[Any]:
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not (folder / re.split("[:/]", name)[0]).is_dir():
        raise ValueError(f"there is no data set {name!r} in data_dir '{folder}'; prepare it there, or name its folder")
    library = _import()
    try:
        return [library.data_source(name, split=split, data_dir=folder, download=False) for split in splits]
    except Exception as error:  # the library raises a dozen unrelated kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot read the data set {name!r} in data_dir '{folder}': {reason}") from error


def _import() -> ModuleType:
    try:
        import tensorflow_datasets  # slow to import, hence not above
    except ImportError as error:
        raise ImportError(
            f"reading tfds:NAME needs the packages tensorflow-datasets, importlib_resources and pillow ({error})"
        ) from error
    return tensorflow_datasets


def _read(name: str, source: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [source[i] for i in range(len(source))]
    if not rows or not {"image", "label"} <= rows[0].keys():
        raise ValueError(f"the data set {name!r} has no rows of 'image' and 'label'; only such sets can be read")
    shapes = {row["image"].shape for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"images of the data set {name!r} have {len(shapes)} sizes; one size is needed")
    return np.stack([row["image"] for row in rows]), np.array([row["label"] for row in rows], np.int32)
