"""Compiled loops of the fast backward: collecting correlations by chunk, and sums along diagonals.

See `refattn._compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray


@compiled
def add_correlations(
    products: NDArray[Any],
    place: NDArray[np.int64],
    weight: FloatArray,
    first: int,
    last: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """``out[f, place[R, p]] += weight[R, p] · products[f, R − first, p]`` for the pairs p below ``last[R]``."""
    for f in range(products.shape[0]):
        for r in range(products.shape[1]):
            row = first + r
            for p in range(last[row]):
                out[f, place[row, p]] += weight[row, p] * products[f, r, p]


@compiled
def add_lower_diagonals(starts: NDArray[np.int64], rows: NDArray[np.int64], w: FloatArray, out: FloatArray) -> None:
    """``out[seg(j), i − j] += w[j, r]`` for the rows ``i = rows[r]``, which increase, and their columns ``j ≤ i``."""
    segment, r0 = 0, 0
    for j in range(w.shape[0]):
        while segment + 1 < starts.size and starts[segment + 1] <= j:
            segment += 1
        while r0 < rows.size and rows[r0] < j:
            r0 += 1
        for r in range(r0, rows.size):
            out[segment, rows[r] - j] += w[j, r]


@compiled
def add_upper_diagonals(starts: NDArray[np.int64], rows: NDArray[np.int64], w: FloatArray, out: FloatArray) -> None:
    """``out[seg(i), j − i] += w[j, r]`` for the rows ``i = rows[r]``, which increase, and their columns ``j > i``."""
    segment = 0
    for r in range(rows.size):
        i = rows[r]
        while segment + 1 < starts.size and starts[segment + 1] <= i:
            segment += 1
        for j in range(i + 1, w.shape[0]):
            out[segment, j - i] += w[j, r]
