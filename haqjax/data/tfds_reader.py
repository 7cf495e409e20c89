"""Data sets of TensorFlow Datasets (TFDS) for image classification: prepared once with TensorFlow, read without it."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from haqjax.data.cut import Cut, choose_splits, make_dataset
from haqjax.data.dataset import Dataset
from haqjax.data.labels import check_classes, check_range
from haqjax.data.preprocess import PREPROCESSING, Preprocessing
from haqjax.data.source import make_source

AT_ONCE = 1024  # labels read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The images of a split, decoded by TensorFlow Datasets with Pillow or OpenCV."""

    examples: Sequence[dict[str, Any]]
    split: str

    def __getitem__(self, record: int) -> UInt8[np.ndarray, "H W c"]:
        """Decodes one image; a ValueError names it where that fails."""
        try:
            return self.examples[record]["image"]
        except Exception as error:  # the library raises a dozen unrelated kinds
            raise ValueError(f"{self.name(record)}: {_reason(error)}") from error

    def name(self, record: int) -> str:
        """Names one image by its number in the split."""
        return f"image {record} of {self.split}"


def tfds(
    name: str,
    preprocessing: Preprocessing = PREPROCESSING["cifar"],
    cut: Cut | None = None,
    *,
    data_dir: str | Path | None = None,
    splits: Sequence[str] | None = None,
) -> Dataset:
    """Reads a prepared data set of `image` and `label`, such as "cifar10".

    The set must be on disk in a format of random access (`array_record` or `parquet`); nothing is downloaded. See
    `haqjax.data.prepare` for sets that are not there yet.

    Args:
      name: its name in TensorFlow Datasets.
      preprocessing: size and scale of the images; grey ones get three equal channels.
      cut: which splits, and how many of their images.
      data_dir: the folder that has `name` in it; None is TensorFlow Datasets' own.
      splits: as in `Cut`, where there is none; slices as in "train[:1000]" work.

    Raises:
      ValueError: the set cannot be read, naming it and `data_dir`; it has no `image` and `label`; a label is out of
        range; images cannot be decoded or have several sizes.
      ImportError: tensorflow-datasets, or one of the modules it needs, is not installed.
    """
    cut = cut or Cut(splits=splits)
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not (folder / re.split("[:/]", name)[0]).is_dir():
        raise ValueError(f"there is no data set {name!r} in data_dir '{folder}': name its folder, or {_hint(name)}")
    with _one_line(f"cannot read the data set {name!r} in data_dir '{folder}'"):
        library = _import()
        builder = library.builder(name, data_dir=folder)
        if not builder.info.splits:
            raise ValueError(f"it has not been prepared; {_hint(name)}")
        features = dict(builder.info.features.items())
    classes = _classes(name, features)
    slices = (split for split in cut.splits or () if re.split(r"[\[+]", split)[0] in builder.info.splits)
    there = [*builder.info.splits, *slices]
    chosen = choose_splits(f"the data set {name!r}", dict.fromkeys(there), cut.splits)
    with _one_line(f"cannot read the data set {name!r} in data_dir '{folder}'"):
        read = [_read(library, builder, split) for split in chosen]
    for split, (_, labels) in zip(chosen, read, strict=True):
        check_range(f"{name} {split}", labels, classes)
    sources = [make_source(examples, labels, preprocessing, cut.workers) for examples, labels in read]
    return make_dataset(f"tfds:{name}", classes, sources, cut)


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads and writes a data set in the format that `load("tfds:NAME")` reads.

    This is the one place that needs TensorFlow and a network; `pip install 'haqjax[prepare]'` brings the former. From a
    shell: `python -c "import haqjax.data; haqjax.data.prepare('cifar10', 'data')"`.

    Args:
      name: its name in TensorFlow Datasets.
      data_dir: the folder to write into; None is the library's own.

    Returns:
      The folder of the set.

    Raises:
      ImportError: TensorFlow is not installed.
      ValueError: the library cannot prepare it; says why.
    """
    try:
        import tensorflow  # noqa: F401, slow to import and needed by the next line alone
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(f"preparing {name!r} needs TensorFlow: pip install 'haqjax[prepare]' ({error})") from error
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise ValueError(f"cannot prepare the data set {name!r}: {_reason(error)}") from error
    return Path(builder.data_dir)


def _hint(name: str) -> str:
    return f"prepare it with haqjax.data.prepare({name!r}, data_dir), after pip install 'haqjax[prepare]'"


@contextlib.contextmanager
def _one_line(message: str) -> Iterator[None]:
    """Turns any error of the library but a missing import into a ValueError of one line."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise ValueError(f"{message}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _import() -> ModuleType:
    try:
        import tensorflow_datasets  # slow to import, hence not above
    except ImportError as error:
        raise ImportError(
            f"reading tfds:NAME needs the packages tensorflow-datasets, importlib_resources and pillow ({error})"
        ) from error
    return tensorflow_datasets


def _classes(name: str, features: Mapping[str, Any]) -> int:
    """Counts the classes, where the rows are labelled images of 8 bits."""
    image, label = (features.get(key) for key in ("image", "label"))
    dtype, classes = getattr(image, "np_dtype", None), getattr(label, "num_classes", None)
    if classes is None or dtype is None or np.dtype(dtype) != np.uint8:
        there = ", ".join(sorted(features))
        raise ValueError(f"the data set {name!r} has no rows of an 'image' of 8 bits and a 'label'; it has: {there}")
    return check_classes(f"the data set {name!r}", classes)


def _read(library: ModuleType, builder: Any, split: str) -> tuple[Examples, Int[np.ndarray, "n"]]:
    """Reads a split: images, not decoded yet, with their labels."""
    decoded = builder.as_data_source(split=split)
    raw = builder.as_data_source(split=split, decoders={"image": library.decode.SkipDecoding()})
    rows = (raw.__getitems__(range(at, min(at + AT_ONCE, len(raw)))) for at in range(0, len(raw), AT_ONCE))
    labels = np.array([row["label"] for some in rows for row in some])
    if not len(labels):
        raise ValueError(f"the split {split!r} has no images")
    return Examples(decoded, f"{builder.name} {split}"), labels
