"""Compiled loops of the low-rank products and of the monomial features (arXiv 2405.05219, section 6).

Results and workspace are out-arguments. The products keep one running sum ``state = Σ_j B_j X_jᵀ`` and do two things
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
Signs = NDArray[np.int8]


@compiled
def _add(sign: float, b: FloatArray, x: FloatArray, state: FloatArray) -> None:
    """``state += sign · b xᵀ``."""
    for a in range(b.size):
        w = sign * b[a]
        for c in range(x.size):
            state[a, c] += w * x[c]


@compiled
def _read(sign: float, a: FloatArray, state: FloatArray, y: FloatArray) -> None:
    """``y += sign · a state``."""
    for m in range(a.size):
        w = sign * a[m]
        for c in range(y.size):
            y[c] += w * state[m, c]


@compiled
def causal(
    A: FloatArray, B: FloatArray, X: FloatArray, reverse: bool, low: int, high: int, state: FloatArray, out: FloatArray
) -> None:
    """``out_i = A_i · Σ_{j ≤ i} B_j X_jᵀ`` (Algorithm 4), or over ``j ≥ i`` if `reverse`."""
    n = A.shape[0]
    for step in range(n):
        i = n - 1 - step if reverse else step
        _add(1.0, B[i], X[i, low:high], state)
        _read(1.0, A[i], state, out[i, low:high])


@compiled
def row_changes(
    first: Index,
    columns: Index,
    signs: Signs,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    low: int,
    high: int,
    state: FloatArray,
    out: FloatArray,
) -> None:
    """``(W ∘ A Bᵀ) X`` from the changes of each row (Algorithm 5)."""
    for i in range(A.shape[0]):
        for e in range(first[i], first[i + 1]):
            _add(signs[e], B[columns[e]], X[columns[e], low:high], state)
        _read(1.0, A[i], state, out[i, low:high])


@compiled
def row_changes_transposed(
    first: Index,
    columns: Index,
    signs: Signs,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    low: int,
    high: int,
    state: FloatArray,
    out: FloatArray,
) -> None:
    """``(Wᵀ ∘ A Bᵀ) X``: the loop of `row_changes` in reverse, with add and read exchanged.

    A change of sign s at row i and column j gives or takes all rows l ≥ i: ``out_j += s · A_j · Σ_l B_l X_lᵀ``.
    """
    for step in range(B.shape[0]):
        i = B.shape[0] - 1 - step
        _add(1.0, B[i], X[i, low:high], state)
        for e in range(first[i], first[i + 1]):
            _read(signs[e], A[columns[e]], state, out[columns[e], low:high])


@compiled
def prefix_differences(
    first: Index,
    rows: Index,
    signs: Signs,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    low: int,
    high: int,
    state: FloatArray,
    out: FloatArray,
) -> None:
    """``(W ∘ A Bᵀ) X`` for rows that see intervals: what stands before the stop less what stands before the start.

    Event e of column j, ``first[j] ≤ e < first[j + 1]``, is a row that stops (sign 1) or starts (sign −1) at j.
    """
    n = X.shape[0]
    for j in range(n + 1):
        for e in range(first[j], first[j + 1]):
            _read(signs[e], A[rows[e]], state, out[rows[e], low:high])
        if j < n:
            _add(1.0, B[j], X[j, low:high], state)


@compiled
def prefix_differences_transposed(
    first: Index,
    rows: Index,
    signs: Signs,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    low: int,
    high: int,
    state: FloatArray,
    out: FloatArray,
) -> None:
    """``(Wᵀ ∘ A Bᵀ) X``: the loop of `prefix_differences` in reverse, with add and read exchanged."""
    n = A.shape[0]
    for step in range(n + 1):
        j = n - step
        if j < n:
            _read(1.0, A[j], state, out[j, low:high])
        for e in range(first[j], first[j + 1]):
            _add(signs[e], B[rows[e]], X[rows[e], low:high], state)


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
def short_rows(
    rows: Index,
    start: Index,
    stop: Index,
    A: FloatArray,
    B: FloatArray,
    X: FloatArray,
    transposed: bool,
    low: int,
    high: int,
    out: FloatArray,
) -> None:
    """Rows of intervals by their entries: ``out_i += Σ_j (A_i·B_j) X_j``; transposed ``out_j += (A_j·B_i) X_i``."""
    for i in rows:
        for j in range(start[i], stop[i]):
            to, of = (j, i) if transposed else (i, j)
            w = _inner(A[to], B[of])
            x, y = X[of, low:high], out[to, low:high]
            for c in range(x.size):
                y[c] += w * x[c]


@compiled
def monomials(
    x: FloatArray, parents: Index, variables: Index, weights: FloatArray, phi: FloatArray, out: FloatArray
) -> None:
    """``out[i, c] = weights[c] · phi_c(x_i)`` with ``phi_c = phi_parent(c) · x_variable(c)`` and ``phi_0 = 1``."""
    for i in range(x.shape[0]):
        phi[0] = 1.0
        for c in range(1, phi.size):
            phi[c] = phi[parents[c]] * x[i, variables[c]]
        for c in range(phi.size):
            out[i, c] = phi[c] * weights[c]


@compiled
def monomials_pullback(
    dout: FloatArray,
    x: FloatArray,
    parents: Index,
    variables: Index,
    weights: FloatArray,
    phi: FloatArray,
    dphi: FloatArray,
    dx: FloatArray,
) -> None:
    """Add to `dx` the gradient of `monomials`; `phi` and `dphi` are workspace."""
    for i in range(x.shape[0]):
        phi[0] = 1.0
        for c in range(1, phi.size):
            phi[c] = phi[parents[c]] * x[i, variables[c]]
        # forward: out = phi · weights
        for c in range(phi.size):
            dphi[c] = dout[i, c] * weights[c]
        # forward: phi_c = phi_parent · x_variable
        for step in range(1, phi.size):
            c = phi.size - step
            dphi[parents[c]] += dphi[c] * x[i, variables[c]]
            dx[i, variables[c]] += dphi[c] * phi[parents[c]]
