"""Searches one after another, each within a budget of its own, that can be stopped and taken up again."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from haqjax.searchers.base import Problem, Record, Searcher
from haqjax.searchers.driver import play_round, remember, start
from haqjax.types import Budget


class Leg(NamedTuple):
    """One of the searches."""

    budget: Budget
    episodes: int
    key: PRNGKeyArray
    state: Any = None  # to start from; None begins anew


Plan = Callable[
    [int, Record | None], Leg | None
]  # legs that are over, and their records -> the next leg; None: the end


@dataclasses.dataclass(frozen=True)
class Course:
    """What was played so far."""

    records: Record  # of all legs, one after another; `feasible` is meant for the budget of the leg
    state: Any  # of the searcher, in the last leg; None before the first
    legs: tuple[Leg, ...]  # that were begun
    opening: int = 0  # episodes before the first leg

    def limits(self, resource: str) -> Float[np.ndarray, "E"]:
        """The limit that each episode was searched under; infinite where there was none."""
        of_legs = [float(getattr(leg.budget, resource)) for leg in self.legs]
        lengths = [leg.episodes for leg in self.legs]
        whole = np.repeat(np.array([np.inf, *of_legs], np.float32), [self.opening, *lengths])
        return whole[: len(self.records.accuracy)]


OnRound = Callable[[Course], None]  # given what was played so far


def play(
    searcher: Searcher, problem: Problem, plan: Plan, before: Course | None = None, opening: int = 0
) -> Iterator[Course]:
    """Plays the legs of a plan, and tells after each round what was played so far.

    What was evaluated in one leg is known to the next ones.

    Args:
      searcher, problem: as for `haqjax.searchers.search`; the problem's own budget is not looked at.
      plan: asked for one leg after another; it must give the same answers for the same records.
      before: what was played already, of the same plan; its legs are not looked at. Where its state is None, only its
        records before the first leg count.
      opening: so many episodes of `before` come before the first leg.

    Yields:
      At least once, if anything was played.
    """
    records = None if before is None else before.records
    state = None if before is None else before.state
    legs: list[Leg] = []
    over = opening  # episodes before the leg
    while (leg := plan(len(legs), head(records, over))) is not None:
        legs.append(leg)
        start_key, round_key = jax.random.split(leg.key)
        one = dataclasses.replace(problem, budget=leg.budget)
        played = count(records) - over
        if played >= leg.episodes:
            over += leg.episodes
            continue
        if not played:
            state = start(searcher, one, start_key) if leg.state is None else leg.state
        known = {} if records is None else remember({}, records)
        while played < leg.episodes:
            state, record = play_round(searcher, one, state, jax.random.fold_in(round_key, played), known)
            kept = head(record, leg.episodes - played)
            records = kept if records is None else join([records, kept])
            played = count(records) - over
            yield Course(records, state, tuple(legs), opening)
        over += leg.episodes
    if records is not None:
        yield Course(records, state, tuple(legs), opening)


def count(records: Record | None) -> int:
    """Episodes."""
    return 0 if records is None else len(records.accuracy)


def head(records: Record | None, episodes: int) -> Any:
    """The first episodes; None of none."""
    return None if records is None else jax.tree.map(lambda x: np.asarray(x)[:episodes], records)


def join(rounds: Sequence[Record]) -> Record:
    """All episodes as one record."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
