"""Slow and obvious k-means on a line, written from the definitions."""

import numpy as np


def least_squared_errors(values, most):
    """Finds the least squared error of 1, 2, ..., `most` clusters by trying every place of the last boundary.

    Where a value is zero, so is what one of the clusters shares.
    """
    values = np.sort(np.asarray(values, np.float64).reshape(-1))
    n = len(values)
    cost = np.full((n + 1, n + 1), np.inf)  # of one cluster that holds values i to j - 1
    for i in range(n + 1):
        for j in range(i, n + 1):
            part = values[i:j]
            cost[i, j] = ((part - part.mean()) ** 2).sum() if len(part) else 0.0
    zero = np.full((n + 1, n + 1), np.inf)  # of one that holds a zero and shares it
    for i in range(n + 1):
        for j in range(i, n + 1):
            if 0 in values[i:j]:
                zero[i, j] = (values[i:j] ** 2).sum()
    best, held, errors = cost[0], zero[0], []
    for _ in range(most):
        errors.append((held if 0 in values else best)[n])
        ways = [[min(held[i] + cost[i, j], best[i] + zero[i, j]) for i in range(j + 1)] for j in range(n + 1)]
        held = np.array([min(row) for row in ways])
        best = np.array([min(best[i] + cost[i, j] for i in range(j + 1)) for j in range(n + 1)])
    return errors


def squared_error(values, codebook, assignments):
    """Sums the squared errors of a tensor's values against the shared values that they are assigned to."""
    values, shared = np.asarray(values, np.float64).reshape(-1), np.asarray(codebook, np.float64)
    pairs = zip(values, np.asarray(assignments).reshape(-1), strict=True)
    return sum((value - shared[cluster]) ** 2 for value, cluster in pairs)


def sum_over_members(gradient, assignments, clusters):
    """Sums the gradient of each shared value, a member at a time."""
    sums = [0.0] * clusters
    for part, cluster in zip(np.asarray(gradient).reshape(-1), np.asarray(assignments).reshape(-1), strict=True):
        sums[cluster] += float(part)
    return sums
