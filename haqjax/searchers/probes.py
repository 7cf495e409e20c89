"""Probes of single entries: the policies, and the sensitivities that they measure."""

import numpy as np
from jaxtyping import Float, Int

from haqjax.allocation.additive import ERROR_PER_BIT, sensitivity_by_law
from haqjax.allocation.choices import allowed
from haqjax.types import WIDTHS, Bounds

TIE = 1e-3  # of the greatest sensitivity: tells widths apart that lost nothing measurable


def list_probes(bounds: Bounds, widths: int) -> list[Int[np.ndarray, "L 2"]]:
    """Lists the widest policy, then those in which one entry is narrower; tied layers go together.

    >>> from haqjax.policies.bounds import make_bounds
    >>> [probe[0].tolist() for probe in list_probes(make_bounds(1, pinned={}), 2)]
    [[8, 8], [2, 8], [8, 2], [5, 8], [8, 5]]
    """
    widest, there = np.asarray(bounds.high), allowed(bounds)
    layers = range(len(widest))
    tied = np.arange(len(widest)) if bounds.tied is None else np.asarray(bounds.tied)
    probes = [np.array(widest, np.int32)]
    for turn in range(widths):
        for layer, column in ((layer, column) for layer in layers for column in (0, 1)):
            narrower = np.flatnonzero(there[layer, column])[:-1] + 1
            if tied[layer] != layer or turn >= len(narrower):
                continue
            probe = np.array(widest, np.int32)
            probe[tied == layer, column] = _order_widths(narrower)[turn]
            probes.append(probe)
    return probes


def estimate_sensitivity(
    policies: Int[np.ndarray, "N L 2"], rewards: Float[np.ndarray, "N"], bounds: Bounds
) -> Float[np.ndarray, "L 2 8"]:
    """Estimates sensitivities from the probes among some evaluations: losses of single entries, from the widest policy.

    Between widths that were probed the logarithm is linear; beyond them, and where nothing was, a bit less has four
    times the squared error. More bits never lose more.
    """
    widest = np.asarray(bounds.high)
    law = sensitivity_by_law(len(widest)) * (widest > np.asarray(bounds.low))[..., None]
    base = [reward for policy, reward in zip(policies, rewards, strict=True) if np.array_equal(policy, widest)]
    if not base:
        return law
    lost: dict[tuple[int, int], dict[int, float]] = {}
    for policy, reward in zip(policies, rewards, strict=True):
        changed = np.argwhere(policy != widest)
        tied = len(changed) and len({*changed[:, 1]}) == 1 and (bounds.tied is not None or len(changed) == 1)
        if tied and (bounds.tied is None or len({*np.asarray(bounds.tied)[changed[:, 0]]}) == 1):
            layer, column = (int(i) for i in changed[0])
            lost.setdefault((layer, column), {})[int(policy[layer, column])] = max(float(base[0] - reward), 0.0)
    largest = max((loss for losses in lost.values() for loss in losses.values()), default=0.0) or 1.0
    median = float(np.median([max(losses.values()) for losses in lost.values()])) if lost else largest
    sensitivity = law / law.max() * max(median, TIE * largest)
    for (layer, column), losses in lost.items():
        sensitivity[layer, column] = _interpolate(losses, int(widest[layer, column]), TIE * largest)
    return sensitivity


def _interpolate(losses_at: dict[int, float], widest: int, least: float) -> Float[np.ndarray, "8"]:
    """Interpolates losses at all widths from those at some."""
    known = sorted(losses_at)
    losses = np.maximum.accumulate([losses_at[bits] for bits in reversed(known)])[::-1]
    logs = np.log(losses + least * ERROR_PER_BIT ** (min(known) - np.array(known, float)))
    bits = np.arange(1, WIDTHS + 1)
    steep = np.log(ERROR_PER_BIT)
    inside = np.interp(bits, known, logs)
    beyond = steep * (np.maximum(known[0] - bits, 0) - np.maximum(bits - known[-1], 0))
    return np.where(bits < widest, np.exp(inside + beyond), 0.0)


def _order_widths(widths: Int[np.ndarray, "n"]) -> list[int]:
    """Orders widths: the lowest, then the middle one of the rest, then the middles between."""
    order, spans = [int(widths[0])], [list(map(int, widths[1:]))]
    while spans:
        span = spans.pop(0)
        if span:
            middle = (len(span) - 1) // 2
            order.append(span[middle])
            spans += [span[:middle], span[middle + 1 :]]
    return order
