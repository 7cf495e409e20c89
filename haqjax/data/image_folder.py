"""Data sets in folders of images, one a class: the ImageFolder layout."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from haqjax.data.cut import Cut, choose_splits, make_dataset
from haqjax.data.dataset import Dataset
from haqjax.data.preprocess import Preprocessing
from haqjax.data.source import Source, make_source

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # in either case
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel, which Pillow would clip


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files, decoded to RGB."""

    paths: list[str]

    def __getitem__(self, record: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decodes one file; a ValueError names it where that fails."""
        path = self.paths[record]
        try:
            with Image.open(path) as image:
                if image.mode in WIDE_MODES:
                    raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}): convert it")
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow raises a dozen unrelated kinds
            raise ValueError(f"'{path}': {str(error).partition(chr(10))[0] or type(error).__name__}") from error

    def name(self, record: int) -> str:
        """Names one image by the path of its file."""
        return f"'{self.paths[record]}'"


def folder(root: str, preprocessing: Preprocessing, cut: Cut) -> Dataset:
    """Reads `root/train/CLASS/*.jpg` and `root/validation/CLASS/*.jpg` (or `val`, or `test`).

    Classes are the folders of `train`, sorted by name; another split may lack some. Images may lie in deeper folders
    of a class. The notes of the data set count what is left out: files that by their suffix are no images, and folders
    that are no splits.

    Args:
      root: the folder that has `train` in it.
      preprocessing: size and scale of the images.
      cut: which splits, and how many of their images.

    Raises:
      ValueError: a split is missing, a class is empty or not among those of `train`, an image cannot be decoded.
    """
    place = Path(root).expanduser()
    splits, note = _splits(place, cut)
    classes = _classes(place / splits[0])
    read = [_read(place / split, classes, preprocessing, cut) for split in splits]
    notes = tuple(note for note in (note, *(note for _, note in read)) if note)
    return make_dataset(f"folder:{root}", len(classes), [source for source, _ in read], cut, notes)


def _splits(root: Path, cut: Cut) -> tuple[tuple[str, ...], str]:
    """Finds the splits to read; with a note on other folders. A folder without folders in it is no split."""
    if not root.is_dir():
        raise ValueError(f"there is no folder '{root}': give folder:PATH with train/ and validation/ in it")
    folders = {path.name: bool(_folders(path)) for path in root.iterdir() if path.is_dir()}
    splits = choose_splits(f"'{root}'", [name for name, classes in folders.items() if classes], cut.splits)
    others = sorted(set(folders) - set(splits))
    return splits, f"folders of '{root}' that are not read: {', '.join(others)}" if others else ""


def _folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(split: Path, known: list[str] | None = None) -> list[str]:
    classes = _folders(split)
    strange = [] if known is None else sorted(set(classes) - set(known))
    if strange:
        raise ValueError(f"{len(strange)} classes of '{split}' are none of the training split: first '{strange[0]}'")
    return classes


def _read(split: Path, classes: list[str], preprocessing: Preprocessing, cut: Cut) -> tuple[Source, str]:
    """Reads the images of a split, sorted by class and name; with a note on files that are none."""
    found = {name: _walk(split / name) for name in _classes(split, classes)}
    images = {name: [path for path in paths if path.lower().endswith(SUFFIXES)] for name, paths in found.items()}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(f"{len(empty)} of {len(found)} classes of '{split}' have no images: first '{empty[0]}'")
    paths = [path for name in images for path in images[name]]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.repeat([number[name] for name in images], [len(images[name]) for name in images])
    loose = [str(path) for path in split.iterdir() if path.is_file()]
    others = sorted({*loose, *(path for name in found for path in found[name])} - set(paths))
    note = "{} files of '{}' are no images of a class and are left out: first '{}'"
    noted = note.format(len(others), split, others[0]) if others else ""
    return make_source(Files(paths), labels, preprocessing, cut.workers), noted


def _walk(place: Path) -> list[str]:
    found = (os.path.join(parent, name) for parent, _, names in os.walk(place, followlinks=True) for name in names)
    return sorted(path for path in found if not os.path.basename(path).startswith("."))
