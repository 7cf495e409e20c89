"""Sensitivities: losses that add up over layers."""

import warnings
from collections.abc import Sequence

import numpy as np
import scipy  # each of its parts is imported where it is first used: all take a second
from jaxtyping import Float, Int

from haqjax.allocation.choices import allowed
from haqjax.types import ACTIVATION, WEIGHT, WIDTHS, Bounds

WORST = 10.0  # spans of all other sensitivities together: a sensitivity that is NaN counts as so much worse
NAMED = 3  # of the NaNs, in a warning

ERROR_PER_BIT = 4.0  # law of quantisation noise: a bit less has four times the squared error
Sensitivity = Float[np.ndarray, "L 2 8"] | Float[np.ndarray, "L 8 8"]  # of each entry, or of each pair of widths


def to_pairs(sensitivity: Sensitivity) -> Float[np.ndarray, "L 8 8"]:
    """Computes sensitivities of pairs of widths: the sum of both entries', unless they are of pairs already.

    >>> to_pairs(np.ones((1, 2, 8)))[0, 3, 3]
    np.float64(2.0)
    """
    values = _check(sensitivity)
    if values.shape[1:] == (WIDTHS, WIDTHS):
        return values
    return values[:, WEIGHT, :, None] + values[:, ACTIVATION, None, :]


def sensitivity_by_law(layers: int) -> Float[np.ndarray, "L 2 8"]:
    """Makes the sensitivities of layers of which nothing is known: each bit less has four times the squared error.

    >>> sensitivity_by_law(1)[0, 0, :2].tolist()
    [0.25, 0.0625]
    """
    return ERROR_PER_BIT ** -np.arange(1.0, WIDTHS + 1) * np.ones((layers, 2, 1))


def predict(sensitivity: Sensitivity, policies: Int[np.ndarray, "*n L 2"]) -> Float[np.ndarray, "*n"]:
    """Sums the losses of all layers.

    >>> predict(np.arange(8.0) * np.ones((3, 2, 1)), np.full((5, 3, 2), 2)).tolist()
    [6.0, 6.0, 6.0, 6.0, 6.0]
    """
    pairs, at = to_pairs(sensitivity), np.asarray(policies) - 1
    return pairs[np.arange(len(pairs)), at[..., WEIGHT], at[..., ACTIVATION]].sum(axis=-1)


def rank_correlation(
    sensitivity: Sensitivity, policies: Int[np.ndarray, "N L 2"], losses: Float[np.ndarray, "N"]
) -> float:
    """Measures how well sums over layers put policies in order: Spearman's rank correlation with the losses evaluated.

    Args:
      losses: of the policies as they are; NaN counts as the greatest.

    Returns:
      From -1 to 1; NaN where all losses, or all sums, are equal, or there are fewer than 3 policies.

    Raises:
      ValueError: another number of losses than of policies.

    >>> policies = np.arange(2, 6)[:, None, None] * np.ones((1, 3, 2), int)
    >>> round(
    ...     rank_correlation(4.0 ** -np.arange(8.0) * np.ones((3, 2, 1)), policies, np.array([0.9, 0.3, 0.4, 0.1])), 3
    ... )
    0.8
    """
    found, expected = np.asarray(losses, float), predict(sensitivity, policies)
    if found.shape != expected.shape:
        raise ValueError(f"losses have shape {found.shape}, but there are {len(expected)} policies: give one for each")
    found = np.where(np.isnan(found), np.inf, found)
    if len(found) < 3 or (found == found[0]).all() or (expected == expected[0]).all():
        return float("nan")
    return float(scipy.stats.spearmanr(expected, found).statistic)


def guard(
    sensitivity: Sensitivity, bounds: Bounds, names: Sequence[str] | None = None, *, factor: float = WORST
) -> Sensitivity:
    """Makes sensitivities finite: what is not, counts as far worse than all the rest together.

    A warning names what the bounds allow and is not finite; what they do not allow becomes 0.

    Args:
      factor: by how much worse than the worst, in spans of all the rest together; with 0 as bad as the worst.

    >>> from haqjax.policies.bounds import make_bounds
    >>> guard(np.where(np.arange(8) < 2, np.nan, np.ones((2, 2, 1))), make_bounds(2, low=3)).sum(axis=-1).tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    values, there = _check(sensitivity), allowed(bounds)
    if values.shape[1:] == (WIDTHS, WIDTHS):
        there = there[:, WEIGHT, :, None] & there[:, ACTIVATION, None, :]
    finite = np.isfinite(values)
    broken = np.argwhere(there & ~finite)
    if not len(broken):
        return np.where(finite, values, 0)
    described = [describe_entry(index, values.shape, names) for index in broken[:NAMED]]
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    warnings.warn(
        f"sensitivities that are not finite count as the worst: {', '.join(described)}{more}",
        RuntimeWarning,
        stacklevel=3,
    )
    known = np.where(there & finite, values, 0)
    worst = known.max() + factor * max(np.abs(known).sum(), 1.0)
    return np.where(finite, values, np.where(there, worst, 0))


def describe_entry(index: Int[np.ndarray, "3"], shape: tuple[int, ...], names: Sequence[str] | None = None) -> str:
    """Describes one entry of sensitivities of this shape, in words.

    >>> describe_entry((1, 0, 3), (2, 2, 8)), describe_entry((1, 0, 3), (2, 8, 8), ("stem", "head"))
    ('layer 1, weights at 4 bits', 'head, weights at 1 and activations at 4 bits')
    """
    layer, second, third = (int(i) for i in index)
    name = f"layer {layer}" if names is None else names[layer]
    if shape[1:] == (WIDTHS, WIDTHS):
        return f"{name}, weights at {second + 1} and activations at {third + 1} bits"
    return f"{name}, {('weights', 'activations')[second]} at {third + 1} bits"


def _check(sensitivity: Sensitivity) -> Sensitivity:
    values = np.asarray(sensitivity, np.float64)
    if values.shape[1:] not in ((2, WIDTHS), (WIDTHS, WIDTHS)):
        raise ValueError(f"sensitivities have shape {values.shape}, expected [L, 2, 8] or [L, 8, 8]")
    return values
