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

Every product is guarded by the vectors that are multiplied: what an FFT would lose of it is computed directly. So is
every entry of du, by its natural size, that of the sum with all signs equal: with the sizes ``γ_i = ‖G_i‖₁``,
``ν_j = ‖v_j‖₁ / d_v`` and ``ρ_i = Σ_a |G_ia Ỹ_ia|``, it is ``Σ_{j in segment i} f_{j+t,j} (γ_{j+t} ν_j + ρ_{j+t})``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.guarded.softmax import RowReport, Softmax, row_bound, scaled_back, segments
from refattn.convbasis.guarded.units import Units, in_units, in_units_of
from refattn.convbasis.toeplitz import fft_correlation, near_one
from refattn.dense import AttentionGradients

_TERMS = 1 << 20
"""Terms of lags formed at once."""


class Operator(Protocol):
    """A row-stochastic matrix f, known by its products, each of which says what became of its rows."""

    def product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``f w``, shape (n, d)."""

    def transposed_product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``fᵀ w``, shape (n, d)."""


class Recomputed(NamedTuple):
    """How much of a backward was computed directly, because an FFT would have lost it.

    Attributes
    ----------
    queries, keys : int or ndarray of int, shape (…)
        Rows of products with f and with its transpose, of every head; one that two products lose counts twice.
    lags : int or ndarray of int, shape (…)
        Entries of the gradients of the kernels, of every head; 0 for the paper's gradient, which has none.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import conv_attention_backward, conv_attention_forward
    >>> q = k = v = np.ones((3, 2))
    >>> out, cache = conv_attention_forward(q, k, v, n_basis=1, probe=1, delta=0)  # short: the direct path, all of it
    >>> [int(count) for count in conv_attention_backward(out, cache).recomputed]
    [3, 3, 3]
    """

    queries: Any
    keys: Any
    lags: Any


_NOTHING = Recomputed(0, 0, 0)


class ConvGradients(AttentionGradients):
    """Gradients of conv attention, each of the shape of its input: ``dq, dk, dv = gradients``.

    Attributes
    ----------
    q, k : ndarray, shapes (…, n, d)
        With respect to the queries and the keys, in the dtype of the forward.
    v : ndarray, shape (…, n, d_v)
        With respect to the values.
    recomputed : Recomputed
        How much was computed directly, because an FFT would have lost it.

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

    recomputed: Recomputed = _NOTHING

    def __new__(cls, q: FloatArray, k: FloatArray, v: FloatArray, recomputed: Recomputed = _NOTHING) -> ConvGradients:
        """Add to the three gradients what became of their rows."""
        gradients = super().__new__(cls, q, k, v)
        gradients.recomputed = recomputed
        return gradients


def attention_gradient(
    G: FloatArray, Y: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, f: Operator, scale: float
) -> ConvGradients:
    """Gradient of exact attention with its softmax replaced by f, for one head.

    G and Y, shape (n, d_v), are upstream gradient and output. Time of ``2 (d d_v + d) + d_v`` products of a column with
    f, memory O(n d).
    """
    queries = keys = 0

    def apply(w: FloatArray) -> FloatArray:
        nonlocal queries
        y, report = f.product(w)
        queries += report.rows.size
        return y

    def apply_transposed(w: FloatArray) -> FloatArray:
        nonlocal keys
        y, report = f.transposed_product(w)
        keys += report.rows.size
        return y

    # linear in each: in units near one, no product overflows that need not
    (G, g), (Q, q), (K, k), (V, v) = (near_one(one) for one in (G, Q, K, V))
    r = (G * scaled_back(Y, -v)).sum(axis=1, keepdims=True)
    # w K = Σ_a diag(G_a) f diag(V_a) K − diag(r) f K
    dQ = -r * apply(K)
    # wᵀ Q = Σ_a diag(V_a) fᵀ diag(G_a) Q − fᵀ diag(r) Q
    dK = -apply_transposed(r * Q)
    for a in range(V.shape[1]):
        dQ += G[:, a, None] * apply(V[:, a, None] * K)
        dK += V[:, a, None] * apply_transposed(G[:, a, None] * Q)
    dQ, dK, dV = scaled_back(scale * dQ, g + v + k), scaled_back(scale * dK, g + v + q), apply_transposed(G)
    return ConvGradients(dQ, dK, scaled_back(dV, g), Recomputed(queries, keys, 0))


def approximation_gradient(
    G: FloatArray, Y: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, f: Softmax, scale: float
) -> ConvGradients:
    """Derivative of conv attention itself, starts held fixed, for one head; O(k n d log n) time, O(kn + nd) memory."""
    g_sizes, v_sizes = np.abs(G).max(axis=0), np.abs(V).max(axis=0)
    units, together = (in_units(G, Y, V, g_sizes, v_sizes, ratio) for ratio in (1, np.inf))
    dlower, dupper, lags = kernel_gradients(units, together, f)
    (Q, q_exponent), (K, k_exponent) = near_one(Q), near_one(K)
    dQ, dK = np.zeros_like(Q), np.zeros_like(K)
    _through_kernels(f.lower, dlower, Q, K, dQ, dK)
    if f.upper is not None:
        _through_kernels(f.upper, dupper, K, Q, dK, dQ)
    dV, report = f.transposed_product(G)
    return ConvGradients(
        scaled_back(scale * dQ, units.exponent + k_exponent),
        scaled_back(scale * dK, units.exponent + q_exponent),
        dV,
        Recomputed(f.lost.size, report.rows.size, lags),
    )


def kernel_gradients(units: Units, together: Units, f: Softmax) -> tuple[FloatArray, FloatArray, int]:
    """Gradients of the cumulative kernels, lower and upper, shapes (s, n); both bases start at column 0.

    The upper one is empty for causal attention. The third is how many entries were computed directly. Every entry is
    held to its natural size in either units: of columns of their own, and of all together.
    """
    G, Y, V, *_ = units
    r = (G * Y).sum(axis=1, keepdims=True)
    # w_ij / (f_ij D̃_i) = (Σ_a G_ia v_ja − r_i · 1) / D̃_i: a product of d_v + 1 columns for rows and as many for columns
    rows = f.over_D(np.concatenate([G, -r], axis=1))
    columns = np.concatenate([V, np.ones_like(r)], axis=1)
    (own, near), (size, far) = _sizes(units, f), _sizes(together, f)
    sizes = [(own, near), (in_units_of(units, size, together), far)]
    dlower, lower_bound = np.zeros_like(f.lower.kernels), np.zeros(f.lower.kernels.shape)
    for du, bound, (c, end, g) in zip(dlower, lower_bound, segments(f.g), strict=False):
        found, bound[: g.size] = _bounded(rows[c:], columns[c:end], *((s[c:], t[c:end]) for s, t in sizes))
        du[: g.size] = g * found
    dupper, upper_bound = np.zeros((0, f.lower.n), G.dtype), np.zeros((0, f.lower.n))
    if f.upper is not None and f.g_upper is not None:
        dupper, upper_bound = np.zeros_like(f.upper.kernels), np.zeros(f.upper.kernels.shape)
        for du, bound, (c, end, g) in zip(dupper, upper_bound, segments(f.g_upper), strict=False):
            found, bound[: g.size] = _bounded(columns[c:], rows[c:end], *((t[c:], s[c:end]) for s, t in sizes))
            bound[0] = 0  # the diagonal is the lower basis's
            du[: g.size] = g * found
    for lost in f.blocks(f.lost):
        w = f.rows(lost) * (G[lost] @ V.T - r[lost])
        _add_diagonals(f.lower, lost[:, None] - np.arange(f.lower.n), np.arange(f.lower.n), w, dlower)
        if f.upper is not None:
            lag = np.arange(f.lower.n) - lost[:, None]
            _add_diagonals(f.upper, np.where(lag > 0, lag, -1), lost[:, None], w, dupper)
    # half of the tolerance is the denominators'
    count = _write_lags(f.lower, ~(lower_bound <= f.tol / 2), G, r, V, f.log_sum_exp, dlower, transposed=False)
    if f.upper is not None:
        count += _write_lags(f.upper, ~(upper_bound <= f.tol / 2), G, r, V, f.log_sum_exp, dupper, transposed=True)
    return dlower, dupper, count


def _sizes(units: Units, f: Softmax) -> tuple[FloatArray, FloatArray]:
    """Sizes of rows, over D̃, and of columns, whose correlations are natural sizes."""
    G, Y, V, *_ = units
    rows = np.stack([np.abs(G).sum(axis=1), np.abs(G * Y).sum(axis=1)], axis=1)
    return f.over_D(rows), np.stack([np.abs(V).mean(axis=1), np.ones(len(V), V.dtype)], axis=1)


def _bounded(
    a: FloatArray, b: FloatArray, *sizes: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, NDArray[np.float64]]:
    """The correlation of two sets of columns, and the estimated error of every lag relative to its natural sizes."""
    noise = np.full(len(a), _correlation_noise(a, b))
    bounds = [row_bound(noise, fft_correlation(*each), _correlation_noise(*each)) for each in sizes]
    return fft_correlation(a, b), np.max(bounds, axis=0)


def _correlation_noise(a: FloatArray, b: FloatArray) -> float:
    """Error of an entry of a correlation by FFT, those of the columns added up."""
    (a, e), (b, f) = near_one(a), near_one(b)
    floor = len(a) * float(np.finfo(a.dtype).tiny)  # what underflows
    length, dtype = _fft.fast_length(a.shape[0] + b.shape[0] - 1), a.dtype
    (a1, a2), (b1, b2) = (
        (x.sum(axis=0), np.sqrt(np.square(x).sum(axis=0))) for x in (np.abs(y, dtype=np.float64) for y in (a, b))
    )
    error = convolution_error(length, dtype, factors=a2 * b2, product=np.minimum(a1 * b2, a2 * b1)).sum() + floor
    return float(np.ldexp(error, int(e + f)))


def _write_lags(
    basis: ConvBasis,
    lost: NDArray[np.bool_],
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    log_sum_exp: NDArray[np.float64],
    du: FloatArray,
    *,
    transposed: bool,
) -> int:
    """Write the lost entries of the gradient of the kernels, each term of their sums by itself; return how many.

    Of the transposed logits the rows are the columns of f.
    """
    for i, (c, end, u) in enumerate(segments(basis)):
        lags = np.flatnonzero(lost[i, : u.size])
        step = max(1, _TERMS // ((end - c) * V.shape[1]))
        for t in (lags[first : first + step, None] for first in range(0, lags.size, step)):
            near = np.arange(c, end)
            inside = near + t < basis.n
            far = np.where(inside, near + t, near)
            row, column = (np.broadcast_to(near, far.shape), far) if transposed else (far, near)
            f = np.exp(np.where(inside, u[t] - log_sum_exp[row], -np.inf))
            w = f * (
                np.einsum("tja,tja->tj", G[row].astype(np.float64), V[np.broadcast_to(column, far.shape)]) - r[row, 0]
            )
            du[i, t[:, 0]] = w.sum(axis=1)
    return int(lost.sum())


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
