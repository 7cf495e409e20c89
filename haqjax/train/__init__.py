"""Training float networks, measuring them, keeping them."""

from haqjax.train.augment import augment
from haqjax.train.evaluate import Accuracy, accuracy
from haqjax.train.finetune import finetune
from haqjax.train.fit import RECIPES, Progress, Recipe, fit
from haqjax.train.policies import make_evaluate
from haqjax.train.weights import load_params, save_params

__all__ = [
    "RECIPES", "Accuracy", "Progress", "Recipe", "accuracy", "augment", "finetune", "fit", "load_params",
    "make_evaluate", "save_params",
]  # fmt: skip
