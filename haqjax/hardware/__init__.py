"""Accelerator models: from a layer table to what each layer costs at every pair of bit-widths."""

from haqjax.hardware.machines import Machine, machine
from haqjax.hardware.table import cost_table, total_cost

__all__ = ["Machine", "cost_table", "machine", "total_cost"]
