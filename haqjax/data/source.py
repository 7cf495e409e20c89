"""Sources: labelled images that are decoded on demand."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Int, Real

from haqjax.data.preprocess import Preprocessing, reshape, scale
from haqjax.data.splits import Split

CHUNK = 16  # images that a thread decodes before it hands them over
THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes without holding the interpreter


class Records(Protocol):
    """Images by number. Records go to worker processes, so it must be possible to pickle them."""

    def __getitem__(self, record: int, /) -> Real[np.ndarray, "H W c"]:
        """Decodes one image, uint8 or float32 on the scale 0 .. 255; a ValueError says what is wrong with it."""

    def name(self, record: int, /) -> str:
        """Names one record for a person to find it again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Labelled images on disk, with the interface of a `Split` but for `images`: `take` decodes some of them."""

    records: Records
    rows: Int[np.ndarray, "n"]  # record of each image
    labels: Int[np.ndarray, "n"]  # int32, 0 .. classes - 1
    preprocessing: Preprocessing
    image_shape: tuple[int, int, int]  # height, width, 3, after preprocessing
    workers: int | None = None  # processes that decode; 0: threads of this one; None: see `batches`

    def __len__(self) -> int:
        return len(self.labels)

    def shaped(self, count: int) -> jax.ShapeDtypeStruct:
        """Returns shape and type of a batch of so many images."""
        return jax.ShapeDtypeStruct((count, *self.image_shape), np.float32)

    @property
    def bytes(self) -> int:
        """Counts the bytes of the images in memory as float32."""
        return 4 * len(self) * int(np.prod(self.image_shape))

    def part(self, rows: Int[np.ndarray, "m"] | slice) -> "Source":
        """Makes the source of the given rows, and decodes nothing."""
        return dataclasses.replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def take(self, rows: Int[np.ndarray, "m"] | slice) -> Split:
        """Decodes the given rows; errors as in `decode`."""
        return decode(self.part(rows))[0]

    def pixels(self, row: int) -> Real[np.ndarray, "H W 3"]:
        """Decodes one image, resized and cropped but not scaled.

        Raises:
          ValueError: it cannot be decoded, or has another size than the others; names it.
        """
        record = int(self.rows[row])
        found = reshape(self.records[record], self.preprocessing)
        if found.shape != self.image_shape:
            size, other = (" x ".join(map(str, shape[:2])) for shape in (found.shape, self.image_shape))
            raise ValueError(
                f"{self.records.name(record)} has {size} pixels where others have {other}: "
                "give an image size, or a preprocessing that crops"
            )
        return found


def make_source(
    records: Records, labels: Int[np.ndarray, "n"], preprocessing: Preprocessing, workers: int | None = None
) -> Source:
    """Makes the source of all records, in order; where nothing is cropped, the first good one gives the size of all.

    Raises:
      ValueError: there are no records, or none can be decoded.
    """
    if not len(labels):
        raise ValueError("a source of images needs at least one")
    crop = preprocessing.crop
    height, width = (crop, crop) if crop is not None else _first_size(records, len(labels), preprocessing)
    return Source(records, np.arange(len(labels)), labels.astype(np.int32), preprocessing, (height, width, 3), workers)


def _first_size(records: Records, count: int, preprocessing: Preprocessing) -> tuple[int, int]:
    faults = []
    for record in range(count):
        try:
            height, width, _ = reshape(records[record], preprocessing).shape
            return height, width
        except ValueError as error:
            faults.append(str(error))
    raise ValueError(f"{count} of {count} images cannot be used; the first: {faults[0]}")


def decode(*sources: Source) -> list[Split]:
    """Decodes every image of some sources into memory, in threads unless they ask for processes.

    Raises:
      ValueError: some images cannot be decoded or differ in size; counts them all and names the first.
    """
    import grain  # slow to import, hence not above

    chunks = [
        grain.MapDataset.range(len(source)).batch(CHUNK).map(functools.partial(decode_rows, source))
        for source in sources
    ]
    faults: list[str] = []
    splits = []
    with ahead(grain.MapDataset.concatenate(chunks), sources[0].workers or 0) as decoded:
        for source in sources:
            images = np.empty((len(source), *source.image_shape), np.float32)
            for at in range(0, len(source), CHUNK):
                pixels, wrong = next(decoded)
                images[at : at + CHUNK] = scale(pixels, source.preprocessing)
                faults += wrong
            splits.append(Split(images, source.labels))
    if faults:
        raise ValueError(f"{len(faults)} of {sum(map(len, sources))} images cannot be used; the first: {faults[0]}")
    return splits


def decode_rows(source: Source, rows: Int[np.ndarray, "b"]) -> tuple[Real[np.ndarray, "b H W 3"], list[str]]:
    """Decodes the pixels of some rows, blank where one cannot be used, and says what is wrong with those."""
    found, faults = [], []
    for row in rows:
        try:
            found.append(source.pixels(row))
        except ValueError as error:
            found.append(np.zeros(source.image_shape, np.uint8))
            faults.append(str(error))
    return np.stack(found), faults


@contextlib.contextmanager
def ahead(elements: Any, workers: int) -> Iterator[Iterator[Any]]:
    """Computes the elements of a `grain.MapDataset` ahead, in order, in so many processes; in threads for 0."""
    import grain
    from absl import flags

    threads = 1 if workers else THREADS
    read = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads its flags where it starts a process
            flags.FLAGS.mark_as_parsed()
        through_pipes = grain.experimental.DatasetOptions(min_shm_size=2**62)  # containers have little shared memory
        read = grain.experimental.WithOptionsIterDataset(read, through_pipes)
        read = read.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    iterator = iter(read)
    try:
        yield iterator
    finally:
        iterator.close()
