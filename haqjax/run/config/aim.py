"""Aims of a search as a person writes them: within a budget, a front, the cheapest that is accurate enough."""

import dataclasses
from typing import Protocol

from haqjax.reading import quote
from haqjax.run.config.limits import read_limits, read_metrics
from haqjax.run.config.options import check_one_of
from haqjax.searchers.front import BUDGETS
from haqjax.types import Cost


class Asked(Protocol):
    """The options that an aim is read from."""

    @property
    def metric(self) -> str: ...
    @property
    def budget(self) -> str | None: ...
    @property
    def front(self) -> str | None: ...
    @property
    def max_drop(self) -> float | None: ...


@dataclasses.dataclass(frozen=True)
class Aim:
    """A question that a search answers, within one budget unless it is of a kind below."""

    metrics: tuple[str, ...]  # resources that are asked about
    limits: dict[str, float]  # keyword arguments of `haqjax.budget`: every policy has to keep to them
    text: str  # for people
    slug: str  # for the name of a folder

    @property
    def resource(self) -> str | None:
        """The resource whose limit changes from stage to stage; None in a search within one budget."""
        return None


@dataclasses.dataclass(frozen=True)
class FrontAim(Aim):
    """A policy within each of several budgets of one resource."""

    budgets: tuple[dict[str, float], ...]  # keyword arguments of `haqjax.budget`; none for the usual ones

    @property
    def resource(self) -> str:
        return self.metrics[0]


@dataclasses.dataclass(frozen=True)
class CheapestAim(Aim):
    """The policy that costs least of the first metric and loses at most so much accuracy."""

    max_drop: float  # points of accuracy

    @property
    def resource(self) -> str:
        return self.metrics[0]


def read_aim(asked: Asked, episodes: int) -> Aim:
    """Reads the question that is asked, and checks that it is one.

    Raises:
      ValueError: two questions at once, a resource or limit that cannot be read, or too few episodes.
    """
    if asked.front is not None:
        return _read_front(asked, asked.front, episodes)
    if asked.max_drop is not None:
        return _read_cheapest(asked, asked.max_drop, episodes)
    if asked.budget is None:
        return _read_front(asked, usual_front(asked), episodes)
    budget = str(asked.budget)
    metrics, limits = read_metrics(asked.metric), read_limits(asked.metric, budget)
    return Aim(metrics, limits, _describe(metrics, limits, budget), f"{'+'.join(metrics)}{_slug(asked)}")


def usual_front(asked: Asked) -> str:
    """Names the resource of the front that a search finds where no budget and no drop is given: that of the metric.

    Raises:
      ValueError: there are several metrics.
    """
    metrics = read_metrics(asked.metric)
    if len(metrics) > 1:
        raise ValueError(
            f"metric {quote(asked.metric)} without a budget: a front is of one resource; give a budget, one limit for "
            "all or one for each"
        )
    return metrics[0]


def _read_front(asked: Asked, front: str, episodes: int) -> FrontAim:
    check_one_of("front", front, Cost._fields)
    if asked.max_drop is not None:
        raise ValueError(f"front {front!r} and max_drop {asked.max_drop:g} are two questions: ask one of them")
    if asked.metric not in ("latency", front):
        raise ValueError(f"a front of {front} has no metric {asked.metric!r}: leave metric out")
    texts = [] if asked.budget is None else str(asked.budget).split(",")
    budgets = [read_limits(front, text) for text in texts]
    if len({tuple(limit.items()) for limit in budgets}) < len(budgets):
        raise ValueError(f"budget {asked.budget!r} names a limit of the front twice")
    count = len(budgets) or BUDGETS
    if episodes < count:
        raise ValueError(
            f"episodes is {episodes}: a front of {count} budgets needs at least {count}; give a budget, such as 0.6, "
            "for a search within one"
        )
    return FrontAim((front,), {}, f"front of {front}", f"{front}-front", tuple(budgets))


def _read_cheapest(asked: Asked, max_drop: float, episodes: int) -> CheapestAim:
    if not 0 <= max_drop < 100:
        raise ValueError(f"max_drop is {max_drop}: give the points of accuracy that may be lost, from 0 to 100")
    if episodes < 2:
        raise ValueError(f"episodes is {episodes}: a search by max_drop needs at least 2")
    metrics = read_metrics(asked.metric)
    cheap, *others = metrics
    if asked.budget is not None and not others:
        raise ValueError(
            f"budget {asked.budget!r} with max_drop: {cheap} is what is to be cheap; leave budget out, or name what "
            f"it limits after that, such as metric {cheap},memory"
        )
    if asked.budget is None and others:
        raise ValueError(f"metric {asked.metric!r} with max_drop: give a budget for {', '.join(others)}")
    limits = read_limits(",".join(others), str(asked.budget)) if others else {}
    least = f"least {cheap} within {max_drop:g} points of float"
    text = ", ".join([least, *([_describe(others, limits, str(asked.budget))] if others else [])])
    return CheapestAim(metrics, limits, text, f"{'+'.join(metrics)}{_slug(asked)}-drop{max_drop:g}", max_drop)


def _describe(names: tuple[str, ...] | list[str], limits: dict[str, float], budget: str) -> str:
    texts = budget.split(",") * (1 if "," in budget else len(limits))
    parts = zip(names, texts, limits, strict=True)
    return ", ".join(f"{name} at most {text.strip()}{' of 8 bits' if key == name else ''}" for name, text, key in parts)


def _slug(asked: Asked) -> str:
    return "" if asked.budget is None else str(asked.budget).replace(",", "+").replace(" ", "")
