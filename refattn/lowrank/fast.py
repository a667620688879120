"""Masked low-rank products in O(nrd), compiled: running sums of r×d numbers, whatever the mask (ours).

The sums of `refattn.lowrank.paper` with three differences: continuous rows sweep the columns once and read the running
prefix where a row starts and stops, so no prefix is stored; rows that see fewer columns than that costs are summed
entry by entry, which is also where a difference of prefixes would lose most; distinct rows and columns are BLAS
products. Values are cut into pieces of at most `_PIECE` columns, which run on the threads there are; the result does
not depend on how many. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import _compiled
from refattn._threads import for_each
from refattn._validation import FloatArray
from refattn.lowrank import _kernels
from refattn.lowrank.distinct_masks import DistinctColumnsMask, DistinctRowsMask
from refattn.lowrank.masks import CausalMask, ContinuousRowsMask, Index, RowChangeMask, StructuredMask

_PIECE = 40
"""Columns of values at a time: a state of 64 × 40 numbers stays in the first-level cache."""

_BLOCK = 512
"""Rows gathered at a time for BLAS."""

Sweep = Callable[[FloatArray, int, int, FloatArray, FloatArray], None]
"""``sweep(X, low, high, state, out)``: see `refattn.lowrank._kernels`."""


def _as_input(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as the compiled loops take it, whatever its type."""
    return _compiled.as_input(array)


def product(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(W ∘ U1 U2ᵀ) V``; u1, u2 (n, r) and v (n, d) in float64."""
    return _product(mask, u1, u2, v, transposed=False)


def product_transposed(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(Wᵀ ∘ U1 U2ᵀ) V``: the rows of u1 are columns of W."""
    return _product(mask, u1, u2, v, transposed=True)


def _product(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray, *, transposed: bool) -> FloatArray:
    A, B = _as_input(u1), _as_input(u2)
    match mask:
        case CausalMask():
            return _in_pieces(v, B.shape[1], lambda X, *rest: _kernels.causal(A, B, X, transposed, *rest))
        case RowChangeMask():
            changes = _kernels.row_changes_transposed if transposed else _kernels.row_changes
            first, columns, signs = (_as_input(x) for x in (mask.first, mask.columns, mask.signs))
            return _in_pieces(v, B.shape[1], lambda *rest: changes(first, columns, signs, A, B, *rest))
        case ContinuousRowsMask():
            return _continuous(mask, A, B, v, transposed)
        case DistinctColumnsMask():
            return _seen_by(mask, A, B, v) if not transposed else _seeing(mask.transpose(), A, B, v)
        case DistinctRowsMask():
            return _seeing(mask, A, B, v) if not transposed else _seen_by(mask.transpose(), A, B, v)
    raise NotImplementedError(type(mask).__name__)


def _in_pieces(v: FloatArray, rank: int, sweep: Sweep) -> FloatArray:
    """Run the sweep over every piece of the columns of v."""
    n, d = v.shape
    X, out = _as_input(v), np.zeros((n, d))

    def piece(columns: NDArray[np.int64]) -> None:
        sweep(X, int(columns[0]), int(columns[-1]) + 1, np.zeros((rank, columns.size)), out)

    for_each(piece, np.array_split(np.arange(d), -(-d // _PIECE)))
    return out


def _continuous(mask: ContinuousRowsMask, A: FloatArray, B: FloatArray, v: FloatArray, transposed: bool) -> FloatArray:
    length, rank = mask.stop - mask.start, B.shape[1]
    width = min(v.shape[1], _PIECE)
    # entry by entry: r + d a column; by the sweep: r d at the start, unless that is column 0, and r d at the stop
    reads = (1 + (mask.start > 0)) * rank * width
    short = length * (rank + width) <= reads
    rows = np.flatnonzero(short & (length > 0))
    first, members, signs = _events(mask, np.flatnonzero(~short))
    sweep = _kernels.prefix_differences_transposed if transposed else _kernels.prefix_differences

    def both(X: FloatArray, low: int, high: int, state: FloatArray, out: FloatArray) -> None:
        if members.size:
            sweep(first, members, signs, A, B, X, low, high, state, out)
        _kernels.short_rows(rows, mask.start, mask.stop, A, B, X, transposed, low, high, out)

    return _in_pieces(v, rank, both)


def _events(mask: ContinuousRowsMask, rows: Index) -> tuple[Index, Index, NDArray[np.int8]]:
    """Rows that start (sign −1; not those at column 0) or stop (sign 1), in the order of the columns."""
    starting = rows[mask.start[rows] > 0]
    column = np.concatenate([mask.start[starting], mask.stop[rows]])
    members = np.concatenate([starting, rows])
    signs = np.repeat(np.array([-1, 1], np.int8), [starting.size, rows.size])
    order = np.argsort(column, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=mask.n + 1))])
    return _as_input(first), _as_input(members[order]), _as_input(signs[order])


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
