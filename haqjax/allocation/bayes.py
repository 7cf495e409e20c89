"""Bayesian linear regression of losses on widths, around given sensitivities."""

from typing import NamedTuple

import numpy as np
import scipy  # each of its parts is imported where it is first used: all take a second
from jaxtyping import Float, Int

from haqjax.types import WIDTHS

TRUST = 0.5  # standard deviation of a sensitivity, as a fraction of what it started from
LEVEL = 3.0  # of the common offset, in deviations of the losses
NOISE = 0.1  # deviation from additivity near the best policy, as a fraction of the median policy's distance from it
FADING = 0.2  # how it grows with a policy's own distance: far policies say less about the best one's surroundings
FLOOR = 1e-3  # least sensitivity to begin with, as a fraction of the largest


class Posterior(NamedTuple):
    """A normal distribution of sensitivities: weights of features that are standard normal before any evaluation."""

    mean: Float[np.ndarray, "F"]
    rows: Float[np.ndarray, "N F"]  # features of the evaluations, in deviations of their noise
    factor: tuple[Float[np.ndarray, "N N"], bool]  # Cholesky
    start: Float[np.ndarray, "L 2 7"]  # what each bit less loses


def fit(
    start: Float[np.ndarray, "L 2 8"], policies: Int[np.ndarray, "N L 2"], losses: Float[np.ndarray, "N"]
) -> Posterior:
    """Learns an offset, a common scale, and what each bit less loses at each entry.

    Args:
      start: sensitivities of entries to begin with.
      policies, losses: evaluations, finite.
    """
    start = np.maximum(start[..., :-1] - start[..., 1:], 0)
    start = np.maximum(start, FLOOR * max(start.max(), FLOOR))
    features = _features(start, policies, LEVEL * max(float(losses.std()), 1e-6))
    distance = losses - losses.min()
    least = max(float(np.median(distance)), 0.02 * abs(float(losses.min())), 1e-6)
    noise = np.hypot(NOISE * least, FADING * distance)
    rows = features / noise[:, None]
    factor = scipy.linalg.cho_factor(rows @ rows.T + np.eye(len(rows)))
    expected = losses.mean() + features[:, 1]  # the features' weights are departures from this
    return Posterior(rows.T @ scipy.linalg.cho_solve(factor, (losses - expected) / noise), rows, factor, start)


def mean(posterior: Posterior) -> Float[np.ndarray, "L 2 8"]:
    """Returns the expected sensitivities."""
    return _sensitivity(posterior, posterior.mean)


def draw(posterior: Posterior, random: np.random.Generator) -> Float[np.ndarray, "L 2 8"]:
    """Draws sensitivities: a draw from before the evaluations, corrected by them (Matheron's rule)."""
    weights, noise = random.normal(size=posterior.rows.shape[1]), random.normal(size=len(posterior.rows))
    correction = posterior.rows.T @ scipy.linalg.cho_solve(posterior.factor, -(posterior.rows @ weights) - noise)
    return _sensitivity(posterior, posterior.mean + weights + correction)


def _features(
    start: Float[np.ndarray, "L 2 7"], policies: Int[np.ndarray, "N L 2"], level: float
) -> Float[np.ndarray, "N F"]:
    """Lays out offset, predicted loss, and each bit that is missing, times the deviation of its weight."""
    missing = (np.asarray(policies)[..., None] <= np.arange(1, WIDTHS)).reshape(len(policies), -1)
    offset, scale = np.full((len(policies), 1), level), (missing @ start.ravel())[:, None]
    return np.concatenate([offset, scale, missing * (TRUST * start.ravel())], axis=1)


def _sensitivity(posterior: Posterior, weights: Float[np.ndarray, "F"]) -> Float[np.ndarray, "L 2 8"]:
    start = posterior.start
    steps = start * (1 + weights[1]) + TRUST * start * weights[2:].reshape(start.shape)
    return np.concatenate([np.cumsum(steps[..., ::-1], axis=-1)[..., ::-1], np.zeros((*start.shape[:2], 1))], axis=-1)
