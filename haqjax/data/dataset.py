"""Record of a data set: images to train on, to select policies by, to report."""

import dataclasses

from haqjax.data.source import Source
from haqjax.data.splits import Split


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint parts: one to train on, one to select policies by, one to report."""

    name: str
    classes: int
    train: Split | Source  # a source where the images do not fit into memory
    search: Split
    report: Split
    notes: tuple[str, ...] = ()  # for a person: files or images that were left out
