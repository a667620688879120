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

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.toeplitz import fft_product, near_one, subconv_product

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


class Softmax:
    """The paper's f: the row-stochastic matrix ``D̃⁻¹ Σ_i conv(b̃_i, m_i)`` of one head, as an operator.

    Parameters
    ----------
    lower : ConvBasis
        Basis of the logits on and below the diagonal.
    upper : ConvBasis or None
        Basis of the transposed logits, of which those above the diagonal are used; None for causal attention.
    tol : float
        Largest estimated error of a row of a product ``f w``, relative to ``‖w‖_∞``, that is kept.

    Attributes
    ----------
    D : ndarray, shape (n,)
        Row sums, of the exponentials shifted by the largest logit.
    lost : ndarray of int
        Rows that an FFT would lose: they are computed from their logits, each with its own maximum.
    largest_bound : float
        Largest estimated error of the rows that are not lost; 0 if all are.

    Notes
    -----
    A product with w of shape (n, d) takes O(k n d log n + r n d), r the number of lost rows.
    """

    def __init__(self, lower: ConvBasis, upper: ConvBasis | None, tol: float) -> None:
        self.lower, self.upper, self.tol = lower, upper, tol
        shift = lower.largest if upper is None else max(lower.largest, upper.largest)
        self.g = lower.exp_transform(shift)
        self.g_upper = None if upper is None else strict(upper.exp_transform(shift))
        ones = np.ones((lower.n, 1), lower.kernels.dtype)
        self.D = self._numerator(ones)[:, 0]
        error = self._noise()
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = 2 * error / (self.D - error)  # numerator and denominator
        kept = (bound >= 0) & (bound <= tol)  # NaN and negative denominators are not kept
        self.lost = np.flatnonzero(~kept)
        self.largest_bound = float(bound[kept].max(initial=0.0))

    def apply(self, w: FloatArray) -> FloatArray:
        """``f w``, shape (n, d)."""
        w, exponent = near_one(w)  # an average does not overflow, but its numerator might
        with np.errstate(divide="ignore", invalid="ignore"):
            y = self._numerator(w) / self.D[:, None]
        for rows in self.lost_blocks():
            y[rows] = self.rows(rows) @ w
        return np.asarray(np.ldexp(y, exponent))

    def apply_transposed(self, w: FloatArray) -> FloatArray:
        """``fᵀ w``, shape (n, d)."""
        z = self.over_D(w)
        y = transposed_product(self.g, z)
        if self.g_upper is not None:
            y += segment_product(self.g_upper, z)
        for rows in self.lost_blocks():
            y += self.rows(rows).T @ w[rows]
        return y

    def over_D(self, w: FloatArray) -> FloatArray:
        """``D̃⁻¹ w`` in the rows that are kept, zero in the lost ones."""
        scale = np.zeros_like(self.D)
        kept = np.ones(self.D.size, dtype=bool)
        kept[self.lost] = False
        np.divide(1, self.D, out=scale, where=kept)
        return np.asarray(scale[:, None] * w)

    def rows(self, rows: NDArray[np.int64]) -> FloatArray:
        """Dense rows of f, from the logits of the basis; O(n) a row."""
        above = np.arange(self.lower.n) > rows[:, None]
        rest = np.asarray(-np.inf, self.D.dtype) if self.upper is None else self.upper.columns(rows)
        logits = np.where(above, rest, self.lower.rows(rows))
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def lost_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The lost rows, as many at a time as are formed densely."""
        step = max(1, _BLOCK_ENTRIES // self.lower.n)
        return (self.lost[start : start + step] for start in range(0, self.lost.size, step))

    def _numerator(self, w: FloatArray) -> FloatArray:
        y = segment_product(self.g, w)
        if self.g_upper is not None:
            y += transposed_product(self.g_upper, w)
        return y

    def _noise(self) -> NDArray[np.float64]:
        """Error of the entries of a row of ``Σ_i conv(b̃_i, m_i) w``, for ``‖w‖_∞ ≤ 1``."""
        n = self.lower.n
        noise = np.full(n, n * float(np.finfo(self.D.dtype).tiny))  # what underflows is lost whatever the method
        for c, end, kernel in segments(self.g):
            noise[c:] = np.hypot(noise[c:], _product_noise(kernel, end - c))
        if self.g_upper is not None:
            for c, end, kernel in segments(self.g_upper):
                noise[c:end] = np.hypot(noise[c:end], _product_noise(kernel, kernel.size))
        return noise


def conv_attention_head(
    v: FloatArray, lower: ConvBasis, upper: ConvBasis | None, tol: float
) -> tuple[FloatArray, RowReport]:
    """Algorithm 1 on segments, with every row inside the tolerance or computed directly.

    Parameters
    ----------
    v : ndarray, shape (n, d_v)
        Values.
    lower, upper, tol
        As for `Softmax`.

    Returns
    -------
    out : ndarray, shape (n, d_v)
        ``Ỹ = f V``.
    report : RowReport
        How many rows were recomputed.
    """
    f = Softmax(lower, upper, tol)
    return f.apply(v), RowReport(int(f.lost.size), f.largest_bound)


def segments(g: ConvBasis) -> Iterator[tuple[int, int, FloatArray]]:
    """First column, end and kernel, of length n − start, of every segment in use."""
    n = g.n
    for c, end, kernel in zip(g.starts, [*g.starts[1:], n], g.kernels, strict=True):
        if c < n:
            yield int(c), int(end), kernel[: n - c]


def strict(g: ConvBasis) -> ConvBasis:
    """The basis without its diagonal."""
    kernels = g.kernels.copy()
    kernels[..., 0] = 0
    return ConvBasis(g.starts, kernels)


def segment_product(g: ConvBasis, x: FloatArray) -> FloatArray:
    """``Σ_i conv(g_i, m_i) x_i``, x_i being x in the columns of segment i: the matrix of the basis times x."""
    y = np.zeros_like(x)
    for c, end, kernel in segments(g):
        x_i = np.zeros_like(x[c:])
        x_i[: end - c] = x[c:end]
        y[c:] += fft_product(kernel, x_i)
    return y


def transposed_product(g: ConvBasis, x: FloatArray) -> FloatArray:
    """The transposed matrix of the basis times x: row j in segment i gets ``Σ_t g_i[t] x_{j+t}``, a correlation."""
    y = np.zeros_like(x)
    for c, end, kernel in segments(g):
        y[c:end] = fft_product(kernel, x[c:][::-1])[::-1][: end - c]
    return y


def _product_noise(a: FloatArray, size: int) -> float:
    """Error of an entry of ``conv(a) x`` by FFT, x having `size` entries of at most 1."""
    largest = float(np.abs(a).max())
    if largest == 0:
        return 0.0
    length = _fft.fast_length(2 * a.size - 1)
    relative = np.abs(a, dtype=np.float64) / largest  # whose squares do not underflow, however small the kernel
    a1, a2 = relative.sum(), np.linalg.norm(relative)
    x1, x2 = size, math.sqrt(size)
    return largest * float(convolution_error(length, a.dtype, factors=a2 * x2, product=min(a1 * x2, a2 * x1)))
