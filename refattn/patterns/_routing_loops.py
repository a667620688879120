"""The compiled loop of routing: a text's vectors one by one, each to its centroid, which moves (ours)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled


@compiled
def route(x: NDArray[np.float64], centroids: NDArray[np.float64], decay: float, groups: NDArray[np.int64]) -> None:
    """Write the centroid of every vector of length one, and move it towards the vector; ties go to the first."""
    for i in range(x.shape[0]):
        best, most = 0, -np.inf
        for c in range(centroids.shape[0]):
            product = 0.0
            for e in range(x.shape[1]):
                product += x[i, e] * centroids[c, e]
            if product > most:
                best, most = c, product
        groups[i] = best
        length = 0.0
        for e in range(x.shape[1]):
            centroids[best, e] = decay * centroids[best, e] + (1 - decay) * x[i, e]
            length += centroids[best, e] * centroids[best, e]
        if length > 0:
            for e in range(x.shape[1]):
                centroids[best, e] /= math.sqrt(length)
