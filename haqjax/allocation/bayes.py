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
SCALES = 2.0 ** np.arange(-14, 15)  # of sensitivities that are known but for a common factor
LARGE = 1e10  # squares of rows, in deviations of their noise: beyond them 1 is lost in the rounding of sums
MISFIT = 2.0  # by which deviations are multiplied at most where losses are further from what is predicted of them
LEAST = 3  # evaluations that tell of a factor


class Posterior(NamedTuple):
    """A normal distribution of sensitivities: weights of features that are standard normal before any evaluation."""

    mean: Float[np.ndarray, "F"]
    rows: Float[np.ndarray, "N F"]  # features of the evaluations, in deviations of their noise
    factor: tuple[Float[np.ndarray, "N N"], bool]  # Cholesky
    start: Float[np.ndarray, "L 2 7"]  # what each bit less loses
    level: float  # standard deviation of the offset
    offset: float  # mean of the losses
    misfit: float = 1.0  # factor by which losses are further from their predictions than deviations say, 1 to `MISFIT`


def fit(
    start: Float[np.ndarray, "L 2 8"], policies: Int[np.ndarray, "N L 2"], losses: Float[np.ndarray, "N"]
) -> Posterior:
    """Learns an offset, a common scale, and what each bit less loses at each entry.

    Args:
      start: sensitivities of entries to begin with.
      policies, losses: evaluations, finite.
    """
    steps, level, noise = _to_steps(start), _level(losses), _noise(losses)
    features = _features(steps, policies, level)
    rows = features / noise[:, None]
    factor = factorise(rows, rows @ rows.T)
    error = (losses - losses.mean() - features[:, 1]) / noise  # the features' weights are departures from this
    solved, misfit = scipy.linalg.cho_solve(factor, error), _find_misfit(factor, error)
    return Posterior(rows.T @ solved, rows, factor, steps, level, float(losses.mean()), misfit)


def _find_misfit(factor: tuple[np.ndarray, bool], error: Float[np.ndarray, "N"]) -> float:
    """Compares each loss with what the others predict of it, in closed form (Rasmussen and Williams 2006, eq. 5.12).

    At most `MISFIT`: with few evaluations it is itself uncertain.
    """
    inverse = scipy.linalg.cho_solve(factor, np.eye(len(error)))
    apart = inverse @ error / np.sqrt(np.maximum(np.diag(inverse), np.finfo(float).tiny))
    return float(np.clip(np.sqrt(np.mean(apart**2)), 1.0, MISFIT))


def find_scale(
    start: Float[np.ndarray, "L 2 8"], policies: Int[np.ndarray, "N L 2"], losses: Float[np.ndarray, "N"]
) -> float:
    """Finds the factor of sensitivities, of `SCALES`, that makes evaluations likeliest; 1 for fewer than `LEAST`.

    Args:
      start: sensitivities that are known but for a common factor.
      policies, losses: as for `fit`.

    >>> start, policies = 4.0 ** -np.arange(8.0) * np.ones((3, 2, 1)), np.arange(2, 6)[:, None, None] * np.ones((3, 2))
    >>> losses = 16 * 6 * 4.0 ** (1 - policies[:, 0, 0])
    >>> find_scale(start, policies, losses)
    16.0
    """
    if len(losses) < LEAST:
        return 1.0
    features = _features(_to_steps(start), policies, _level(losses))
    predicted, features = features[:, 1], np.delete(features, 1, axis=1)
    level, rest = (part @ part.T for part in np.split(features, [1], axis=1))
    noise = _noise(losses)

    def evidence(scale: float) -> float:
        rows = features * np.where(np.arange(features.shape[1]) > 0, scale, 1.0) / noise[:, None]
        factor = factorise(rows, (level + scale**2 * rest) / np.outer(noise, noise))
        error = (losses - losses.mean() - scale * predicted) / noise
        size = float(np.log(np.abs(np.diag(factor[0]))).sum())
        return -0.5 * float(error @ scipy.linalg.cho_solve(factor, error)) - size

    return float(max(SCALES, key=evidence))


def factorise(rows: Float[np.ndarray, "N F"], gram: Float[np.ndarray, "N N"]) -> tuple[np.ndarray, bool]:
    """Factorises `rows rows^T + 1` for `scipy.linalg.cho_solve`, however far apart its eigenvalues are.

    Args:
      gram: `rows rows^T`, whose rounding may hide the 1: where many losses are equal, rows are large. Beyond `LARGE`
        the factor comes from the rows themselves, by QR.

    >>> rows = np.array([[3e7, 4e7], [3e7, 4e7], [4e7, -3e7]])
    >>> factor = factorise(rows, rows @ rows.T)
    >>> bool(np.isclose(scipy.linalg.cho_solve(factor, np.array([1.0, -1.0, 0.0]))[0], 1.0, atol=1e-6))
    True
    """
    identity = np.eye(len(rows))
    if gram.diagonal().max(initial=0.0) < LARGE:
        return scipy.linalg.cho_factor(gram + identity)
    return scipy.linalg.qr(np.vstack([rows.T, identity]), mode="r")[0][: len(rows)], False


def _to_steps(start: Float[np.ndarray, "L 2 8"]) -> Float[np.ndarray, "L 2 7"]:
    """Computes what each bit less loses."""
    steps = np.maximum(start[..., :-1] - start[..., 1:], 0)
    return np.maximum(steps, FLOOR * max(steps.max(), FLOOR))


def _level(losses: Float[np.ndarray, "N"]) -> float:
    return LEVEL * max(float(losses.std()), 1e-6)


def _noise(losses: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Computes how far each loss may be from a sum over layers: a standard deviation."""
    distance = losses - losses.min()
    least = max(float(np.median(distance)), 0.02 * abs(float(losses.min())), 1e-6)
    return np.hypot(NOISE * least, FADING * distance)


def mean(posterior: Posterior) -> Float[np.ndarray, "L 2 8"]:
    """Returns the expected sensitivities."""
    return _sensitivity(posterior, posterior.mean)


def draw(posterior: Posterior, random: np.random.Generator) -> Float[np.ndarray, "L 2 8"]:
    """Draws sensitivities: a draw from before the evaluations, corrected by them (Matheron's rule)."""
    weights, noise = random.normal(size=posterior.rows.shape[1]), random.normal(size=len(posterior.rows))
    correction = posterior.rows.T @ scipy.linalg.cho_solve(posterior.factor, -(posterior.rows @ weights) - noise)
    return _sensitivity(posterior, posterior.mean + weights + correction)


def draw_before(start: Float[np.ndarray, "L 2 8"], random: np.random.Generator) -> Float[np.ndarray, "L 2 8"]:
    """Draws sensitivities as they are likely before any evaluation."""
    nothing = np.zeros((0, *np.shape(start)[:2]), int)
    steps = np.maximum(start[..., :-1] - start[..., 1:], 0)
    width = 2 + steps.size
    before = Posterior(np.zeros(width), _features(steps, nothing, 1.0), (np.zeros((0, 0)), False), steps, 1.0, 0.0)
    return _sensitivity(before, random.normal(size=width) * (np.arange(width) > 1))


def predict_losses(
    posterior: Posterior, policies: Int[np.ndarray, "N L 2"]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Predicts losses of policies, but for what does not add up: expected values and standard deviations.

    Deviations are greater by the misfit of what was evaluated, as where the sensitivities to begin with were wrong.
    """
    features = _features(posterior.start, policies, posterior.level)
    expected = posterior.offset + features[:, 1] + features @ posterior.mean
    common = features @ posterior.rows.T
    variance = np.square(features).sum(axis=1) - (common * scipy.linalg.cho_solve(posterior.factor, common.T).T).sum(
        axis=1
    )
    return expected, posterior.misfit * np.sqrt(np.maximum(variance, 0))


def _features(
    start: Float[np.ndarray, "L 2 7"], policies: Int[np.ndarray, "N L 2"], level: float
) -> Float[np.ndarray, "N F"]:
    """Lays out offset, predicted loss, and each bit that is missing, times the deviation of its weight."""
    missing = (np.asarray(policies)[..., None] <= np.arange(1, WIDTHS)).reshape(len(policies), start.size)
    offset, scale = np.full((len(policies), 1), level), (missing @ start.ravel())[:, None]
    return np.concatenate([offset, scale, missing * (TRUST * start.ravel())], axis=1)


def _sensitivity(posterior: Posterior, weights: Float[np.ndarray, "F"]) -> Float[np.ndarray, "L 2 8"]:
    start = posterior.start
    steps = start * (1 + weights[1]) + TRUST * start * weights[2:].reshape(start.shape)
    return np.concatenate([np.cumsum(steps[..., ::-1], axis=-1)[..., ::-1], np.zeros((*start.shape[:2], 1))], axis=-1)
