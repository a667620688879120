"""The paper's algorithms line for line, in its letters (arXiv 2405.05219, sections 3 and 4).

Letters of the paper: k, T, δ and ε are what is asked for; segment i starts at column s and has the vector b_i and the
size m_i; u is the sum of the vectors so far and v its first T entries; t is the last column that can be searched. Here
columns are counted from 0, there from 1.

What the text leaves open is settled in `refattn.convbasis.recovery`, and nothing of it here: Search returns its right
end without having looked at it, and the first segment starts where the search says. On (T, δ)-non-degenerate input with
noise up to ε, and k the number of its segments, both find the same. The scale is absorbed into Q. Floating point loses
rows of Algorithm 1; `refattn.convbasis.guarded` keeps them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.toeplitz import subconv_product


def algorithm_1(V: FloatArray, basis: ConvBasis) -> FloatArray:
    """Algorithm 1 (conv forward): ``D̃ = diag(Σ_i conv(b̃_i, m_i) 1)``, ``Ỹ = D̃⁻¹ Σ_i conv(b̃_i, m_i) V``, by FFT.

    Parameters
    ----------
    V : ndarray, shape (n, d)
        Values.
    basis : ConvBasis
        Of the causal logits of one head; its largest logit, a shift that cancels, keeps b̃ from overflowing.

    Returns
    -------
    ndarray, shape (n, d)
        ``Ỹ``; rows with small denominators are lost to rounding. Time O(k n d log n), memory O(kn + nd).

    Examples
    --------
    >>> import numpy as np
    >>> basis = ConvBasis([0], [[0.0, 0.0, 0.0]])  # all logits zero: a running mean
    >>> algorithm_1(np.array([[3.0], [6.0], [0.0]]), basis).round(12).ravel()
    array([3. , 4.5, 3. ])
    """
    b_exp = basis.exp_transform(shift=basis.largest)
    ones = np.ones((basis.n, 1), V.dtype)
    D = np.zeros_like(ones)
    Y = np.zeros_like(V)
    for b, m in zip(b_exp.vectors, b_exp.sizes, strict=True):
        D += subconv_product(b, int(m), ones)
        Y += subconv_product(b, int(m), V)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(Y / D)


def exp_transform(b: FloatArray, m: NDArray[np.int64]) -> FloatArray:
    """The b̃ with ``M ∘ exp(Σ_i conv(b_i, m_i)) = Σ_i conv(b̃_i, m_i)``, shape (k, n) as b; segment 0 starts at column 0.

    Examples
    --------
    >>> exp_transform(np.log([[2.0, 4.0], [3.0, 1.0]]), np.array([2, 1])).round(12)  # 2·3 − 2 = 4
    array([[2., 4.],
           [4., 0.]])
    """
    b_exp = np.zeros_like(b)
    b_exp[0] = np.exp(b[0])
    for i in range(1, len(b)):
        b_exp[i, : m[i]] = (np.exp(b[: i + 1].sum(axis=0)) - np.exp(b[:i].sum(axis=0)))[: m[i]]
    return b_exp


def algorithm_2(
    Q: FloatArray, K: FloatArray, k: int, T: int, delta: float, eps: float
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Algorithm 2 (Recover): the vectors b, shape (k, n), and sizes m, shape (k,), of the basis of ``M ∘ (Q Kᵀ)``.

    Time O(k n d + k T d log n), memory O(k n).

    Examples
    --------
    >>> b, m = algorithm_2(np.ones((6, 1)), np.array([[4.0], [4], [4], [8], [8], [8]]), k=2, T=2, delta=8.0, eps=0.0)
    >>> m, b[1]
    (array([6, 3]), array([4., 4., 4., 0., 0., 0.]))
    """
    n = len(Q)
    v, u = np.zeros(T), np.zeros(n)
    s, t = -1, n - T
    b, m = np.zeros((k, n)), np.zeros(k, np.int64)
    for i in range(k):
        s = s + 1
        s = algorithm_3(Q, K, T, delta, eps, v, s, t)
        m[i] = n - s
        h = Q[s:] @ K[s]  # of the column (M ∘ Q Kᵀ)_s what is not above the diagonal
        b[i, : m[i]] = h - u[: m[i]]
        v = v + b[i, :T]
        u = u + b[i]
    return b, m


def algorithm_3(Q: FloatArray, K: FloatArray, T: int, delta: float, eps: float, v: FloatArray, s: int, t: int) -> int:
    """Algorithm 3 (Search): the first column in s … t that begins otherwise than with v, by halving; O(T d log n) time.

    Examples
    --------
    >>> Q, K = np.ones((6, 1)), np.array([[4.0], [4], [4], [8], [8], [8]])
    >>> algorithm_3(Q, K, T=2, delta=8.0, eps=0.0, v=np.array([4.0, 4.0]), s=1, t=4)
    3
    """
    if s >= t:
        return s
    j = (s + t) // 2
    alpha = np.abs(Q[j : j + T] @ K[j] - v).sum()
    if alpha >= delta - 2 * T * eps:
        return algorithm_3(Q, K, T, delta, eps, v, s, j)
    return algorithm_3(Q, K, T, delta, eps, v, j + 1, t)
