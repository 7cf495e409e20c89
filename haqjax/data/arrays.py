"""Data sets in one .npz file of NumPy arrays."""

import dataclasses
import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from haqjax.data.cut import Cut, choose_splits, make_dataset
from haqjax.data.dataset import Dataset
from haqjax.data.labels import check_classes, check_range, count_classes
from haqjax.data.preprocess import Preprocessing
from haqjax.data.source import make_source
from haqjax.reading import MIB, check_regular, one_line

LAYOUTS = (r"x_(\w+)", r"y_{}"), (r"(\w+)_images", r"{}_labels")  # of Keras and of MedMNIST
MOST_BYTES = 1 << 37  # of a file, and of what its arrays take in memory
MOST_ARRAYS = 1000
PACKED, SMALL = 100, 64 * MIB  # images do not shrink to a hundredth: what does, and is not small, is no set of images


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
    there is one more than the largest label to train on, and at most ten times as many as images.

    Args:
      path: the file, written by `numpy.savez`; objects in it that would have to be unpickled are refused.
      preprocessing: size and scale of the images.
      cut: which splits, and how many of their images.

    Raises:
      ValueError: the file cannot be read, a split is missing, an array has another shape or values out of range.
    """
    with _open(path) as file:
        headers = _read_headers(path, file)
        images, labels = _keys(headers)
        splits = choose_splits(f"'{path}'", images, cut.splits)
        wanted = [keys[split] for split in splits for keys in (images, labels)] + ["classes"]
        arrays = {key: _read(path, file, key) for key in wanted if key in headers}
    checked = [_check(path, arrays, images[split], labels[split]) for split in splits]
    if "classes" in arrays:
        classes = check_classes(f"'{path}'", arrays["classes"])
    else:
        classes = count_classes(f"{labels[splits[0]]} in '{path}'", checked[0][1])
    for split, (_, found) in zip(splits, checked, strict=True):
        check_range(f"{labels[split]} in '{path}'", found, classes)
    sources = [
        make_source(Arrays(pixels, images[split]), found, preprocessing, workers=0)  # nothing to decode
        for split, (pixels, found) in zip(splits, checked, strict=True)
    ]
    return make_dataset(f"npz:{path}", classes, sources, cut)


def _open(path: str) -> zipfile.ZipFile:
    try:
        file = check_regular(Path(path).expanduser(), MOST_BYTES)
        with file.open("rb") as start:
            if start.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it holds one array and no names")
        return zipfile.ZipFile(file)
    except Exception as error:  # a missing file, no archive, a damaged one: all of other kinds
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ValueError:
    reason = one_line(error, 200) or type(error).__name__
    return ValueError(f"cannot read '{path}' as arrays by numpy.savez: {reason}")


def _read_headers(path: str, file: zipfile.ZipFile) -> dict[str, int]:
    """Reads the sizes of all arrays by name, in bytes; what would be unpickled, or fill the memory, is not begun."""
    sizes: dict[str, int] = {}
    try:
        if len(file.infolist()) > MOST_ARRAYS:
            raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
        for info in file.infolist():
            key = info.filename.removesuffix(".npy")
            if key in sizes:
                raise ValueError(f"it has two arrays {key!r}")
            with file.open(info) as member:
                sizes[key] = _size(key, info, member)
        if sum(sizes.values()) > MOST_BYTES:
            raise ValueError(f"its arrays are of {sum(sizes.values()) / MIB:.0f} MiB")
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    return sizes


def _size(key: str, info: zipfile.ZipInfo, member: Any) -> int:
    """Computes the bytes of an array from its header, and compares them with those in the archive."""
    start = io.BytesIO(member.read(1 << 16 | 10))  # version 1.0 has a header of at most so many
    if np.lib.format.read_magic(start) != (1, 0):
        raise ValueError(f"the array {key!r} is of no version that numpy.savez writes for numbers")
    shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    size = dtype.itemsize * math.prod(shape)
    if dtype.hasobject:
        raise ValueError(f"Object arrays are not read, as they can run any code: {key!r} is one")
    if min(shape, default=0) < 0 or start.tell() + size != info.file_size:
        raise ValueError(f"the array {key!r} has {info.file_size} bytes, and by its header {start.tell() + size}")
    if size > max(PACKED * info.compress_size, SMALL):
        raise ValueError(f"the array {key!r} has {size / MIB:.0f} MiB, packed to {info.compress_size} bytes: no images")
    return size


def _read(path: str, file: zipfile.ZipFile, key: str) -> np.ndarray:
    names = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
    try:
        with file.open(names[key]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _keys(arrays: dict[str, int]) -> tuple[dict[str, str], dict[str, str]]:
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
    shapes = (f"{key} {one_line(a.dtype, 60)}{[*a.shape]}" for key, a in ((image_key, images), (label_key, labels)))
    where = f"in '{path}', {' and '.join(shapes)}"
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"{where}: images must be [n, H, W], [n, H, W, 1] or [n, H, W, 3] with n at least 1")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels must be whole numbers, one an image")
    return _check_range(where, images), labels


def _check_range(where: str, images: Real[np.ndarray, "n H W c"]) -> Real[np.ndarray, "n H W c"]:
    floating = images.dtype.kind == "f"
    if not floating and images.dtype.kind not in "iu":
        raise ValueError(f"{where}: images must be numbers")
    low, high, most = images.min(), images.max(), 1 if floating else 255
    if not (low >= 0 and high <= most):  # also where there is a NaN
        kind = "floating-point" if floating else "whole-number"
        raise ValueError(f"{where}: {kind} images must lie in 0 .. {most}, found {low} .. {high}")
    return images.astype(np.float32) if floating else images
