"""Algorithm 1 of arXiv 2405.05219: attention inference with a k-conv basis, each product by FFT.

Symbols of the paper: ``b̃`` is the exp transform of the basis b; ``D̃ = diag(Σ_i conv(b̃_i, m_i) 1)``;
``Ỹ = D̃⁻¹ Σ_i conv(b̃_i, m_i) V``.

`algorithm_1` is the paper's, line for line. Floating point breaks it in two ways, so `conv_attention_head`, which
``method="paper"`` calls, departs from it where it says so:

- ``b̃_i = exp(u_i) − exp(u_{i−1})`` cancels. Summed by parts over the segments, ``Σ_i conv(b̃_i, m_i) x`` is
  ``Σ_i conv(g_i, m_i) x_i`` with ``g_i = exp(u_i)`` and x_i the entries of x in segment i: as many products, and no
  cancellation.
- The error of an FFT is relative to the largest entry of its result, so rows with small denominators drown. The error
  of every row is estimated, and rows above a tolerance are computed from their logits directly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.toeplitz import conv_product, subconv_product

_BLOCK_ENTRIES = 1 << 21


@dataclass(frozen=True)
class RowReport:
    """What became of the rows of one head.

    Attributes
    ----------
    recomputed : int
        Rows computed directly, because their estimated error exceeded the tolerance.
    largest_bound : float
        Largest estimated error, relative to ``‖V‖_∞``, of a row that was kept; 0 if none was.
    """

    recomputed: int
    largest_bound: float


def algorithm_1(V: FloatArray, basis: ConvBasis) -> FloatArray:
    """Algorithm 1 (conv forward) as the paper writes it; rows with small denominators are lost to rounding.

    Parameters
    ----------
    V : ndarray, shape (n, d)
        Values.
    basis : ConvBasis
        Of the causal logits of one head.

    Returns
    -------
    ndarray, shape (n, d)
        ``Ỹ``. Time O(k n d log n), memory O(kn + nd).

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


def conv_attention_head(
    v: FloatArray, lower: ConvBasis, upper: ConvBasis | None, tol: float
) -> tuple[FloatArray, RowReport]:
    """Algorithm 1 on segments, with every row inside the tolerance or computed directly.

    Parameters
    ----------
    v : ndarray, shape (n, d_v)
        Values.
    lower : ConvBasis
        Basis of the logits on and below the diagonal.
    upper : ConvBasis or None
        Basis of the transposed logits, of which those above the diagonal are used; None for causal attention.
    tol : float
        Largest estimated error of a row, relative to ``‖V‖_∞``, that is kept.

    Returns
    -------
    out : ndarray, shape (n, d_v)
        ``Ỹ``.
    report : RowReport
        How many rows were recomputed.
    """
    n = lower.n
    x = np.concatenate([v, np.ones((n, 1), v.dtype)], axis=1)  # D̃ is the product with a column of ones
    shift = lower.largest if upper is None else max(lower.largest, upper.largest)
    y = np.zeros_like(x)
    noise = np.zeros(x.shape)  # sum of the squared errors of the products that enter a row
    _add_lower(lower.exp_transform(shift), x, y, noise)
    if upper is not None:
        _add_upper(upper.exp_transform(shift), x, y, noise)
    error = np.sqrt(noise)
    size = float(np.abs(v).max()) or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        row_error = (error[:, :-1].max(axis=1) / size + error[:, -1]) / (y[:, -1] - error[:, -1])
        out = y[:, :-1] / y[:, -1:]
    kept = (row_error >= 0) & (row_error <= tol)  # NaN and negative denominators are not kept
    lost = np.flatnonzero(~kept)
    step = max(1, _BLOCK_ENTRIES // n)
    for start in range(0, lost.size, step):
        rows = lost[start : start + step]
        out[rows] = direct_rows(rows, v, lower, upper)
    return out, RowReport(int(lost.size), float(row_error[kept].max(initial=0.0)))


def _add_lower(g: ConvBasis, x: FloatArray, y: FloatArray, noise: FloatArray) -> None:
    """Add ``Σ_i conv(g_i, m_i) x_i`` to y, x_i being x in the columns of segment i."""
    n = g.n
    ends = [*g.starts[1:], n]
    for c, end, kernel in zip(g.starts, ends, g.kernels, strict=True):
        if c == n:
            break
        x_i = np.zeros_like(x[c:])
        x_i[: end - c] = x[c:end]
        y[c:] += conv_product(kernel[: n - c], x_i)
        noise[c:] += _product_noise(kernel[: n - c], x_i)


def _add_upper(g: ConvBasis, x: FloatArray, y: FloatArray, noise: FloatArray) -> None:
    """Add the strictly upper part: row i in segment s gets ``Σ_{t ≥ 1} g_s[t] x_{i+t}``, a correlation."""
    n = g.n
    ends = [*g.starts[1:], n]
    for c, end, kernel in zip(g.starts, ends, g.kernels, strict=True):
        if c == n:
            break
        strict = kernel[: n - c].copy()
        strict[0] = 0  # the diagonal belongs to the lower part
        backward = x[c:][::-1]
        y[c:end] += conv_product(strict, backward)[::-1][: end - c]
        noise[c:end] += _product_noise(strict, backward)


def _product_noise(a: FloatArray, x: FloatArray) -> FloatArray:
    """Squared error of an entry of ``conv(a) x`` by FFT, for every column of x."""
    length = _fft.fast_length(2 * a.size - 1)
    a1, x1 = np.abs(a, dtype=np.float64).sum(), np.abs(x, dtype=np.float64).sum(axis=0)
    a2, x2 = np.linalg.norm(a.astype(np.float64)), np.linalg.norm(x.astype(np.float64), axis=0)
    error = convolution_error(length, a.dtype, factors=a2 * x2, product=np.minimum(a1 * x2, a2 * x1))
    return np.asarray(np.square(error))


def direct_rows(rows: NDArray[np.int64], v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> FloatArray:
    """Rows of the output from the logits of the basis, each with its own maximum; O(n d) a row."""
    columns = np.arange(lower.n)
    above = columns > rows[:, None]
    rest = np.asarray(-np.inf, v.dtype) if upper is None else upper.columns(rows)
    logits = np.where(above, rest, lower.rows(rows))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray((weights @ v) / weights.sum(axis=1, keepdims=True))
