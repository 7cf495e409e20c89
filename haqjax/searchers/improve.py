"""HAQ with additions by name: which there are, and what each one sets."""

import dataclasses
from collections.abc import Collection

import numpy as np

from haqjax.allocation.integer_program import allocate
from haqjax.searchers.base import Problem
from haqjax.searchers.haq import HAQ
from haqjax.types import WIDTHS

EXTENSIONS = ("costs", "exchange", "retain", "start", "twin")
RETAINED = 8  # episodes
FACTOR = 4.0  # a bit less has four times the squared error


def extend(config: HAQ, extensions: Collection[str], problem: Problem | None, episodes: int) -> HAQ:
    """The method with some additions, none of which is in the paper; each can be had alone.

    "costs": the agent also sees what each decision spends of the budget. "start": the warm-up stays near the allocation
    that is best if each bit less has four times the squared error. "exchange": in the second half of the episodes bits
    of the best policy are exchanged at random. "retain": the memory never forgets the best 8 episodes. "twin": two
    critics, of which targets take the lower value.

    Args:
      config: what it starts from.
      additions: of `EXTENSIONS`.
      problem: its table, bounds and budget say where "start" is; the others do without.
      episodes: of the search.

    Raises:
      ValueError: an addition that there is not, or "start" without a problem.

    >>> extend(HAQ(), ["twin", "swap"], None, 100).swap
    50
    """
    unknown = sorted(set(extensions) - set(EXTENSIONS))
    if unknown:
        raise ValueError(f"unknown addition {unknown[0]!r}: there are {', '.join(EXTENSIONS)}")
    if "start" in extensions:
        if problem is None:
            raise ValueError("the addition 'start' needs a problem: its budget says where the search starts")
        config = dataclasses.replace(config, start=find_start(problem))
    if "exchange" in extensions:
        config = dataclasses.replace(config, swap=episodes // 2)
    if "retain" in extensions:
        config = dataclasses.replace(config, retain=min(RETAINED, config.agent.warmup))
    agent = dataclasses.replace(config.agent, twin="twin" in extensions)
    return dataclasses.replace(config, agent=agent, costs="costs" in extensions)


def find_start(problem: Problem) -> tuple[tuple[int, int], ...]:
    """The allocation where a warm-up begins."""
    law = FACTOR ** -np.arange(1.0, WIDTHS + 1) * np.ones((len(problem.names), 2, 1))
    policy = allocate(law, problem.table, problem.bounds, problem.budget).policy
    return tuple((int(weight), int(activation)) for weight, activation in policy)
