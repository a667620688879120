"""Compiled loops of the masked low-rank products (arXiv 2405.05219, section 6).

Results and workspace are out-arguments. They keep one running sum ``state = Σ_j B_j X_jᵀ`` and do two things
with it: add a row's outer product, and read ``A_i state``. Both run along the contiguous axis of the values, so the
compiler vectorises them without reordering a sum. A call computes the columns ``low … high − 1`` of the values, as many
as the state has; state and out start at zero. Imported where it is used, never at the package's import.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray

Index = NDArray[np.int64]
Plan = tuple[Index, ...]
"""start, stop, item, first, by_start, by_stop, left, right: see `interval_sums`."""

NARROW = 16
"""Columns up to which a loop over them is too short to be vectorised."""


@compiled
def _add(b: FloatArray, x: FloatArray, state: FloatArray) -> None:
    """``state += b xᵀ``: four rows of the state at a time, or four columns where it is narrow."""
    if x.size > NARROW:
        for m in range(0, b.size - 3, 4):
            w0, w1, w2, w3 = b[m], b[m + 1], b[m + 2], b[m + 3]
            for c in range(x.size):
                state[m, c] += w0 * x[c]
                state[m + 1, c] += w1 * x[c]
                state[m + 2, c] += w2 * x[c]
                state[m + 3, c] += w3 * x[c]
        for m in range(b.size - b.size % 4, b.size):
            for c in range(x.size):
                state[m, c] += b[m] * x[c]
        return
    for c in range(0, x.size - 3, 4):
        x0, x1, x2, x3 = x[c], x[c + 1], x[c + 2], x[c + 3]
        for m in range(b.size):
            state[m, c] += b[m] * x0
            state[m, c + 1] += b[m] * x1
            state[m, c + 2] += b[m] * x2
            state[m, c + 3] += b[m] * x3
    for c in range(x.size - x.size % 4, x.size):
        for m in range(b.size):
            state[m, c] += b[m] * x[c]


@compiled
def _read(a: FloatArray, state: FloatArray, y: FloatArray) -> None:
    """``y += a state``: four rows of the state at a time, or four columns where it is narrow."""
    if y.size > NARROW:
        for m in range(0, a.size - 3, 4):
            w0, w1, w2, w3 = a[m], a[m + 1], a[m + 2], a[m + 3]
            for c in range(y.size):
                y[c] += (w0 * state[m, c] + w1 * state[m + 1, c]) + (w2 * state[m + 2, c] + w3 * state[m + 3, c])
        for m in range(a.size - a.size % 4, a.size):
            for c in range(y.size):
                y[c] += a[m] * state[m, c]
        return
    for c in range(0, y.size - 3, 4):
        y0, y1, y2, y3 = 0.0, 0.0, 0.0, 0.0
        for m in range(a.size):
            y0 += a[m] * state[m, c]
            y1 += a[m] * state[m, c + 1]
            y2 += a[m] * state[m, c + 2]
            y3 += a[m] * state[m, c + 3]
        y[c] += y0
        y[c + 1] += y1
        y[c + 2] += y2
        y[c + 3] += y3
    for c in range(y.size - y.size % 4, y.size):
        y0 = 0.0
        for m in range(a.size):
            y0 += a[m] * state[m, c]
        y[c] += y0


@compiled
def causal(
    A: FloatArray, B: FloatArray, X: FloatArray, reverse: bool, low: int, high: int, state: FloatArray, out: FloatArray
) -> None:
    """``out_i = A_i · Σ_{j ≤ i} B_j X_jᵀ`` (Algorithm 4), or over ``j ≥ i`` if `reverse`, for every head."""
    heads, n = A.shape[0], A.shape[1]
    for h in range(heads):
        state[:] = 0.0
        for step in range(n):
            i = n - 1 - step if reverse else step
            _add(B[h, i], X[h, i, low:high], state)
            _read(A[h, i], state, out[h, i, low:high])


@compiled
def stab_from_right(start: Index, stop: Index, shortest: Index, point: Index) -> None:
    """A point of every interval, ``start ≤ point ≤ stop``: from the right, the start of the first that has none yet.

    Nothing reaches further right of a point than to the next one. ``shortest[p]``, n + 1 numbers above n, is workspace.
    """
    n = shortest.size - 1
    for e in range(start.size):
        if stop[e] < shortest[start[e]]:
            shortest[start[e]] = stop[e]
    latest = n + 1
    for step in range(n + 1):
        p = n - step
        nearest = shortest[p]
        shortest[p] = latest
        if nearest <= latest and nearest <= n:
            latest = p
    for e in range(start.size):
        before = shortest[start[e]]
        point[e] = before if before < stop[e] else start[e]


@compiled
def stab_by_powers(start: Index, stop: Index, point: Index) -> None:
    """A point of every interval, ``start ≤ point ≤ stop``: the multiple of the largest power of two.

    Nothing reaches further from a point than to the next of a larger power, so the points of one power reach over each
    place once, and all of them over it at most ``log₂ n`` times.
    """
    for e in range(start.size):
        m, low = stop[e], start[e]
        while m > 0 and m & (m - 1) >= low:
            m &= m - 1
        point[e] = m


@compiled
def reaches(start: Index, stop: Index, point: Index, left: Index, right: Index) -> int:
    """``left[p]`` and ``right[p]``: how far the intervals of point p go, both p to begin with.

    Returns how many sums are read: one on either side of a point, unless nothing is there.
    """
    reads = 0
    for e in range(start.size):
        p = point[e]
        left[p] = min(left[p], start[e])
        right[p] = max(right[p], stop[e])
        reads += (start[e] < p) + (p < stop[e])
    return reads


@compiled
def sort_by(keys: Index, order: Index, first: Index, out: Index) -> None:
    """Sort the numbers in `order` by their keys, equal ones as they came; ``first`` starts at zero.

    Those of key p are ``out[first[p] … first[p + 1] − 1]``.
    """
    for e in range(keys.size):
        first[keys[e] + 1] += 1
    for p in range(1, first.size):
        first[p] += first[p - 1]
    for e in order:
        out[first[keys[e]]] = e
        first[keys[e]] += 1
    for step in range(first.size - 1):
        p = first.size - 1 - step
        first[p] = first[p - 1]
    first[0] = 0


@compiled
def interval_sums(
    plan: Plan, A: FloatArray, B: FloatArray, X: FloatArray, low: int, high: int, state: FloatArray, out: FloatArray
) -> None:
    """``out_item += A_item · Σ_{start ≤ p < stop} B_p X_pᵀ``, the sum of what is left and right of a point of each.

    The intervals of point m are ``by_start[first[m] … first[m + 1] − 1]`` in the order of their starts, and
    ``by_stop[…]`` in that of their stops. From m the sum grows to the left, and is read where an interval starts; then
    to the right, and is read where one stops. Nothing is subtracted.
    """
    start, stop, item, first, by_start, by_stop, left, right = plan
    for m in range(first.size - 1):
        if left[m] < m:
            state[:] = 0.0
            e = first[m + 1] - 1
            while start[by_start[e]] == m:
                e -= 1
            for step in range(m - left[m]):
                p = m - 1 - step
                _add(B[p], X[p, low:high], state)
                while e >= first[m] and start[by_start[e]] == p:
                    _read(A[item[by_start[e]]], state, out[item[by_start[e]], low:high])
                    e -= 1
        if right[m] > m:
            state[:] = 0.0
            e = first[m]
            while stop[by_stop[e]] == m:
                e += 1
            for p in range(m, right[m]):
                _add(B[p], X[p, low:high], state)
                while e < first[m + 1] and stop[by_stop[e]] == p + 1:
                    _read(A[item[by_stop[e]]], state, out[item[by_stop[e]], low:high])
                    e += 1


@compiled
def interval_sums_transposed(
    plan: Plan, A: FloatArray, B: FloatArray, X: FloatArray, low: int, high: int, state: FloatArray, out: FloatArray
) -> None:
    """``out_p += A_p · Σ_{start ≤ p < stop} B_item X_itemᵀ``: `interval_sums` in reverse, add and read exchanged."""
    start, stop, item, first, by_start, by_stop, left, right = plan
    for m in range(first.size - 1):
        if left[m] < m:
            state[:] = 0.0
            e = first[m]
            for p in range(left[m], m):
                while e < first[m + 1] and start[by_start[e]] == p:
                    _add(B[item[by_start[e]]], X[item[by_start[e]], low:high], state)
                    e += 1
                _read(A[p], state, out[p, low:high])
        if right[m] > m:
            state[:] = 0.0
            e = first[m + 1] - 1
            for step in range(right[m] - m):
                p = right[m] - 1 - step
                while e >= first[m] and stop[by_stop[e]] == p + 1:
                    _add(B[item[by_stop[e]]], X[item[by_stop[e]], low:high], state)
                    e -= 1
                _read(A[p], state, out[p, low:high])


@compiled
def _inner(a: FloatArray, b: FloatArray) -> float:
    """Inner product in four fixed partial sums."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    m = 0
    while m + 4 <= a.size:
        s0 += a[m] * b[m]
        s1 += a[m + 1] * b[m + 1]
        s2 += a[m + 2] * b[m + 2]
        s3 += a[m + 3] * b[m + 3]
        m += 4
    while m < a.size:
        s0 += a[m] * b[m]
        m += 1
    return (s0 + s1) + (s2 + s3)


@compiled
def short_intervals(
    short: Index,
    start: Index,
    stop: Index,
    item: Index,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    transposed: bool,
    low: int,
    high: int,
    out: FloatArray,
) -> None:
    """`interval_sums` of the intervals `short`, or its transposed, entry by entry: ``out_i += (A_i·B_j) X_j``."""
    for e in short:
        for p in range(start[e], stop[e]):
            to, of = (p, item[e]) if transposed else (item[e], p)
            w = _inner(A[to], B[of])
            x, y = X[of, low:high], out[to, low:high]
            for c in range(x.size):
                y[c] += w * x[c]
