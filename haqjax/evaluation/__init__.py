"""Measures networks under policies, and trains nothing but what a policy is to be judged after."""

from haqjax.evaluation.accuracy import Accuracy, measure_accuracy
from haqjax.evaluation.evaluator import make_evaluate
from haqjax.evaluation.finetuned import make_finetuned_evaluate
from haqjax.evaluation.racing import make_race
from haqjax.evaluation.soft_loss import make_soft_loss

__all__ = [
    "Accuracy",
    "make_evaluate",
    "make_finetuned_evaluate",
    "make_race",
    "make_soft_loss",
    "measure_accuracy",
]
