"""Data sets in folders of images, one a class: the ImageFolder layout."""

import dataclasses
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from haqjax.data.cut import Cut, choose_splits, make_dataset
from haqjax.data.dataset import Dataset
from haqjax.data.preprocess import Preprocessing
from haqjax.data.source import Source, make_source
from haqjax.reading import check_regular, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # in either case
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # that Pillow tries: EPS would start another program
MOST_BYTES, MOST_PIXELS = 1 << 30, 1 << 26  # of one file and of one image: 8,192 x 8,192
ONE_AT_A_TIME = threading.Lock()  # filters of warnings are those of the whole process
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel, which Pillow would clip


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files, decoded to RGB."""

    paths: list[str]

    def __getitem__(self, record: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decodes one file; a ValueError names it where that fails."""
        path = self.paths[record]
        try:
            check_regular(path, MOST_BYTES)
            with _open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
                if image.mode in WIDE_MODES:
                    raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}): convert it")
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow raises a dozen unrelated kinds
            raise ValueError(f"'{path}': {one_line(error, 200) or type(error).__name__}") from error

    def name(self, record: int) -> str:
        """Names one image by the path of its file."""
        return f"'{self.paths[record]}'"


def _open(path: str) -> Image.Image:
    """Opens an image, and decodes nothing; Pillow's warning of a large one, two lines a file, is an error here."""
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def folder(root: str, preprocessing: Preprocessing, cut: Cut) -> Dataset:
    """Reads `root/train/CLASS/*.jpg` and `root/validation/CLASS/*.jpg` (or `val`, or `test`).

    Classes are the folders of `train`, sorted by name; another split may lack some. Images may lie in deeper folders
    of a class. The notes of the data set count what is left out: files that by their suffix are no images, or that are
    pipes, devices or sockets; folders named as images or that lead back to themselves; folders that are no splits.

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
    above = frozenset(map(_identity, (split.parent, split)))
    found = {name: _walk(split / name, above) for name in _classes(split, classes)}
    images = {name: [path for path in paths if _is_image(path)] for name, paths in found.items()}
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise ValueError(f"{len(empty)} of {len(found)} classes of '{split}' have no images: first '{empty[0]}'")
    paths = [path for name in images for path in images[name]]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.repeat([number[name] for name in images], [len(images[name]) for name in images])
    loose = [str(path) for path in split.iterdir() if not path.is_dir()]
    others = sorted({*loose, *(path for name in found for path in found[name])} - set(paths))
    note = "{} files of '{}' are no images of a class and are left out: first '{}'"
    noted = note.format(len(others), split, others[0]) if others else ""
    return make_source(Files(paths), labels, preprocessing, cut.workers), noted


def _is_image(path: str) -> bool:
    """Tells by its name and kind; one that cannot be looked at stays, to be named when it is decoded."""
    if not path.lower().endswith(SUFFIXES):
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def _walk(place: Path, above: frozenset[tuple[int, int]]) -> list[str]:
    """Lists what is in a folder, by path; one that is named as an image, or leads back to `above`, stays closed."""
    try:
        itself = _identity(place)
        if itself in above:
            return [str(place)]
        entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"the folder '{place}' cannot be read: {error.strerror}") from None
    paths: list[str] = []
    for entry in entries:
        closed = not os.path.isdir(entry.path) or entry.name.lower().endswith(SUFFIXES)
        paths += [entry.path] if closed else _walk(Path(entry.path), above | {itself})
    return sorted(paths)


def _identity(place: Path) -> tuple[int, int]:
    found = os.stat(place)
    return found.st_dev, found.st_ino
