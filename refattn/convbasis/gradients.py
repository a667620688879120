"""Two gradients of conv attention for one head, by products with the paper's f (arXiv 2405.05219, section 5; ours).

With upstream ``G = dL/dY`` and ``r_i = G_i · Ỹ_i``, both rest on

    w_ij = f_ij (G_i · v_j − r_i),        f = D̃⁻¹ Σ_i conv(b̃_i, m_i),

which is the derivative with respect to logit (i, j). In both, ``dV = fᵀ G``.

``attention_gradient`` (the paper's): the gradient of exact attention with the softmax replaced by f. As w has rank
d + 1 but for f, products with it are d + 1 products with f: ``dQ = scale · w K``, ``dK = scale · wᵀ Q``.

``approximation_gradient`` (ours): the true derivative of Ỹ with the starts held fixed. The logits of segment i are
``u_i[t] = scale · q_{c_i+t} · k_{c_i}``, so only sums of w along the diagonals of a segment matter,

    du_i[t] = Σ_{j in segment i} w_{j+t, j} = g_i[t] Σ_{j in segment i} (G_{j+t} · v_j − r_{j+t}) / D̃_{j+t},

which are correlations; then ``dq_{c_i+t} += scale · du_i[t] k_{c_i}``, ``dk_{c_i} += scale · Σ_t du_i[t] q_{c_i+t}``.
Above the diagonal the roles of rows and columns, and of q and k, are exchanged.

Rows that an FFT would lose enter both through their dense rows of f.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.paper import Softmax, segments
from refattn.convbasis.toeplitz import fft_correlation


class Operator(Protocol):
    """A row-stochastic matrix f, known by its products."""

    def apply(self, w: FloatArray) -> FloatArray:
        """``f w``, shape (n, d)."""

    def apply_transposed(self, w: FloatArray) -> FloatArray:
        """``fᵀ w``, shape (n, d)."""


class ConvGradients(NamedTuple):
    """Gradients of conv attention, each of the shape of its input.

    Attributes
    ----------
    q : ndarray, shape (…, n, d)
        With respect to the queries, in the dtype of the forward.
    k : ndarray, shape (…, n, d)
        With respect to the keys.
    v : ndarray, shape (…, n, d_v)
        With respect to the values.

    Notes
    -----
    A tuple: ``dq, dk, dv = gradients``. Memory O(nd) a head. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import conv_attention_backward, conv_attention_forward
    >>> q = k = v = np.ones((3, 2))
    >>> out, cache = conv_attention_forward(q, k, v, n_basis=1, probe=1, delta=0)
    >>> dq, dk, dv = conv_attention_backward(out, cache)
    >>> bool(np.allclose(dv.sum(axis=1), [11 / 3, 5 / 3, 2 / 3]))
    True
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray


def attention_gradient(
    G: FloatArray, Y: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, f: Operator, scale: float
) -> ConvGradients:
    """Gradient of exact attention with its softmax replaced by f, for one head.

    Parameters
    ----------
    G, Y : ndarray, shape (n, d_v)
        Upstream gradient and output.
    Q, K : ndarray, shape (n, d)
        Queries and keys.
    V : ndarray, shape (n, d_v)
        Values.
    f : Operator
        The softmax of the forward: the paper's, or the fast one.
    scale : float
        Factor of the logits.

    Returns
    -------
    ConvGradients
        Of q, k and v. Time of ``2 (d d_v + d) + d_v`` products of a column with f, memory O(n d).
    """
    r = (G * Y).sum(axis=1, keepdims=True)
    # w K = Σ_a diag(G_a) f diag(V_a) K − diag(r) f K
    dQ = -r * f.apply(K)
    # wᵀ Q = Σ_a diag(V_a) fᵀ diag(G_a) Q − fᵀ diag(r) Q
    dK = -f.apply_transposed(r * Q)
    for a in range(V.shape[1]):
        dQ += G[:, a, None] * f.apply(V[:, a, None] * K)
        dK += V[:, a, None] * f.apply_transposed(G[:, a, None] * Q)
    return ConvGradients(scale * dQ, scale * dK, f.apply_transposed(G))


def approximation_gradient(
    G: FloatArray, Y: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, f: Softmax, scale: float
) -> ConvGradients:
    """Derivative of conv attention itself, starts held fixed, for one head.

    Parameters, and shapes, are those of `attention_gradient`.

    Returns
    -------
    ConvGradients
        Of q, k and v. Time O(k n d log n), memory O(kn + nd).
    """
    r = (G * Y).sum(axis=1, keepdims=True)
    dlower, dupper = kernel_gradients(G, r, V, f)
    dQ, dK = np.zeros_like(Q), np.zeros_like(K)
    _through_kernels(f.lower, dlower, Q, K, dQ, dK)
    if f.upper is not None:
        _through_kernels(f.upper, dupper, K, Q, dK, dQ)
    return ConvGradients(scale * dQ, scale * dK, f.apply_transposed(G))


def kernel_gradients(G: FloatArray, r: FloatArray, V: FloatArray, f: Softmax) -> tuple[FloatArray, FloatArray]:
    """Gradients of the cumulative kernels, lower and upper, shapes (s, n); both bases start at column 0.

    The upper one is empty for causal attention.
    """
    # w_ij / (f_ij D̃_i) = (Σ_a G_ia v_ja − r_i · 1) / D̃_i: a product of d_v + 1 columns for rows and as many for columns
    rows = f.over_D(np.concatenate([G, -r], axis=1))
    columns = np.concatenate([V, np.ones_like(r)], axis=1)
    dlower = np.zeros_like(f.lower.kernels)
    for du, (c, end, g) in zip(dlower, segments(f.g), strict=False):
        du[: g.size] = g * fft_correlation(rows[c:], columns[c:end])
    dupper = np.zeros((0, f.lower.n), G.dtype)
    if f.upper is not None and f.g_upper is not None:
        dupper = np.zeros_like(f.upper.kernels)
        for du, (c, end, g) in zip(dupper, segments(f.g_upper), strict=False):
            du[: g.size] = g * fft_correlation(columns[c:], rows[c:end])
    for lost in f.lost_blocks():
        w = f.rows(lost) * (G[lost] @ V.T - r[lost])
        _add_diagonals(f.lower, lost[:, None] - np.arange(f.lower.n), np.arange(f.lower.n), w, dlower)
        if f.upper is not None:
            lag = np.arange(f.lower.n) - lost[:, None]
            _add_diagonals(f.upper, np.where(lag > 0, lag, -1), lost[:, None], w, dupper)
    return dlower, dupper


def _add_diagonals(
    basis: ConvBasis, lag: NDArray[np.int64], column: NDArray[np.int64], w: FloatArray, du: FloatArray
) -> None:
    """Add w, entry by entry, to the kernel gradient of the column's segment at its lag; negative lags are none."""
    place = basis.segments()[column] * basis.n + lag
    valid = lag >= 0
    du += np.bincount(place[valid], weights=w[valid], minlength=du.size).reshape(du.shape)


def _through_kernels(
    basis: ConvBasis, du: FloatArray, rows: FloatArray, columns: FloatArray, drows: FloatArray, dcolumns: FloatArray
) -> None:
    """Reverse ``u_i[t] = rows[c_i + t] · columns[c_i]``."""
    for du_i, (c, _, u) in zip(du, segments(basis), strict=False):
        drows[c:] += du_i[: u.size, None] * columns[c]
        dcolumns[c] += du_i[: u.size] @ rows[c:]
