"""Compiled loops of the direct product: logits of a tile, its exponentials, its sums; see `refattn._compiled`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray


@compiled
def gather_lower(
    starts: NDArray[np.int64],
    kernels: FloatArray,
    rows: NDArray[np.int64],
    first: int,
    logits: FloatArray,
    largest: FloatArray,
) -> None:
    """``logits[j − first, r] = u_seg(j)[rows_r − j]`` where ``j ≤ rows_r``, else −inf; `rows` increase.

    `largest` (one entry a row) rises to the largest entry seen.
    """
    count = rows.size
    last = first + logits.shape[0]
    consecutive = rows[count - 1] - rows[0] == count - 1
    visible = 0  # the first row that sees column j
    for i in range(starts.size):
        end = starts[i + 1] if i + 1 < starts.size else last
        for j in range(max(starts[i], first), min(end, last)):
            column = logits[j - first]
            while visible < count and rows[visible] < j:
                visible += 1
            for r in range(visible):
                column[r] = -np.inf
            if visible == count:
                continue
            if consecutive:
                u = kernels[i, rows[visible] - j : rows[count - 1] - j + 1]
                for r in range(count - visible):
                    column[visible + r] = u[r]
            else:
                for r in range(visible, count):
                    column[r] = kernels[i, rows[r] - j]
            for r in range(visible, count):
                largest[r] = max(largest[r], column[r])


@compiled
def gather_upper(
    starts: NDArray[np.int64],
    kernels: FloatArray,
    rows: NDArray[np.int64],
    first: int,
    logits: FloatArray,
    largest: FloatArray,
) -> None:
    """``logits[j − first, r] = u_seg(rows_r)[j − rows_r]`` where ``j > rows_r``; other entries stay as they are."""
    segment = 0
    for r in range(rows.size):
        while segment + 1 < starts.size and starts[segment + 1] <= rows[r]:
            segment += 1
        for j in range(max(rows[r] + 1, first), first + logits.shape[0]):
            logits[j - first, r] = kernels[segment, j - rows[r]]
            largest[r] = max(largest[r], logits[j - first, r])


@compiled
def gather_diagonal(
    starts: NDArray[np.int64], kernels: FloatArray, rows: NDArray[np.int64], first: int, logits: FloatArray
) -> None:
    """``logits[rows_r − first, r] = u_seg(rows_r)[0]``, where that is a row of `logits`."""
    segment = 0
    for r in range(rows.size):
        while segment + 1 < starts.size and starts[segment + 1] <= rows[r]:
            segment += 1
        if first <= rows[r] < first + logits.shape[0]:
            logits[rows[r] - first, r] = kernels[segment, 0]


@compiled
def write_lags(
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    kernels: FloatArray,
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    log_sum_exp: NDArray[np.float64],
    transposed: bool,
    out: FloatArray,
) -> None:
    """``out[i, t] = Σ_j exp(u_i[t] − log_sum_exp[row]) (G[row] · V[column] − r[row])`` for the (i, t) of `places`.

    j runs over the columns of segment i; the row is ``j + t`` and the column j, or, transposed, the other way round.
    Sums are in float64.
    """
    n, d = G.shape
    lanes = np.zeros(8)
    for place in range(places.shape[0]):
        i, t = places[place, 0], places[place, 1]
        end = min(starts[i + 1] if i + 1 < starts.size else n, n - t)
        total = 0.0
        for j in range(starts[i], end):
            row, column = (j, j + t) if transposed else (j + t, j)
            lanes[:] = 0
            for first in range(0, d - 7, 8):
                for lane in range(8):
                    lanes[lane] += np.float64(G[row, first + lane]) * np.float64(V[column, first + lane])
            dot = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
            for c in range(d >> 3 << 3, d):
                dot += np.float64(G[row, c]) * np.float64(V[column, c])
            total += np.exp(np.float64(kernels[i, t]) - log_sum_exp[row]) * (dot - r[row])
        out[i, t] = total


@compiled
def subtract_row_maximum(logits: FloatArray, largest: FloatArray) -> None:
    """``logits[j, r] −= largest[r]``."""
    for j in range(logits.shape[0]):
        for r in range(logits.shape[1]):
            logits[j, r] -= largest[r]


@compiled
def add_weighted(
    weights: FloatArray,
    x: FloatArray,
    first: int,
    part: FloatArray,
    total: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """``out[r] += Σ_j weights[j, r] x[first + j]`` and ``total[r] += Σ_j weights[j, r]``.

    Sums of one call are in the dtype of x, in `part` (rows, d + 1); those over calls in float64.
    """
    count, n_rows = weights.shape
    d = x.shape[1]
    part[:] = 0
    j = 0
    while j + 8 <= count:
        a = first + j
        for r in range(n_rows):
            w0, w1, w2, w3 = weights[j, r], weights[j + 1, r], weights[j + 2, r], weights[j + 3, r]
            w4, w5, w6, w7 = weights[j + 4, r], weights[j + 5, r], weights[j + 6, r], weights[j + 7, r]
            for c in range(d):
                part[r, c] += ((w0 * x[a, c] + w1 * x[a + 1, c]) + (w2 * x[a + 2, c] + w3 * x[a + 3, c])) + (
                    (w4 * x[a + 4, c] + w5 * x[a + 5, c]) + (w6 * x[a + 6, c] + w7 * x[a + 7, c])
                )
            part[r, d] += ((w0 + w1) + (w2 + w3)) + ((w4 + w5) + (w6 + w7))
        j += 8
    while j < count:
        for r in range(n_rows):
            w0 = weights[j, r]
            for c in range(d):
                part[r, c] += w0 * x[first + j, c]
            part[r, d] += w0
        j += 1
    for r in range(n_rows):
        for c in range(d):
            out[r, c] += part[r, c]
        total[r] += part[r, d]


@compiled
def write_quotient(
    rows: NDArray[np.int64], numerator: NDArray[np.float64], total: NDArray[np.float64], out: FloatArray
) -> None:
    """``out[rows_r] = numerator[r] / total[r]``."""
    for r in range(rows.size):
        for c in range(out.shape[1]):
            out[rows[r], c] = numerator[r, c] / total[r]
