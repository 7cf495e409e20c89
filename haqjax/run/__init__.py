"""Whole runs: from a configuration to a folder with the result."""

from haqjax.run.commands.evaluate import run_evaluate, run_finetune
from haqjax.run.commands.hardware import run_hardware
from haqjax.run.commands.search import run_search
from haqjax.run.commands.table import run_table
from haqjax.run.commands.train import run_train
from haqjax.run.config.commands import (
    EvaluateConfig,
    FinetuneConfig,
    HardwareConfig,
    SearchConfig,
    TableConfig,
    TrainConfig,
)

__all__ = [
    "EvaluateConfig", "FinetuneConfig", "HardwareConfig", "SearchConfig", "TableConfig", "TrainConfig",
    "run_evaluate", "run_finetune", "run_hardware", "run_search", "run_table", "run_train",
]  # fmt: skip
