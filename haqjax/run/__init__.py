"""Runs of the commands: from options to a folder with the result."""

from haqjax.run.commands.evaluate import run_evaluate
from haqjax.run.commands.finetune import run_finetune
from haqjax.run.commands.hardware import run_hardware
from haqjax.run.commands.report import run_report
from haqjax.run.commands.search import run_search
from haqjax.run.commands.table import run_table
from haqjax.run.commands.train import run_train
from haqjax.run.config.commands import (
    EvaluateConfig,
    FinetuneConfig,
    HardwareConfig,
    ReportConfig,
    TableConfig,
    TrainConfig,
)
from haqjax.run.config.search import SearchConfig

__all__ = [
    "EvaluateConfig",
    "FinetuneConfig",
    "HardwareConfig",
    "ReportConfig",
    "SearchConfig",
    "TableConfig",
    "TrainConfig",
    "run_evaluate",
    "run_finetune",
    "run_hardware",
    "run_report",
    "run_search",
    "run_table",
    "run_train",
]
