"""Accelerator models: the cost of each layer at every pair of bit-widths, from a layer table."""

from haqjax.hardware.machines import Machine, machine
from haqjax.hardware.peak_memory import find_lifetimes
from haqjax.hardware.table import available_widths, cost_table, find_limits, total_cost
from haqjax.hardware.table_files import save_table

__all__ = [
    "Machine",
    "available_widths",
    "cost_table",
    "find_limits",
    "find_lifetimes",
    "machine",
    "save_table",
    "total_cost",
]
