"""Every row of a masked product right, or recomputed: what stands between a method and its callers (ours).

The natural size of an entry of ``Y = (W ∘ A Bᵀ) X`` is what it would be with all signs equal,

    S_ic = Σ_j W_ij (|A_i|·|B_j|) |X_jc|.

A sum of these terms in whatever order is within about ``(n + r) u S_ic`` of the truth, u = 2⁻⁵³, unless it subtracts
what it has added before, overflows on the way, or loses terms below the smallest number. So

- rows of Algorithm 5, which subtracts, are judged by a bound on the rounding of the running sums that were made, of the
  very vectors that were multiplied, and recomputed from their own columns where it exceeds `ROW_TOLERANCE`;
- where an entry is not finite, or so small that terms may have been lost, the product is repeated with factors and
  values scaled column by column, by powers of two; what is still in doubt then is summed with an exponent for each
  term, so that nothing is lost and nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.lowrank import paper
from refattn.lowrank.distinct_masks import DistinctColumnsMask, DistinctRowsMask
from refattn.lowrank.masks import CausalStructure, ContinuousRowsMask, Index, RowChangeMask, StructuredMask

ROW_TOLERANCE = 1e-10
"""Largest bound on the rounding of an entry of Algorithm 5, relative to the entry, that is not recomputed: a thousand
rows of ordinary numbers stay below a tenth of it, and no float32 shows it."""

_ROOM = 2.0**50
"""How far above what underflow can have lost an entry has to be."""

_NOTHING = -(2**20)
"""Exponent of zero: below any other."""


class Rows(NamedTuple):
    """A product ``values · 2^exponents``, whose values are finite whether the product overflows or not."""

    values: FloatArray
    exponents: Any
    recomputed: int

    def whole(self) -> FloatArray:
        """Return the product; what overflows is infinite."""
        if self.exponents is None:
            return self.values
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(self.values, self.exponents))


def product(
    method: ModuleType, mask: StructuredMask, A: FloatArray, B: FloatArray, X: FloatArray, *, transposed: bool = False
) -> Rows:
    """Return ``(W ∘ A Bᵀ) X``, or with Wᵀ, by a method, every row guarded; all of one shape (n, ·), finite, float64.

    By "fast" with a causal mask all may be of one shape (heads, n, ·).
    """
    with np.errstate(all="ignore"):
        Y, again = _without_cancelling(method, mask, A, B, X, transposed)
        least = _resolved(A, X)
        held = np.isfinite(Y.sum(axis=(-2, -1))) & (np.abs(Y).min(axis=(-2, -1)) >= least)
        if held.all():
            return Rows(Y, None, again)
        smallest = _smallest_term(A, B, X)
        held |= np.isfinite(Y).all(axis=(-2, -1)) & (smallest >= np.log2(least))
        if held.all():
            return Rows(Y, None, again)
        if Y.ndim > 2:
            return _stacked([product(method, mask, *head, transposed=transposed) for head in zip(A, B, X, strict=True)])
        a, b, x, columns = _scaled(A, B, X)
        Y, again = _without_cancelling(method, mask, a, b, x, transposed)
        least = _resolved(a, x)
        doubtful = (~(np.abs(Y) >= least) & X.any(axis=0)).any(axis=1) & A.any(axis=1)
        rows = np.flatnonzero(doubtful) if smallest - columns.max() < np.log2(least) else np.zeros(0, np.int64)
        exponents = np.tile(columns, (len(Y), 1))
        for i, seen in _seen(mask, rows, transposed):
            Y[i], exponents[i] = _with_exponents(A[i], B[seen], X[seen])
    return Rows(Y, exponents, again + rows.size)


def _stacked(heads: list[Rows]) -> Rows:
    """Return the products of all heads as one; an exponent of 0 changes nothing."""
    exponents = [np.zeros(one.values.shape, np.int64) if one.exponents is None else one.exponents for one in heads]
    values = np.stack([one.values for one in heads])
    return Rows(values, np.stack(exponents), sum(one.recomputed for one in heads))


def _without_cancelling(
    method: ModuleType, mask: StructuredMask, A: FloatArray, B: FloatArray, X: FloatArray, transposed: bool
) -> tuple[FloatArray, int]:
    """Run the method; of one that subtracts, recompute the rows that may have lost digits, and count them."""
    Y = (method.product_transposed if transposed else method.product)(mask, A, B, X)
    if method is not paper or not isinstance(mask, RowChangeMask):
        return Y, 0
    rows = np.flatnonzero(untrusted(rounding_bound(mask, A, B, X, transposed=transposed), Y))
    for i, seen in _seen(mask, rows, transposed):
        Y[i] = (A[i] @ B[seen].T) @ X[seen]
    return Y, rows.size


def untrusted(bound: FloatArray, Y: FloatArray) -> NDArray[np.bool_]:
    """Rows with an entry that its rounding may have moved by more than the tolerance, or that is not finite."""
    return np.asarray(~(bound <= ROW_TOLERANCE * np.abs(Y)).all(axis=1))


def rounding_bound(mask: RowChangeMask, A: FloatArray, B: FloatArray, X: FloatArray, *, transposed: bool) -> FloatArray:
    """Bound on the rounding of every entry of Algorithm 5, from the size of the running sums that it makes.

    With ``b_jc = ‖B_j‖₁ |X_jc|`` the entries of an outer product add up to b in every column, and a step rounds what
    the sum then holds. Forward, the steps are changes, and what the sum holds is a running sum of ±b. Transposed, they
    are rows, which only enter; every change reads the sum.
    """
    sizes, row = np.abs(B).sum(axis=1)[:, None] * np.abs(X), np.repeat(np.arange(mask.n), mask.changes)
    largest, rank = np.abs(A).max(axis=1)[:, None], A.shape[1]
    if transposed:
        held = np.cumsum(sizes[::-1], axis=0)[::-1]
        steps = (mask.n - np.arange(mask.n) + rank)[:, None] * held
        read = np.zeros(X.shape)
        np.add.at(read, mask.columns, steps[row])
        changes = np.bincount(mask.columns, minlength=mask.n)[:, None]
        return np.asarray(2.0**-52 * largest * read * np.maximum(changes, 1))
    held = np.abs(np.cumsum(mask.signs[:, None] * sizes[mask.columns], axis=0))
    steps = np.cumsum(held + sizes[mask.columns], axis=0)
    nothing = np.zeros((1, X.shape[1]))
    held, steps = (np.concatenate([nothing, x])[mask.first[1:]] for x in (held, steps))
    return np.asarray(2.0**-52 * largest * (steps + rank * held))


def _resolved(A: FloatArray, X: FloatArray) -> NDArray[np.float64]:
    """How large an entry of a head is that underflow has moved by 2⁻⁵⁰ of itself at most; infinite if A overflows.

    What vanishes of ``B_j X_j`` is multiplied with A_i, and what vanishes of ``A_i·B_j`` with X_j.
    """
    n, rank = A.shape[-2:]
    norm = np.sqrt(np.einsum("...ia,...ia->...", A, A))
    largest = 1 + math.sqrt(rank) * norm + rank * np.abs(X).max(axis=(-2, -1))
    return np.asarray(n * 2.0**-1074 * _ROOM * largest)


def _smallest_term(*arrays: FloatArray) -> NDArray[np.float64]:
    """log₂ of what every term ``A_ia B_ja X_jc`` of a head that is not zero is at least."""
    exponents = np.zeros(arrays[0].shape[:-2])
    for x in arrays:
        bits = np.ascontiguousarray(x).view(np.uint64) & np.uint64(2**63 - 1)
        least = np.asarray(np.min(bits - np.uint64(1), axis=(-2, -1)) + np.uint64(1))  # zero less one is the largest
        exponents = exponents + np.where(least == 0, np.inf, np.frexp(least.view(np.float64))[1] - 1)
    return np.asarray(exponents)


def _scaled(A: FloatArray, B: FloatArray, X: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, Index]:
    """Scale columns by powers of two, so that no term is above 1; and return the exponents of the columns of X.

    The largest of every column of B and X comes near 1, and so does the largest product of a column of A with its own
    of B: only what is small beside these vanishes.
    """
    a, b, x = (np.frexp(np.abs(array).max(axis=0))[1].astype(np.int64) for array in (A, B, X))
    used = A.any(axis=0) & B.any(axis=0)
    top = int((a + b)[used].max()) if used.any() else 0
    return np.ldexp(A, np.where(used, b - top, -a)), np.ldexp(B, -b), np.ldexp(X, -x), x + top


def _with_exponents(a: FloatArray, B: FloatArray, X: FloatArray) -> tuple[FloatArray, Index]:
    """``Σ_j (a·B_j) X_j``, every term with an exponent of its own: values and exponents, one for each column."""
    w, of_w = _sum_of_products(a, B, axis=1)
    return _sum_of_products(w[:, None], X, axis=0, exponents=of_w[:, None])


def _sum_of_products(x: FloatArray, y: FloatArray, *, axis: int, exponents: Any = 0) -> tuple[FloatArray, Index]:
    """``Σ 2^exponents x y`` along an axis, as values and exponents: those of the largest term."""
    (x, of_x), (y, of_y) = np.frexp(x), np.frexp(y)
    terms = x * y
    powers = np.where(terms == 0, _NOTHING, of_x.astype(np.int64) + of_y + exponents)
    top = powers.max(axis=axis, keepdims=True, initial=_NOTHING)
    return np.ldexp(terms, powers - top).sum(axis=axis), np.squeeze(np.where(top == _NOTHING, 0, top), axis)


def _seen(mask: StructuredMask, rows: Index, transposed: bool) -> Iterator[tuple[int, Index]]:
    """Yield rows, which increase, each with the columns that it sees in W, or in Wᵀ."""
    j = np.arange(mask.n)
    if isinstance(mask, RowChangeMask):
        yield from _seen_by_changes(mask, rows, transposed)
        return
    for i in rows.tolist():
        match mask:
            case CausalStructure():
                seen = j >= i if transposed else j <= i
            case ContinuousRowsMask():
                seen = (mask.start <= i) & (i < mask.stop) if transposed else (mask.start[i] <= j) & (j < mask.stop[i])
            case DistinctColumnsMask():
                seen = mask.patterns[mask.groups[i]] if transposed else mask.patterns[mask.groups, i]
            case DistinctRowsMask():
                seen = mask.patterns[mask.groups, i] if transposed else mask.patterns[mask.groups[i]]
        yield i, np.flatnonzero(seen)


def _seen_by_changes(mask: RowChangeMask, rows: Index, transposed: bool) -> Iterator[tuple[int, Index]]:
    if not transposed:
        seen, done = np.zeros(mask.n, np.int8), 0
        for i in rows.tolist():
            new = slice(done, done := int(mask.first[i + 1]))
            np.add.at(seen, mask.columns[new], mask.signs[new])
            yield i, np.flatnonzero(seen)
        return
    row, order = np.repeat(np.arange(mask.n), mask.changes), np.argsort(mask.columns, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(mask.columns, minlength=mask.n))])
    for j in rows.tolist():
        # enter, leave, enter, …: the column is seen where it has changed an odd number of times
        changes = np.bincount(row[order[first[j] : first[j + 1]]], minlength=mask.n)
        yield j, np.flatnonzero(np.cumsum(changes) % 2)
