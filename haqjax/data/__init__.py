"""Data sets: labelled images in three disjoint splits, to train on, to search by, to report."""

from collections.abc import Sequence

from haqjax.data.arrays import npz
from haqjax.data.cut import MEMORY, Cut
from haqjax.data.dataset import Dataset
from haqjax.data.image_folder import folder
from haqjax.data.labels import check_labels
from haqjax.data.loader import batches
from haqjax.data.preprocess import PREPROCESSING, Preprocessing, find_preprocessing
from haqjax.data.scanned_digits import digits
from haqjax.data.source import Source
from haqjax.data.splits import Split, stratified
from haqjax.data.tfds_reader import prepare, tfds
from haqjax.reading import one_line

__all__ = [
    "PREPROCESSING",
    "Dataset",
    "Preprocessing",
    "Source",
    "Split",
    "batches",
    "check_labels",
    "load",
    "prepare",
    "stratified",
]


def load(
    spec: str,
    *,
    seed: int = 0,
    data_dir: str | None = None,
    image_size: int | None = None,
    preprocessing: str | Preprocessing | None = None,
    splits: Sequence[str] | None = None,
    search_images: int | None = None,
    report_images: int | None = None,
    workers: int | None = None,
    memory: int = MEMORY,
) -> Dataset:
    """Loads a data set by name.

    Where a set has three splits, they serve to train, to search and to report. Where it has two, a tenth of the
    training images is put aside to search by. Of "digits" only `seed` and `image_size` can be chosen.

    Args:
      spec: "digits"; "tfds:NAME" for a set of TensorFlow Datasets that is on disk; "folder:PATH" for images in
        `train/CLASS/` and `validation/CLASS/`; "npz:FILE" for NumPy arrays.
      seed: fixes which image goes to which split; it has no part in training or search.
      data_dir: where "tfds:NAME" looks; None is the library's own place.
      image_size: height and width of the images. None is 32 for "digits", and else that of `preprocessing`.
      preprocessing: a name of `PREPROCESSING`, which should suit the weights, or a record of one's own. None is
        "torchvision" for a folder and "cifar" for the others.
      splits: two or three names instead of `train`, `validation` (or `val`) and `test`.
      search_images, report_images: how many to draw, stratified by class; None is all, or as many as fit.
      workers: processes that decode. None is threads of this process for images decoded now; for those decoded later
        see `batches`. Processes need a main part under `if __name__ == "__main__":`.
      memory: bytes of float32 images that each split may take.

    Returns:
      Three splits without common images, float32 [n, H, W, 3] and int32 [n] each. Training images that do not fit are
      a `Source`, which decodes on demand. What has been left out stands in `notes`.

    Raises:
      ValueError: unknown `spec`, or a data set that cannot be read: a missing split, an empty class, a label out of
        range, images that cannot be decoded; names the first and counts all.

    >>> data = load("digits", image_size=8)
    >>> data.classes, len(data.train), len(data.search), len(data.report)
    (10, 1077, 360, 360)
    """
    cut = Cut(seed, splits, search_images, report_images, workers, memory)
    try:
        return _load(spec, cut, data_dir, image_size, preprocessing)
    except ValueError as error:  # names in files are of any length
        raise ValueError(one_line(error)) from error


def _load(
    spec: str, cut: Cut, data_dir: str | None, image_size: int | None, preprocessing: str | Preprocessing | None
) -> Dataset:
    kind, _, name = spec.partition(":")
    if spec == "digits":
        chosen = dict(
            preprocessing=preprocessing,
            splits=cut.splits,
            search_images=cut.search_images,
            report_images=cut.report_images,
        )
        given = [option for option, value in chosen.items() if value is not None]
        if given:
            raise ValueError(f"the data set 'digits' is fixed and takes no {given[0]}: leave it out")
        return digits(seed=cut.seed, image_size=32 if image_size is None else image_size)
    if kind not in ("tfds", "folder", "npz") or not name:
        raise ValueError(f"unknown data set {spec!r}; there are 'digits', 'tfds:NAME', 'folder:PATH' and 'npz:FILE'")
    record = find_preprocessing(preprocessing or ("torchvision" if kind == "folder" else "cifar"), image_size)
    if kind == "tfds":
        return tfds(name, record, cut, data_dir=data_dir)
    return folder(name, record, cut) if kind == "folder" else npz(name, record, cut)
