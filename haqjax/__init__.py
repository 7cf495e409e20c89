"""haqjax: how many bits each layer of a network should have, for a given accelerator."""

from haqjax.hardware import cost_table, machine, total_cost
from haqjax.policies.budgets import budget
from haqjax.policies.projection import project
from haqjax.quantizers import calibrate, quantize
from haqjax.searchers import search
from haqjax.tracing.hooks import layers
from haqjax.training.finetuning import finetune

__all__ = [
    "budget",
    "calibrate",
    "cost_table",
    "finetune",
    "layers",
    "machine",
    "project",
    "quantize",
    "search",
    "total_cost",
]
