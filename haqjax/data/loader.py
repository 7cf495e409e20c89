"""Data loader: batches in random order from images that do not fit into memory."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from haqjax.data.preprocess import scale
from haqjax.data.source import Source, ahead, decode_rows
from haqjax.data.splits import Split

PROCESSES = max(1, min(8, (os.cpu_count() or 2) - 1))  # that decode by default


def batches(
    images: Source | Split,
    batch_size: int,
    *,
    seed: int = 0,
    epochs: int = 1,
    start: int = 0,
    workers: int | None = None,
    host: tuple[int, int] | None = None,
) -> Iterator[Split]:
    """Draws shuffled batches, decoded ahead of their use.

    The order is a function of the seed and the epoch alone: worker processes, hosts and `start` change nothing in it.
    So the state of an interrupted loop is one number, how many batches it has had.

    Worker processes start anew, as Python's "spawn" does it: a script that uses them keeps its main part under
    `if __name__ == "__main__":`. Leaving the loop early stops them, by closing the iterator.

    Args:
      images: where to draw from; every epoch leaves out the last few rows of its order, too few for a batch.
      batch_size: images a step, of all hosts together.
      seed: same seed, same batches.
      epochs: passes over the images, each in another order.
      start: batches to skip, without decoding them.
      workers: processes that decode; 0 is threads of this one, None is `workers` of the source, or else one a core but
        one, at most 8. A split has nothing to decode.
      host: (index, count) of the hosts that every batch is divided among; None is this process among JAX's.

    Returns:
      An iterator over the rows of each batch that are this host's: the index-th of `count` equal pieces.

    Raises:
      ValueError: numbers out of range; later, from the iterator, images that cannot be decoded, named with their batch.

    >>> split = Split(np.zeros((10, 2, 2, 3), np.float32), np.arange(10))
    >>> drawn = [batch.labels.tolist() for batch in batches(split, 4, epochs=2)]
    >>> len(drawn), drawn[3:] == [batch.labels.tolist() for batch in batches(split, 4, epochs=2, start=3)]
    (4, True)
    """
    index, count = (jax.process_index(), jax.process_count()) if host is None else host
    if workers is None:
        given = 0 if isinstance(images, Split) else images.workers
        workers = PROCESSES if given is None else given
    _check(len(images), batch_size, seed, epochs, start, workers, index, count)
    orders = _orders(len(images), batch_size, seed, epochs)[start:]
    rows = orders.map(lambda batch: np.split(batch, count)[index])
    if isinstance(images, Split):
        return (images.take(rows[number]) for number in range(len(rows)))
    return _decoded(images, rows, workers, start)


def _orders(count: int, batch_size: int, seed: int, epochs: int) -> Any:
    """Lists the row numbers of every batch, a `grain.MapDataset`; an epoch is drawn without replacement."""
    import grain  # slow to import, hence not above

    everything = grain.MapDataset.range(count).seed(seed).shuffle()
    return everything.batch(batch_size, drop_remainder=True).repeat(epochs)


def _decoded(source: Source, rows: Any, workers: int, start: int) -> Iterator[Split]:
    decode = rows.map(lambda these: (these, *decode_rows(source, these)))
    with ahead(decode, workers) as decoded:
        for number, (these, pixels, faults) in enumerate(decoded, start):
            if faults:
                raise ValueError(
                    f"{len(faults)} of {len(these)} images of batch {number} cannot be used; the first: {faults[0]}"
                )
            yield Split(scale(pixels, source.preprocessing), source.labels[these])


def _check(
    images: int, batch_size: int, seed: int, epochs: int, start: int, workers: int, index: int, count: int
) -> None:
    if not 1 <= batch_size <= images:
        raise ValueError(f"batch_size must be between 1 and the {images} images, got {batch_size}")
    if epochs < 1 or not 0 <= seed < 2**32:
        raise ValueError(f"epochs {epochs} must be at least 1 and seed {seed} in 0 .. 2**32 - 1")
    if workers < 0:
        raise ValueError(f"workers is {workers}: give the number of processes that decode, 0 for threads")
    if not 0 <= index < count or batch_size % count:
        raise ValueError(f"host {index} of {count} cannot divide a batch of {batch_size}: choose a multiple of {count}")
    if not 0 <= start <= epochs * (images // batch_size):
        raise ValueError(f"start is {start}, and {epochs} epochs have {epochs * (images // batch_size)} batches")
