"""Masked low-rank products in O(nrd), compiled: running sums of r×d numbers that only grow (ours).

Continuous rows are intervals of columns. Row changes are intervals of rows, from where a column enters to where it
leaves. Every interval is cut in two at a point that many share, and its sum is what has been summed from the point to
either side: nothing is ever subtracted, so what an interval does not hold leaves no trace in it. Points are chosen by
how far their intervals reach: windows, documents and groups are passed over twice, any n intervals at most ``log₂ n``
times. Intervals that hold less than that costs are summed entry by entry. Distinct rows and columns are BLAS products.

Values are cut into pieces of at most `_PIECE` columns, which run on the threads there are; the result does not depend
on how many. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import _compiled
from refattn._threads import for_each
from refattn._validation import FloatArray
from refattn.lowrank import _fast_loops as loops
from refattn.lowrank.distinct_masks import DistinctColumnsMask, DistinctRowsMask
from refattn.lowrank.masks import CausalStructure, ContinuousRowsMask, Index, RowChangeMask, StructuredMask

_PIECE = 40
"""Columns of values at a time: a state of 64 × 40 numbers stays in the first-level cache."""

_BLOCK = 512
"""Rows gathered at a time for BLAS."""

Sweep = Callable[[FloatArray, int, int, FloatArray, FloatArray], None]
"""``sweep(X, low, high, state, out)``: see `refattn.lowrank._fast_loops`."""


def _as_input(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as the compiled loops take it, whatever its type."""
    return _compiled.as_input(array)


def product(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(W ∘ U1 U2ᵀ) V``; u1, u2 (n, r), v (n, d) in float64; with a causal mask, also (heads, n, ·)."""
    return _product(mask, u1, u2, v, transposed=False)


def product_transposed(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(Wᵀ ∘ U1 U2ᵀ) V``: the rows of u1 are columns of W."""
    return _product(mask, u1, u2, v, transposed=True)


def _product(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray, *, transposed: bool) -> FloatArray:
    A, B = _as_input(u1), _as_input(u2)
    match mask:
        case CausalStructure():
            a, b, x = (array.reshape(-1, *array.shape[-2:]) for array in (A, B, v))
            out = _in_pieces(x, b.shape[2], lambda X, *rest: loops.causal(a, b, X, transposed, *rest))
            return out.reshape(v.shape)
        case RowChangeMask():
            return _over_intervals(*_entries(mask), mask.n, A, B, v, not transposed)
        case ContinuousRowsMask():
            return _over_intervals(mask.start, mask.stop, np.arange(mask.n), mask.n, A, B, v, transposed)
        case DistinctColumnsMask():
            return _seen_by(mask, A, B, v) if not transposed else _seeing(mask.transpose(), A, B, v)
        case DistinctRowsMask():
            return _seeing(mask, A, B, v) if not transposed else _seen_by(mask.transpose(), A, B, v)
    raise NotImplementedError(type(mask).__name__)


def _in_pieces(v: FloatArray, rank: int, sweep: Sweep) -> FloatArray:
    """Run the sweep over every piece of the columns of v."""
    X, out, d = _as_input(v), np.zeros(v.shape), v.shape[-1]

    def piece(columns: NDArray[np.int64]) -> None:
        sweep(X, int(columns[0]), int(columns[-1]) + 1, np.zeros((rank, columns.size)), out)

    for_each(piece, np.array_split(np.arange(d), -(-d // _PIECE)))
    return out


def _entries(mask: RowChangeMask) -> tuple[Index, Index, Index]:
    """Return the rows from where each column enters to where it leaves, or to the end: starts, stops, columns."""
    row = np.repeat(np.arange(mask.n), mask.changes)
    order = np.empty(mask.columns.size, np.int64)
    loops.sort_by(mask.columns, np.arange(order.size), np.zeros(mask.n + 1, np.int64), order)
    enters = np.flatnonzero(mask.signs[order] > 0)  # of a column, changes are enter, leave, enter, …
    column, after = mask.columns[order[enters]], np.append(order, -1)[enters + 1]
    leaves = (after >= 0) & (mask.columns[after] == column)
    return row[order[enters]], np.where(leaves, row[after], mask.n), column


def _over_intervals(
    start: Index, stop: Index, item: Index, n: int, A: FloatArray, B: FloatArray, v: FloatArray, transposed: bool
) -> FloatArray:
    """``Σ_{start ≤ p < stop} (A_item·B_p) v_p`` at every interval's item, or transposed, ``(A_p·B_item) v_item``."""
    length, rank = stop - start, B.shape[1]
    width = min(v.shape[1], _PIECE)
    # entry by entry: r + d a place; by sums: r d on either side of the point, unless that is 0
    short = length * (rank + width) <= (1 + (start > 0)) * rank * width
    few: tuple[Any, ...] = tuple(_as_input(x) for x in (np.flatnonzero(short & (length > 0)), start, stop, item))
    plan: tuple[Any, ...] = tuple(_as_input(x) for x in _plan(start[~short], stop[~short], item[~short], n))
    sums = loops.interval_sums_transposed if transposed else loops.interval_sums

    def both(X: FloatArray, low: int, high: int, state: FloatArray, out: FloatArray) -> None:
        sums(plan, A, B, X, low, high, state, out)
        loops.short_intervals(*few, A, B, X, transposed, low, high, out)  # type: ignore[call-arg]

    return _in_pieces(v, rank, both)


def _plan(start: Index, stop: Index, item: Index, n: int) -> tuple[Index, ...]:
    """Return what `loops.interval_sums` takes: the intervals, sorted by the points at which they are cut."""
    best: tuple[int, Index, Index, Index] | None = None
    for points in (_from_right, _from_left, _by_powers):
        if best is None or best[0] > 4 * n:  # a window's cost: two sums that grow, two that are read
            found = _reach(start, stop, points(start, stop, n), n)
            best = found if best is None or found[0] < best[0] else best
    assert best is not None
    _, point, left, right = best
    keys, plan = np.arange(start.size), [start, stop, item]
    for ends in (start, stop):
        first, by_end, by_point = np.zeros(n + 2, np.int64), np.empty_like(keys), np.empty_like(keys)
        loops.sort_by(ends, keys, np.zeros(n + 2, np.int64), by_end)
        loops.sort_by(point, by_end, first, by_point)
        plan.append(by_point)
    return (*plan[:3], first, *plan[3:], left, right)


def _from_right(start: Index, stop: Index, n: int) -> Index:
    point = np.empty_like(start)
    loops.stab_from_right(start, stop, np.full(n + 1, n + 1), point)
    return point


def _from_left(start: Index, stop: Index, n: int) -> Index:
    return np.asarray(n - _from_right(n - stop, n - start, n))


def _by_powers(start: Index, stop: Index, n: int) -> Index:
    point = np.empty_like(start)
    loops.stab_by_powers(start, stop, point)
    return point


def _reach(start: Index, stop: Index, point: Index, n: int) -> tuple[int, Index, Index, Index]:
    """Return how many rows are added and sums read with these points, the points, and how far each reaches."""
    left, right = np.arange(n + 1), np.arange(n + 1)
    reads = loops.reaches(start, stop, point, left, right)
    return int((right - left).sum()) + reads, point, left, right


def _seen_by(mask: DistinctColumnsMask, A: FloatArray, B: FloatArray, v: FloatArray) -> FloatArray:
    """Sum the columns of each group, and give the sum to the rows of its pattern."""
    out = np.zeros((len(A), v.shape[1]))
    for members, pattern in _members(mask):
        state = _sum(members, B, v)
        for rows in _blocks(pattern):
            out[rows] += A[rows] @ state
    return out


def _seeing(mask: DistinctRowsMask, A: FloatArray, B: FloatArray, v: FloatArray) -> FloatArray:
    """Sum the columns of each pattern, and give the sum to the rows of its group."""
    out = np.zeros((len(A), v.shape[1]))
    for members, pattern in _members(mask):
        state = _sum(pattern, B, v)
        for rows in _blocks(members):
            out[rows] = A[rows] @ state
    return out


def _sum(columns: Index, B: FloatArray, v: FloatArray) -> FloatArray:
    """``Σ_j B_j v_jᵀ`` over some columns."""
    state = np.zeros((B.shape[1], v.shape[1]))
    for block in _blocks(columns):
        state += B[block].T @ v[block]
    return state


def _blocks(index: Index) -> list[Index]:
    """Cut numbers into blocks, whose gathered rows stay in the cache."""
    return [index[low : low + _BLOCK] for low in range(0, index.size, _BLOCK)]


def _members(mask: DistinctRowsMask | DistinctColumnsMask) -> list[tuple[Index, Index]]:
    """Members of each group that has any, and the places of its pattern, both as numbers."""
    order = np.argsort(mask.groups, kind="stable")
    ends = np.cumsum(np.bincount(mask.groups, minlength=len(mask.patterns)))
    groups = np.split(order, ends[:-1])
    return [(m, np.flatnonzero(pattern)) for m, pattern in zip(groups, mask.patterns, strict=True) if m.size]
