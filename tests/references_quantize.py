"""Slow and obvious quantisers, written from the definitions."""

import itertools
import math

import numpy as np


def quantize_value(x, clip, bits, signed):
    """Rounds one number to the levels, in float64."""
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = -clip if signed else 0.0
    return round(min(max(x, low), clip) / (clip / levels)) * (clip / levels)  # Python rounds ties to even


def kl_clip(counts, limit, bits, signed, candidates):
    """Finds the clip of least divergence: the method read literally, a bin at a time.

    The first bin is given its neighbour's count. For each number of bins kept, P is the histogram with everything
    beyond added to the last bin kept, and Q is the histogram cut off there, squeezed into the quantiser's intervals and
    divided again among the bins that are not empty.
    """
    counts = [float(c) for c in counts]
    counts[0] = counts[1]
    bins = len(counts)
    intervals = (2 ** (bits - 1) if signed else 2**bits) if bits > 1 or not signed else 2
    best, best_clip = math.inf, None
    for kept in range(bins // candidates, bins + 1, bins // candidates):
        if kept < intervals:
            continue
        p = counts[:kept]
        p[-1] += sum(counts[kept:])
        q = [0.0] * kept
        for interval in range(intervals):
            members = [k for k in range(kept) if k * intervals // kept == interval and counts[k] > 0]
            for k in members:
                q[k] = sum(counts[m] for m in members) / len(members)
        total_p, total_q = sum(p), sum(q)
        divergence = 0.0
        for p_k, q_k in zip(p, q, strict=True):
            if p_k > 0:
                divergence += p_k / total_p * math.log((p_k / total_p) / max(q_k / max(total_q, 1e-12), 1e-12))
        if divergence < best:
            best, best_clip = divergence, kept * limit / bins
    return best_clip


def squared_error(values, clip, bits, signed):
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = clip / levels
    rounded = np.round(np.clip(values, -clip if signed else 0, clip) / step) * step
    return float(((values - rounded) ** 2).sum())


def best_levels(rows, weight, bits):
    """Finds the least squared error of one output over all levels, each with its best step."""
    most = 2 ** (bits - 1) - 1
    best = math.inf
    for levels in itertools.product(range(-most, most + 1), repeat=len(weight)):
        product, target = rows @ np.array(levels, float), rows @ weight
        step = product @ target / (product @ product) if any(levels) else 0.0
        if step >= 0:
            best = min(best, float(((target - step * product) ** 2).sum()))
    return best


def nearest_error(rows, weight, bits, ratios):
    """Finds the squared error of one output with nearest rounding, at the clip that is best for it."""
    most = 2 ** (bits - 1) - 1
    errors = []
    for ratio in ratios:
        step = ratio * np.abs(weight).max() / most
        errors.append(float(((rows @ (weight - np.clip(np.rint(weight / step), -most, most) * step)) ** 2).sum()))
    return min(errors)
