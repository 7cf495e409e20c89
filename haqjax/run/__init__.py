"""Whole runs: from a configuration to a folder with the result."""

from haqjax.run.config import SearchConfig, TrainConfig
from haqjax.run.search import run_search
from haqjax.run.train import run_train

__all__ = ["SearchConfig", "TrainConfig", "run_search", "run_train"]
