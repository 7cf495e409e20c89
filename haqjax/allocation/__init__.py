"""Solvers of the allocation problem, for losses that add up over layers; they know no search."""

from haqjax.allocation.integer_program import Allocation, allocate
from haqjax.allocation.lagrangian import Curve, trade_off_curve

__all__ = ["Allocation", "Curve", "allocate", "trade_off_curve"]
