"""Answers of a search: one module for each kind of question, with the same functions."""

from types import ModuleType

import haqjax.run.answers.cheapest as cheapest
import haqjax.run.answers.front as front
import haqjax.run.answers.within as within
from haqjax.run.config.aim import Aim, CheapestAim, FrontAim


def answers_to(aim: Aim) -> ModuleType:
    """Picks the module that answers a question: `find_uniform`, `conclude`."""
    if isinstance(aim, FrontAim):
        return front
    return cheapest if isinstance(aim, CheapestAim) else within


__all__ = ["answers_to"]
