"""Trains float networks, fine-tunes them under a policy, and keeps their weights."""

from haqjax.training.augmentation import augment
from haqjax.training.batchnorm_statistics import reestimate_statistics
from haqjax.training.finetuning import Tuned, Tuning, finetune, finetune_all
from haqjax.training.finetuning_many import finetune_policies
from haqjax.training.fitting import RECIPES, Recipe, fit
from haqjax.training.steps import Progress
from haqjax.training.weights import load_params, save_params

__all__ = [
    "RECIPES",
    "Progress",
    "Recipe",
    "Tuned",
    "Tuning",
    "augment",
    "finetune",
    "finetune_all",
    "finetune_policies",
    "fit",
    "load_params",
    "reestimate_statistics",
    "save_params",
]
