"""haqjax: how many bits each layer of a network should have, for a given accelerator."""

from haqjax.data import Split
from haqjax.evaluation import make_evaluator
from haqjax.hardware import cost_table, machine, total_cost
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget
from haqjax.policies.projection import project
from haqjax.quantizers import calibrate, quantize
from haqjax.searchers import SearchResult, make_problem, search
from haqjax.tracing.layer_table import layers
from haqjax.training.finetuning import finetune

__all__ = [
    "SearchResult",
    "Split",
    "budget",
    "calibrate",
    "cost_table",
    "finetune",
    "layers",
    "machine",
    "make_bounds",
    "make_evaluator",
    "make_problem",
    "project",
    "quantize",
    "search",
    "total_cost",
]
