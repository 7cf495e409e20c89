"""What a search on the host has evaluated, in arrays of fixed size."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Archive(NamedTuple):
    """A ring of evaluations."""

    policies: Int[np.ndarray, "C L 2"]
    rewards: Float[np.ndarray, "C"]
    told: Int[np.ndarray, ""]  # number of all evaluations; those beyond the capacity are the latest

    @property
    def seen(self) -> tuple[Int[np.ndarray, "N L 2"], Float[np.ndarray, "N"]]:
        """The policies that are remembered, and their gains."""
        size = min(int(self.told), len(self.rewards))
        return self.policies[:size], self.rewards[:size]


def make_archive(layers: int, capacity: int) -> Archive:
    """An empty one.

    >>> make_archive(3, 10).seen[0].shape
    (0, 3, 2)
    """
    return Archive(np.zeros((capacity, layers, 2), np.int32), np.zeros(capacity, np.float32), np.zeros((), np.int32))


def record(archive: Archive, policies: Int[np.ndarray, "N L 2"], rewards: Float[np.ndarray, "N"]) -> Archive:
    """Adds evaluations, over the oldest ones where it is full.

    >>> archive = record(make_archive(1, 3), np.full((4, 1, 2), 8), np.arange(4.0))
    >>> archive.rewards.tolist(), int(archive.told)
    ([3.0, 1.0, 2.0], 4)
    """
    kept = [np.array(values) for values in archive]
    for policy, reward in zip(policies, rewards, strict=True):
        at = int(kept[2]) % len(kept[1])
        kept[0][at], kept[1][at], kept[2] = policy, reward, kept[2] + 1
    return Archive(kept[0], kept[1], np.asarray(kept[2], np.int32))
