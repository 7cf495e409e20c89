"""Ends of a search: a posterior expects no more gain, or some rounds have brought none; the choice at the end."""

import math

import numpy as np
import scipy  # its parts are imported where they are first used
from jaxtyping import Float

from haqjax.searchers.base import Record

WORTH = 0.1  # standard errors: a smaller gain is not worth an evaluation
ROUNDING = 1e-6  # of an accuracy in float32


def standard_error(accuracy: float, loss: float, images: float) -> float:
    """Computes the standard error of a policy's mean loss, or of its accuracy where the loss is not known.

    Each wrong answer is taken to lose the same, and a right one nothing, so that the loss of an image deviates by
    `loss * sqrt(p / (1 - p))`, with Laplace's estimate of the accuracy `p = (right + 1) / (images + 2)`.

    Args:
      accuracy: 0..1.
      loss: nats.
      images: NaN where unknown.

    Returns:
      Nats, or a fraction; NaN where the number of images is not known.

    >>> round(standard_error(0.9, 0.3, 98), 3), round(standard_error(0.9, math.nan, 98), 3)
    (0.087, 0.031)
    """
    if not images > 0:
        return math.nan
    right = (accuracy * images + 1) / (images + 2)
    known = math.isfinite(loss) and loss > 0
    return (loss * math.sqrt(right / (1 - right)) if known else math.sqrt(right * (1 - right))) / math.sqrt(images)


def expected_improvement(
    best: float, mean: Float[np.ndarray, "N"], deviation: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    """Computes by how much normally distributed losses are expected to be below the least one (Mockus 1975).

    >>> print(expected_improvement(1.0, np.array([1.0, 0.5, 9.0]), np.array([1.0, 0.0, 1.0])).round(3))
    [0.399 0.5   0.   ]
    """
    gap, deviation = best - mean, np.maximum(deviation, 1e-12)
    ratio = gap / deviation
    density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    return gap * scipy.special.ndtr(ratio) + deviation * density


def rounds_without_gain(records: Record, index: int, best: int) -> int:
    """Counts the rounds of a stage since its best policy was evaluated; 0 before its first round."""
    of_stage = records.round[records.stage == index]
    return int(of_stage[-1] - max(of_stage[0] - 1, records.round[best])) if len(of_stage) else 0


def cheapest_within_error(accuracy: Float[np.ndarray, "N"], cost: Float[np.ndarray, "N"], images: int) -> int | None:
    """Chooses the cheapest policy whose accuracy is within one standard error of the best one's.

    The rule of one standard error (Breiman et al. 1984, section 3.4.3), with the standard error of the best one's
    accuracy. Of several that cost the same it is the most accurate, then the first. What is not finite is left out.

    Args:
      accuracy: 0..1, on so many images.

    Returns:
      Its number; None where there is none.

    >>> cheapest_within_error(np.array([0.90, 0.895, 0.80, np.nan]), np.array([4.0, 3.0, 2.0, 1.0]), 400)
    1
    """
    accuracy, cost = np.asarray(accuracy, float), np.asarray(cost, float)
    usable = np.flatnonzero(np.isfinite(accuracy) & np.isfinite(cost))
    if not len(usable):
        return None
    best = min(float(accuracy[usable].max()), 1.0)
    error = math.sqrt(best * (1 - best) / images)
    enough = usable[accuracy[usable] >= best - error - ROUNDING]
    return int(enough[np.lexsort((enough, -accuracy[enough], cost[enough]))[0]])
