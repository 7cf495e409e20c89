"""Measures networks under policies, and trains nothing."""

from haqjax.evaluation.accuracy import Accuracy, measure_accuracy
from haqjax.evaluation.arithmetic_tuning import tune_arithmetic
from haqjax.evaluation.evaluator import make_evaluator
from haqjax.evaluation.finetuned import make_finetuned_evaluator
from haqjax.evaluation.gauss_newton import estimate_gauss_newton_sensitivity
from haqjax.evaluation.racing import make_racing_evaluator
from haqjax.evaluation.sensitivity import measure_sensitivities
from haqjax.evaluation.soft_loss import make_soft_loss

__all__ = [
    "Accuracy",
    "estimate_gauss_newton_sensitivity",
    "make_evaluator",
    "make_finetuned_evaluator",
    "make_racing_evaluator",
    "make_soft_loss",
    "measure_accuracy",
    "measure_sensitivities",
    "tune_arithmetic",
]
