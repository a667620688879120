"""The paper's f as an operator: products by FFT, every row guarded (arXiv 2405.05219, section 4; the guard is ours).

Symbols as in `refattn.convbasis.paper`, whose `algorithm_1` is the paper's. Floating point breaks it in two ways, so
`Softmax.product`, which ``method="paper"`` calls, departs from it:

- ``b̃_i = exp(u_i) − exp(u_{i−1})`` cancels. Summed by parts over the segments, ``Σ_i conv(b̃_i, m_i) x`` is
  ``Σ_i conv(g_i, m_i) x_i`` with ``g_i = exp(u_i)`` and x_i the entries of x in segment i: as many products, and no
  cancellation.
- The error of an FFT is relative to the largest entry of its result, so rows with small denominators drown, and rows
  whose vectors are small or zero. The error of every row of every product is estimated from the vectors that are
  multiplied, and compared with the row's natural size: what it would be if nothing cancelled. Rows above a tolerance
  are computed from their logits directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.toeplitz import fft_product, near_one

_BLOCK_ENTRIES = 1 << 21


class RowReport(NamedTuple):
    """The rows of a product that were computed directly, and the largest estimated error of the others, 0 for none."""

    rows: NDArray[np.int64]
    largest_bound: float


class Softmax:
    """The paper's f: the row-stochastic matrix ``D̃⁻¹ Σ_i conv(b̃_i, m_i)`` of one head, as an operator.

    `lower` is the basis of the logits on and below the diagonal, `upper` that of the transposed logits, of which those
    above the diagonal are used; None for causal attention. `D` are the row sums, of the exponentials shifted by the
    largest logit; the rows that are `lost` of them are computed from their logits, each with its own maximum. In
    float64, ``f_ij = exp(logit_ij − log_sum_exp_i)``.

    The natural size of row i of ``f w`` is ``Σ_j f_ij ‖w_j‖_∞``, that of row j of ``fᵀ w`` is ``Σ_i f_ij ‖w_i‖_∞``; of
    a column of w that is smaller than the others, as much less. A row whose estimated error is more than `tol` times
    that is computed directly. A product with w of shape (n, d) takes O(k n d log n + r n d), r such rows.
    """

    def __init__(self, lower: ConvBasis, upper: ConvBasis | None, tol: float) -> None:
        self.lower, self.upper, self.tol = lower, upper, tol
        shift = lower.largest if upper is None else max(lower.largest, upper.largest)
        self.g = lower.exp_transform(shift)
        self.g_upper = None if upper is None else strict(upper.exp_transform(shift))
        ones = np.ones((lower.n, 1), lower.kernels.dtype)
        self.D = self._numerator(ones)[:, 0]
        error = self._numerator_noise(ones)
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = error / (self.D - error)
        kept = (bound >= 0) & (bound <= tol / 2)  # NaN and negative denominators are not kept
        self.lost = np.flatnonzero(~kept)
        self._denominator_bound = float(bound[kept].max(initial=0.0))
        self.log_sum_exp = np.full(lower.n, np.nan)
        self.log_sum_exp[kept] = np.log(self.D[kept], dtype=np.float64) + shift
        for rows in self.blocks(self.lost):
            logits = self._logits(rows).astype(np.float64)
            largest = logits.max(axis=1, keepdims=True)
            self.log_sum_exp[rows] = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))

    def apply(self, w: FloatArray) -> FloatArray:
        """``f w``, shape (n, d), every row within the tolerance or computed directly."""
        return self.product(w)[0]

    def apply_transposed(self, w: FloatArray) -> FloatArray:
        """``fᵀ w``, shape (n, d), every row within the tolerance or computed directly."""
        return self.transposed_product(w)[0]

    def product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``f w``, shape (n, d), and what became of its rows."""
        size = row_sizes(near_one(w)[0])
        w, exponent = near_one(w, axis=0)  # columns in units of their own, in which nothing overflows
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            y = self._numerator(w) / self.D[:, None]
            bound = row_bound(
                self._numerator_noise(w) / self.D,
                self._numerator(size)[:, 0] / self.D,
                self._numerator_noise(size) / self.D,
            )
        bound[self.lost] = np.inf
        report = self._report(bound)
        for rows in self.blocks(report.rows):
            y[rows] = self.rows(rows) @ w
        return scaled_back(y, exponent), report

    def transposed_product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``fᵀ w``, shape (n, d), and what became of its rows, which are the keys'."""
        size = row_sizes(near_one(w)[0])
        w, exponent = near_one(w, axis=0)
        z, z_size = self.over_D(w), self.over_D(size)
        y, natural = self._transposed_numerator(z), self._transposed_numerator(z_size)[:, 0]
        for rows in self.blocks(self.lost):
            weights = self.rows(rows).T
            y += weights @ w[rows]
            natural += weights @ size[rows, 0]
        report = self._report(row_bound(self._transposed_noise(z), natural, self._transposed_noise(z_size)))
        for columns in self.blocks(report.rows):
            y[columns] = self.columns(columns) @ w
        return scaled_back(y, exponent), report

    def over_D(self, w: FloatArray) -> FloatArray:
        """``D̃⁻¹ w`` in the rows that are kept, zero in the lost ones."""
        scale = np.zeros_like(self.D)
        kept = np.ones(self.D.size, dtype=bool)
        kept[self.lost] = False
        np.divide(1, self.D, out=scale, where=kept)
        return np.asarray(scale[:, None] * w)

    def rows(self, rows: NDArray[np.int64]) -> FloatArray:
        """Dense rows of f, from the logits of the basis; O(n) a row."""
        logits = self._logits(rows)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def columns(self, columns: NDArray[np.int64]) -> FloatArray:
        """Dense columns of f as rows of the result, in float64, from the logits of the basis; O(n) a column."""
        before = np.arange(self.lower.n) < columns[:, None]
        rest = np.asarray(-np.inf) if self.upper is None else self.upper.rows(columns)
        return np.asarray(np.exp(np.where(before, rest, self.lower.columns(columns)) - self.log_sum_exp))

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The given rows, as many at a time as are formed densely."""
        step = max(1, _BLOCK_ENTRIES // self.lower.n)
        return (rows[start : start + step] for start in range(0, rows.size, step))

    def _logits(self, rows: NDArray[np.int64]) -> FloatArray:
        above = np.arange(self.lower.n) > rows[:, None]
        rest = np.asarray(-np.inf, self.D.dtype) if self.upper is None else self.upper.columns(rows)
        return np.where(above, rest, self.lower.rows(rows))

    def _report(self, bound: NDArray[np.float64]) -> RowReport:
        """Half of the tolerance is the denominators', half the numerators'."""
        kept = bound <= self.tol / 2  # NaN is not kept
        return RowReport(np.flatnonzero(~kept), float(bound[kept].max(initial=0.0)) + self._denominator_bound)

    def _numerator(self, w: FloatArray) -> FloatArray:
        y = segment_product(self.g, w)
        if self.g_upper is not None:
            y += transposed_product(self.g_upper, w)
        return y

    def _transposed_numerator(self, z: FloatArray) -> FloatArray:
        y = transposed_product(self.g, z)
        if self.g_upper is not None:
            y += segment_product(self.g_upper, z)
        return y

    def _numerator_noise(self, w: FloatArray) -> NDArray[np.float64]:
        """Error of the entries of a row of `_numerator`."""
        noise = segment_noise(self.g, w)
        return noise if self.g_upper is None else np.hypot(noise, transposed_noise(self.g_upper, w))

    def _transposed_noise(self, z: FloatArray) -> NDArray[np.float64]:
        """Error of the entries of a row of `_transposed_numerator`."""
        noise = transposed_noise(self.g, z)
        return noise if self.g_upper is None else np.hypot(noise, segment_noise(self.g_upper, z))


def row_sizes(w: FloatArray) -> FloatArray:
    """``‖w_j‖_∞`` of every row, shape (n, 1)."""
    return np.asarray(np.abs(w).max(axis=1, keepdims=True))


def row_bound(error: FloatArray, size: FloatArray, size_error: FloatArray | float) -> NDArray[np.float64]:
    """Error relative to a natural size that is itself known within an error; infinite where it may be zero.

    Where nothing was multiplied, nothing was lost: an error of zero is none, whatever the size.
    """
    least = np.asarray(size, np.float64) - size_error
    bound = np.full(least.shape, np.inf)
    np.divide(error, least, out=bound, where=least > 0)
    bound[error == 0] = 0
    return bound


def scaled_back(y: FloatArray, exponent: NDArray[np.int64]) -> FloatArray:
    """``y · 2^exponent``; what overflows is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(np.ldexp(y, exponent))


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


def segment_noise(g: ConvBasis, x: FloatArray) -> NDArray[np.float64]:
    """Error of the entries of a row of `segment_product`."""
    noise = _underflow(g, x)
    for c, end, kernel in segments(g):
        noise[c:] = np.hypot(noise[c:], _product_noise(kernel, x[c:end]))
    return noise


def transposed_noise(g: ConvBasis, x: FloatArray) -> NDArray[np.float64]:
    """Error of the entries of a row of `transposed_product`."""
    noise = _underflow(g, x)
    for c, end, kernel in segments(g):
        noise[c:end] = np.hypot(noise[c:end], _product_noise(kernel, x[c:]))
    return noise


def _underflow(g: ConvBasis, x: FloatArray) -> NDArray[np.float64]:
    """What underflows is lost whatever the method."""
    return np.full(g.n, g.n * float(np.finfo(x.dtype).tiny) * float(np.abs(x).max(initial=0.0)))


def _product_noise(a: FloatArray, x: FloatArray) -> float:
    """Error of an entry of ``conv(a) x`` by FFT, that of the worst column of x."""
    largest = float(np.abs(a).max())
    if largest == 0:
        return 0.0
    length = _fft.fast_length(2 * a.size - 1)
    relative = np.abs(a, dtype=np.float64) / largest  # whose squares do not underflow, however small the kernel
    a1, a2 = relative.sum(), np.linalg.norm(relative)
    x = np.abs(x, dtype=np.float64)
    x1, x2 = x.sum(axis=0), np.sqrt(np.square(x).sum(axis=0))
    return largest * float(
        convolution_error(length, a.dtype, factors=a2 * x2, product=np.minimum(a1 * x2, a2 * x1)).max()
    )
