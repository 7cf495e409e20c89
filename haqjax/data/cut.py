"""Three splits cut from a set on disk: to train on, to search by, to report."""

import dataclasses
from collections.abc import Collection, Sequence

from haqjax.data.dataset import Dataset
from haqjax.data.source import Source, decode
from haqjax.data.splits import stratified

SEARCH_FRACTION = 0.1  # of the training split, where a set has no split of its own to search by
MEMORY = 2 * 2**30  # bytes of float32 images that a split may take in memory: 3,566 images of 224 pixels


@dataclasses.dataclass(frozen=True)
class Cut:
    """Options for cutting a set on disk into three splits; the same for every kind of set."""

    seed: int = 0
    splits: Sequence[str] | None = None  # names to train on, to search by (may be absent), to report
    search_images: int | None = None  # None: a tenth of the training images, or as many as `memory` holds
    report_images: int | None = None  # None: all, or as many as `memory` holds
    workers: int | None = None  # processes that decode; 0: threads of this one; None: see `batches`
    memory: int = MEMORY  # bytes that a split may take

    def __post_init__(self) -> None:
        """Raises a ValueError that names a number out of range."""
        for name, least in (("search_images", 1), ("report_images", 1), ("workers", 0), ("memory", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: give at least {least}")


def choose_splits(name: str, there: Collection[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Finds the names of the splits of a set.

    Args:
      name: of the set, for messages.
      there: the splits that it has.
      asked: two or three names; None is `train`, `validation` (or `val`) and `test`, of which either may be absent.

    Returns:
      Names to train on; to search by, only where a set has all three; to report.

    Raises:
      ValueError: a split is missing; names it and those that are there.

    >>> choose_splits("cifar10", ["train", "test"], None), choose_splits("mine", ["train", "val", "test"], None)
    (('train', 'test'), ('train', 'val', 'test'))
    """
    middle = "validation" if "validation" in there else "val"
    usual = ["train", *(split for split in (middle, "test") if split in there)]
    wanted = list(usual if asked is None else asked)
    if asked is None and len(usual) == 1:
        wanted.append("validation")
    missing = [split for split in wanted if split not in there]
    if missing:
        raise ValueError(
            f"{name} has no split {' and no '.join(missing)}; it has: {', '.join(sorted(there)) or 'none'}"
        )
    if not 2 <= len(wanted) == len(set(wanted)) <= 3:
        raise ValueError(
            f"splits are {wanted}: name two or three, to train on, to search by (may be absent), to report"
        )
    return tuple(wanted)


def make_dataset(name: str, classes: int, sources: Sequence[Source], cut: Cut, notes: tuple[str, ...] = ()) -> Dataset:
    """Draws the splits, and decodes what fits into memory.

    Args:
      sources: to train on, to search by, to report. Without the second, it is cut out of the first.
      notes: remarks on the set for a person.

    Returns:
      `search` and `report` in memory; `train` too, where it fits, and else a `Source`. Every draw is
      stratified by class.

    Raises:
      ValueError: the images do not suffice, or some that were decoded cannot be used; counts them.
    """
    _check_sizes(name, sources)
    known, *chosen, held_out = sources
    train, search, left_out = (known, *_draw(chosen[0], "search", cut)) if chosen else _separate(known, cut)
    report, unreported = _draw(held_out, "report", cut)
    fits = train.bytes <= cut.memory
    *small, searched, reported = decode(*((train,) if fits else ()), search, report)
    notes += tuple(f"of {name}, {note}" for note in (left_out, unreported) if note)
    return Dataset(name, classes, small[0] if fits else train, searched, reported, notes)


def _separate(known: Source, cut: Cut) -> tuple[Source, Source, str]:
    """Cuts the images to search by out of the training split; with a note where memory holds fewer than a tenth."""
    tenth = max(1, round(SEARCH_FRACTION * len(known)))
    size = cut.search_images or min(tenth, _holds(known, cut))
    if size >= len(known):
        raise ValueError(f"there are {len(known)} images to train on, too few to take {size} of them to search by")
    train, search = (known.part(rows) for rows in stratified(known.labels, (len(known) - size, size), cut.seed))
    short = cut.search_images is None and size < tenth
    return train, search, _note("search", size, tenth, cut) if short else ""


def _draw(source: Source, part: str, cut: Cut) -> tuple[Source, str]:
    """Draws as many images as were asked for, or as fit; with a note where nobody asked for fewer than there are."""
    asked = {"search": cut.search_images, "report": cut.report_images}[part]
    size = asked or min(len(source), _holds(source, cut))
    if size > len(source):
        raise ValueError(f"{part}_images is {size}, and there are {len(source)} images: give at most so many")
    if size == len(source):
        return source, ""
    drawn = source.part(stratified(source.labels, (size,), cut.seed)[0])
    return drawn, _note(part, size, len(source), cut) if asked is None else ""


def _holds(source: Source, cut: Cut) -> int:
    return max(1, cut.memory * len(source) // source.bytes)


def _note(part: str, size: int, wanted: int, cut: Cut) -> str:
    fit = f"{size} images instead of {wanted} are there to {part}, as many as fit {cut.memory / 2**30:.3g} GiB"
    return f"{fit}: give {part}_images to have more"


def _check_sizes(name: str, sources: Sequence[Source]) -> None:
    first, *others = (" x ".join(map(str, source.image_shape[:2])) for source in sources)
    for other in others:
        if other != first:
            raise ValueError(
                f"images of {name} have {first} pixels in one split and {other} in another: "
                "give an image size, or a preprocessing that crops"
            )
