"""Slow and obvious k-means on a line, written from the definitions."""

import numpy as np


def least_squared_errors(values, most):
    """The least squared error of 1, 2, ..., `most` clusters, by trying every place of the last boundary."""
    values = np.sort(np.asarray(values, np.float64).reshape(-1))
    n = len(values)
    cost = np.full((n + 1, n + 1), np.inf)  # of one cluster that holds values i to j - 1
    for i in range(n + 1):
        for j in range(i, n + 1):
            part = values[i:j]
            cost[i, j] = ((part - part.mean()) ** 2).sum() if len(part) else 0.0
    best, errors = cost[0], [cost[0, n]]
    for _ in range(most - 1):
        best = np.array([min(best[i] + cost[i, j] for i in range(j + 1)) for j in range(n + 1)])
        errors.append(best[n])
    return errors


def squared_error(values, codebook, codes):
    """Of values in a tensor against the shared value that each one's code names."""
    values, shared = np.asarray(values, np.float64).reshape(-1), np.asarray(codebook, np.float64)
    return sum((value - shared[code]) ** 2 for value, code in zip(values, np.asarray(codes).reshape(-1), strict=True))


def sum_over_members(gradient, codes, clusters):
    """The gradient of each shared value, a member at a time."""
    sums = [0.0] * clusters
    for part, code in zip(np.asarray(gradient).reshape(-1), np.asarray(codes).reshape(-1), strict=True):
        sums[code] += float(part)
    return sums
