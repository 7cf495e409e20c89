"""Data sets in one .npz file of NumPy arrays."""

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import Int, Real

from haqjax.data.cut import Cut, check_labels, choose_splits, make_dataset
from haqjax.data.dataset import Dataset
from haqjax.data.preprocess import Preprocessing
from haqjax.data.source import make_source

LAYOUTS = (r"x_(\w+)", r"y_{}"), (r"(\w+)_images", r"{}_labels")  # of Keras and of MedMNIST


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, as they were in the file."""

    images: Real[np.ndarray, "n H W c"]
    key: str

    def __getitem__(self, record: int) -> Real[np.ndarray, "H W c"]:
        """Returns one image on the scale 0 .. 255."""
        image = self.images[record]
        return image * np.float32(255) if image.dtype == np.float32 else image.astype(np.uint8)

    def name(self, record: int) -> str:
        """Names one image by its place in the file."""
        return f"{self.key}[{record}]"


def npz(path: str, preprocessing: Preprocessing, cut: Cut) -> Dataset:
    """Reads `x_train, y_train, x_test, y_test`, or `train_images, train_labels, test_images, ...`.

    Images are [n, H, W], [n, H, W, 1] or [n, H, W, 3]: whole numbers from 0 to 255, or floating-point ones from 0 to 1.
    Labels are whole numbers, [n] or [n, 1]. A scalar `classes` in the file says how many classes there are; without,
    there is one more than the largest label to train on.

    Args:
      path: the file, written by `numpy.savez`; objects in it that would have to be unpickled are refused.
      preprocessing: size and scale of the images.
      cut: which splits, and how many of their images.

    Raises:
      ValueError: the file cannot be read, a split is missing, an array has another shape or values out of range.
    """
    arrays = _load(path)
    images, labels = _keys(arrays)
    splits = choose_splits(f"'{path}'", images, cut.splits)
    checked = [_check(path, arrays, images[split], labels[split]) for split in splits]
    classes = int(arrays["classes"].item()) if "classes" in arrays else int(checked[0][1].max()) + 1
    for split, (_, found) in zip(splits, checked, strict=True):
        check_labels(f"{labels[split]} in '{path}'", found, classes)
    sources = [
        make_source(Arrays(pixels, images[split]), found, preprocessing, workers=0)  # nothing to decode
        for split, (pixels, found) in zip(splits, checked, strict=True)
    ]
    return make_dataset(f"npz:{path}", classes, sources, cut)


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        with open(Path(path).expanduser(), "rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds one array and no names")
            return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # a missing file, no archive, a damaged one, objects: all of other kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot read '{path}' as arrays by numpy.savez: {reason}") from error


def _keys(arrays: dict[str, np.ndarray]) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the keys of images and labels by the name of the split, where both are there."""
    images, labels = {}, {}
    for key in arrays:
        for image_key, label_key in LAYOUTS:
            found = re.fullmatch(image_key, key)
            if found and label_key.format(found[1]) in arrays:
                images[found[1]], labels[found[1]] = key, label_key.format(found[1])
    return images, labels


def _check(
    path: str, arrays: dict[str, np.ndarray], image_key: str, label_key: str
) -> tuple[Real[np.ndarray, "n H W c"], Int[np.ndarray, "n"]]:
    images, labels = arrays[image_key], arrays[label_key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    where = f"in '{path}', {image_key} {images.dtype}{[*images.shape]} and {label_key} {labels.dtype}{[*labels.shape]}"
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"{where}: images must be [n, H, W], [n, H, W, 1] or [n, H, W, 3] with n at least 1")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where}: labels must be whole numbers, one an image")
    return _check_range(where, images), labels.astype(np.int64)


def _check_range(where: str, images: Real[np.ndarray, "n H W c"]) -> Real[np.ndarray, "n H W c"]:
    floating = np.issubdtype(images.dtype, np.floating)
    if not floating and not np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"{where}: images must be numbers")
    low, high, most = images.min(), images.max(), 1 if floating else 255
    if not (low >= 0 and high <= most):  # also where there is a NaN
        kind = "floating-point" if floating else "whole-number"
        raise ValueError(f"{where}: {kind} images must lie in 0 .. {most}, found {low} .. {high}")
    return images.astype(np.float32) if floating else images
