"""Compiled loops of Search and Recover (arXiv 2405.05219, Algorithms 2 and 3); see `refattn._compiled`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray
from refattn.convbasis.fast.blocks_loops import to_columns


@compiled
def _probe(Q: FloatArray, k: FloatArray, first: int, scale: float, largest: float, out: NDArray[np.float64]) -> bool:
    """``out[t] = scale · Q[first + t] · k``, in float64; return whether none is beyond `largest`, or NaN."""
    d = k.size
    finite = True
    for t in range(out.size):
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        c = 0
        while c + 4 <= d:
            s0 += np.float64(Q[first + t, c]) * np.float64(k[c])
            s1 += np.float64(Q[first + t, c + 1]) * np.float64(k[c + 1])
            s2 += np.float64(Q[first + t, c + 2]) * np.float64(k[c + 2])
            s3 += np.float64(Q[first + t, c + 3]) * np.float64(k[c + 3])
            c += 4
        while c < d:
            s0 += np.float64(Q[first + t, c]) * np.float64(k[c])
            c += 1
        product = (s0 + s1) + (s2 + s3)
        out[t] = product * scale
        finite = finite and abs(product) <= largest and abs(out[t]) <= largest
    return finite


@compiled
def _differs(v: NDArray[np.float64], column: NDArray[np.float64], threshold: float) -> bool:
    alpha = 0.0
    for t in range(v.size):
        alpha += abs(column[t] - v[t])
    return bool(alpha >= threshold)


@compiled
def find_starts(
    Q: FloatArray,
    K: FloatArray,
    threshold: float,
    scale: float,
    largest: float,
    v: NDArray[np.float64],
    column: NDArray[np.float64],
    starts: NDArray[np.int64],
) -> int:
    """Algorithms 2 and 3, starts only; `v` and `column` are workspace of T entries.

    Return how many were found; −1 − j where a logit of column j, which had to be probed, is beyond `largest` or NaN.
    """
    t = Q.shape[0] - v.size
    starts[0] = 0
    found = 1
    zero = int(np.int64(0))  # a literal would be a type of its own, for which all is compiled anew
    if not _probe(Q, K[0], zero, scale, largest, v):
        return -1
    while found < starts.size and starts[found - 1] < t:
        low = starts[found - 1] + 1
        high = t
        while low < high:
            j = (low + high) // 2
            if not _probe(Q, K[j], j, scale, largest, column):
                return -1 - int(j)
            if _differs(v, column, threshold):
                high = j
            else:
                low = j + 1
        if not _probe(Q, K[low], low, scale, largest, column):
            return -1 - int(low)
        if not _differs(v, column, threshold):
            break
        starts[found] = low
        found += 1
        v, column = column, v
    return found


@compiled
def logit_columns(
    Q: FloatArray,
    K: FloatArray,
    scale: float,
    starts: NDArray[np.int64],
    first: int,
    rows: FloatArray,
    kernels: FloatArray,
) -> int:
    """``kernels[i, r − c_i] = scale · Q[r] · K[c_i]`` for the rows r of one block, whose transpose goes to `rows`.

    `rows` has shape (d, block); return how many of the entries are not finite.
    """
    d, block = rows.shape
    last = min(first + block, Q.shape[0])
    zero = int(np.int64(0))
    to_columns(Q, first, last, zero, zero, rows)
    bad = 0
    for i in range(starts.size):
        start = starts[i]
        if start >= last:
            break
        skip = max(start - first, 0)
        key = K[start]
        u = kernels[i, first + skip - start : last - start]
        count = u.size
        for r in range(count):
            u[r] = 0
        c = 0
        while c + 8 <= d:
            for r in range(count):
                a = skip + r
                u[r] += (
                    (key[c] * rows[c, a] + key[c + 1] * rows[c + 1, a])
                    + (key[c + 2] * rows[c + 2, a] + key[c + 3] * rows[c + 3, a])
                ) + (
                    (key[c + 4] * rows[c + 4, a] + key[c + 5] * rows[c + 5, a])
                    + (key[c + 6] * rows[c + 6, a] + key[c + 7] * rows[c + 7, a])
                )
            c += 8
        while c < d:
            for r in range(count):
                u[r] += key[c] * rows[c, skip + r]
            c += 1
        for r in range(count):
            u[r] *= scale
            bad += not np.isfinite(u[r])
    return bad
