"""Compiled loops of the fast backward: sums over columns, and along diagonals; see `refattn._compiled`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray


@compiled
def logit_terms(
    G: FloatArray,
    Y: FloatArray,
    V: FloatArray,
    low: int,
    high: int,
    r: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    largest: FloatArray,
    column_sizes: FloatArray,
) -> None:
    """Sums over the columns, for the rows ``low … high − 1``, and largest entries.

    ``r_i = G_i · Y_i``, ``rows_i = (‖G_i‖₁, Σ_a |G_ia Y_ia|)``, ``columns_i = (‖V_i‖₁ / d, ·)``,
    ``largest_i = ‖G_i‖_∞``; `column_sizes` rises to the largest entries of the columns of G and of V.
    """
    d = G.shape[1]
    zero = G.dtype.type(0)
    lanes = np.zeros((5, 16), G.dtype)
    for i in range(low, high):
        lanes[:] = zero
        for first in range(0, d - 15, 16):
            for lane in range(16):
                g, v = G[i, first + lane], V[i, first + lane]
                product = g * Y[i, first + lane]
                lanes[0, lane] += product
                lanes[1, lane] += abs(g)
                lanes[2, lane] += abs(product)
                lanes[3, lane] += abs(v)
                lanes[4, lane] = max(lanes[4, lane], abs(g))
        total, row, both, column, size = zero, zero, zero, zero, zero
        for lane in range(16):
            total += lanes[0, lane]
            row += lanes[1, lane]
            both += lanes[2, lane]
            column += lanes[3, lane]
            size = max(size, lanes[4, lane])
        for c in range(d >> 4 << 4, d):
            product = G[i, c] * Y[i, c]
            total += product
            row += abs(G[i, c])
            both += abs(product)
            column += abs(V[i, c])
            size = max(size, abs(G[i, c]))
        r[i] = total
        rows[i, 0] = row
        rows[i, 1] = both
        columns[i, 0] = column / d
        largest[i] = size
        for c in range(d):
            g, v = abs(G[i, c]), abs(V[i, c])
            column_sizes[0, c] = g if g > column_sizes[0, c] else column_sizes[0, c]
            column_sizes[1, c] = v if v > column_sizes[1, c] else column_sizes[1, c]


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
