"""Whole runs: from a configuration to a folder with the result."""

from haqjax.run.config import EvaluateConfig, FinetuneConfig, HardwareConfig, SearchConfig, TableConfig, TrainConfig
from haqjax.run.hardware import run_hardware
from haqjax.run.saved import run_evaluate, run_finetune
from haqjax.run.search import run_search
from haqjax.run.table import run_table
from haqjax.run.train import run_train

__all__ = [
    "EvaluateConfig", "FinetuneConfig", "HardwareConfig", "SearchConfig", "TableConfig", "TrainConfig",
    "run_evaluate", "run_finetune", "run_hardware", "run_search", "run_table", "run_train",
]  # fmt: skip
