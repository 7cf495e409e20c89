"""Training float networks, measuring them, keeping them."""

from haqjax.evaluation.accuracy import Accuracy, accuracy
from haqjax.evaluation.evaluator import make_evaluate
from haqjax.evaluation.finetuned import finetune_policies, make_finetuned_evaluate
from haqjax.evaluation.racing import make_race
from haqjax.evaluation.soft_loss import make_soft_loss
from haqjax.sharding import make_mesh
from haqjax.training.augmentation import augment
from haqjax.training.batchnorm_statistics import reestimate_statistics
from haqjax.training.finetuning import Tuned, Tuning, finetune, finetune_all
from haqjax.training.fitting import RECIPES, Recipe, fit
from haqjax.training.steps import Progress
from haqjax.training.weights import load_params, save_params

__all__ = [
    "RECIPES", "Accuracy", "Progress", "Recipe", "Tuned", "Tuning", "accuracy", "augment", "finetune", "finetune_all",
    "finetune_policies", "fit", "load_params", "make_evaluate", "make_finetuned_evaluate", "make_mesh",
    "make_race", "make_soft_loss", "reestimate_statistics", "save_params",
]  # fmt: skip
