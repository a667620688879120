"""Compiled loops of partitions of columns into segments; see `refattn._compiled`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def shortest_partitions(costs: Floats, before: Floats, errors: Floats, parents: NDArray[np.int32]) -> None:
    """Bellman's recursion ``D_k(b) = min_{a<b} D_{k−1}(a) + costs[a, b]``, from ``D_0 = before``.

    Write ``D_k(m)`` to ``errors[k − 1]`` and the a that attains D_k(b), the first one at equality, to
    ``parents[k − 1, b]``.
    """
    m = costs.shape[0]
    previous = before.copy()
    current = np.empty(m + 1)
    for layer in range(errors.size):
        current[:] = np.inf
        arg = parents[layer]
        for a in range(m):
            so_far = previous[a]
            if so_far == np.inf:
                continue
            row = costs[a]
            for b in range(a + 1, m + 1):
                total = so_far + row[b]
                if total < current[b]:
                    current[b] = total
                    arg[b] = a
        errors[layer] = current[m]
        previous, current = current, previous


@compiled
def best_split(sums: Floats, lags: Integers, first: int, end: int) -> tuple[float, int]:
    """Where a segment ``first … end − 1`` is cut best: how much the squared error falls, and the new start.

    `sums` (n + 1, τ) are prefix sums of the diagonals `lags`, ascending, at every column. A segment of one column falls
    by nothing.
    """
    n = sums.shape[0] - 1
    seen = 0  # diagonals with an entry in the segment
    while seen < lags.size and lags[seen] < n - first:
        seen += 1
    whole = np.empty(seen)
    for s in range(seen):
        total = sums[end, s] - sums[first, s]
        whole[s] = total * total / (min(end, n - lags[s]) - first)
    best, place = 0.0, first
    for b in range(first + 1, end):
        while seen > 0 and lags[seen - 1] >= n - b:  # a diagonal that ends before b is not cut
            seen -= 1
        gain = 0.0
        for s in range(seen):
            left = sums[b, s] - sums[first, s]
            right = sums[end, s] - sums[b, s]
            gain += left * left / (b - first) + right * right / (min(end, n - lags[s]) - b) - whole[s]
        if gain > best:
            best, place = gain, b
    return best, place
