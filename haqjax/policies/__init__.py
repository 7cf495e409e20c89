"""Policies: the bits that layers may have, what they cost, and how they are made to fit a budget."""

from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget
from haqjax.policies.projection import best_uniform, project
from haqjax.policies.rules import bounds_by_rules

__all__ = ["best_uniform", "bounds_by_rules", "budget", "make_bounds", "project"]
