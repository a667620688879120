"""Kernels that minimise the squared error of the logits for given starts: the means of the diagonals (ours).

With the starts fixed, the squared error ``Σ_{i≥j} (H_ij − H'_ij)²`` falls apart into one sum for every segment i and
lag t, over the columns j of the segment with j + t < n; the minimiser of each is the mean

    u_i[t] = Σ_j H[j + t, j] / count_i,t,     count_i,t = min(c_{i+1}, n − t) − c_i.

`segment_means` takes it from a matrix, by the definition. `least_squares_basis` takes it from q and k without forming
H: ``Σ_j q[j + t] · k[j]`` is a correlation. Keys are cut into pieces, each of one segment and of one of the blocks of B
rows. A transform of 2B points over the queries of the blocks w and w + 1 gives, without wrapping round, the lags
``(w − p) B … (w − p) B + B − 1`` of a piece in block p. So windows and pieces are transformed once, and the sums of
their products back once for every segment and difference w − p.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn import _fft
from refattn._fft import ComplexArray
from refattn._memory import require_memory
from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_float_arrays, as_scale, require_finite
from refattn.convbasis.basis import ConvBasis, as_head, as_starts, require_lower_triangular

Integers = NDArray[np.int64]

_SHORTEST, _FEWEST_BLOCKS, _PIECES = 32, 16, 64
"""Least length of a block, blocks there are at least where that allows, and pieces that are worked on at once."""


def least_squares_basis(q: ArrayLike, k: ArrayLike, starts: ArrayLike, *, scale: float | None = None) -> ConvBasis:
    """Basis with given starts whose kernels minimise the squared error of the causal logits.

    Parameters
    ----------
    q, k : array_like, shape (n, d)
        Queries and keys of one head, float32 or float64.
    starts : array_like of int, shape (s,)
        First columns of the segments, strictly increasing. Columns before the first are represented by zero.
    scale : float, optional
        As for `recover`.

    Returns
    -------
    ConvBasis
        ``kernels[i, t]`` is the mean of ``scale · q[j + t] · k[j]`` over the columns j of segment i with j + t < n. Of
        the dtype of `q` and `k`; computed in float64.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, the starts are not increasing columns, or an entry or a logit is not finite.
    MemoryError
        The kernels or the transforms do not fit.

    Notes
    -----
    Time O(s n d + n d log n), memory O(n (s + d)); n × n is never formed. The sums, not the means, have the rounding of
    an FFT: about ``u √log n`` times the norms of the queries and keys of a block. A lag that few columns have is
    divided by few. Source: ours; `basis_from_starts` has the paper's kernels, which are single columns.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 6, 4))
    >>> h = np.tril(q @ k.T / 2)
    >>> basis = least_squares_basis(q, k, [0, 3])
    >>> bool(np.isclose(basis.kernels[0, 1], (h[1, 0] + h[2, 1] + h[3, 2]) / 3))
    True
    """
    q, k = as_head(q, k)
    n, d = q.shape
    columns = as_starts(starts, n)
    require_memory("starts: the kernels and their transforms", 8 * n * (2 * columns.size + 4 * d + 4 * _PIECES))
    with np.errstate(over="ignore", invalid="ignore"):
        kernels = _diagonal_sums(q.astype(np.float64), k.astype(np.float64) * as_scale(scale, d, q.dtype), columns)
        kernels /= _counts(columns, n)
        kernels = kernels.astype(q.dtype, copy=False)
    require_finite("q, k: logits", kernels)
    return ConvBasis(columns, kernels)


def segment_means(h: ArrayLike, starts: ArrayLike) -> ConvBasis:
    """Basis with given starts whose kernels minimise the squared distance to a lower-triangular matrix.

    Parameters
    ----------
    h : array_like, shape (n, n)
        Lower-triangular, float32 or float64.
    starts : array_like of int, shape (s,)
        As for `least_squares_basis`.

    Returns
    -------
    ConvBasis
        ``kernels[i, t]`` is the mean of ``h[j + t, j]`` over the columns j of segment i with j + t < n. Of the dtype of
        `h`.

    Raises
    ------
    TypeError, ValueError
        `h` is not a square, finite, lower-triangular matrix of numbers, or the starts are not increasing columns.

    Notes
    -----
    Time O(n²), memory O(s n). Source: ours.

    Examples
    --------
    >>> segment_means([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0], [3.0, 4.0, 8.0]], [0, 2]).kernels
    array([[2., 3., 3.],
           [8., 0., 0.]])
    """
    (h,) = as_float_arrays(h=h)
    require_lower_triangular(h)
    n = h.shape[0]
    columns = as_starts(starts, n)
    sums = np.zeros((columns.size, n))
    for kernel, first, end in zip(sums, columns, np.append(columns[1:], n), strict=True):
        for j in range(first, end):
            kernel[: n - j] += h[j:, j]
    return ConvBasis(columns, (sums / _counts(columns, n)).astype(h.dtype, copy=False))


def _counts(starts: Integers, n: int) -> Integers:
    """How many columns of every segment have lag t, shape (s, n); 1 where there is none, and the sum is 0."""
    ends = np.append(starts[1:], n)
    counts: Integers = np.minimum(ends[:, None], n - np.arange(n)) - starts[:, None]
    return np.maximum(counts, 1)


def _diagonal_sums(q: FloatArray, k: FloatArray, starts: Integers) -> FloatArray:
    """``Σ_j q[j + t] · k[j]`` over the columns of every segment, shape (s, n)."""
    n = q.shape[0]
    block = max(1 << (n // max(starts.size, _FEWEST_BLOCKS)).bit_length(), _SHORTEST)
    windows = -(-n // block)
    q_hat = _transformed_windows(q, block, windows)
    sums = np.zeros((starts.size, windows * block))
    segment, first, end = _pieces(starts, n, block)
    for begin in range(0, segment.size, _PIECES):
        some = slice(begin, begin + _PIECES)
        k_hat = _transformed_pieces(k, first[some], end[some], block)
        with one_blas_thread():  # many small products
            products = np.matmul(q_hat, k_hat)  # (frequency, window, piece)
        for i in np.unique(segment[some]):
            mine = np.flatnonzero(segment[some] == i)
            total = np.zeros((windows, block + 1), np.complex128)
            for place in mine:
                own = int(first[some][place]) // block
                total[: windows - own] += products[:, own:, place].T
            sums[i] += _fft.irfft(total, 2 * block)[:, :block].ravel()
    for row, start in zip(sums, starts, strict=True):
        row[n - start :] = 0  # rounding, where nothing is left of the column
    return sums[:, :n]


def _pieces(starts: Integers, n: int, block: int) -> tuple[Integers, Integers, Integers]:
    """Cut the segments where blocks begin: segment, first column and end of every piece."""
    cuts = np.unique(np.concatenate([starts, np.arange(starts[0] // block + 1, -(-n // block)) * block]))
    segment: Integers = np.searchsorted(starts, cuts, side="right") - 1
    return segment, cuts, np.append(cuts[1:], n)


def _transformed_windows(q: FloatArray, block: int, windows: int) -> ComplexArray:
    """Spectra of the rows ``w B … (w + 2) B − 1`` for every w, shape (B + 1, windows, d)."""
    n, d = q.shape
    padded = np.zeros((d, (windows + 1) * block))
    padded[:, :n] = q.T
    spectra = np.empty((block + 1, windows, d), np.complex128)
    for w in range(windows):
        spectra[:, w] = _fft.rfft(padded[:, w * block : (w + 2) * block], 2 * block).T
    return spectra


def _transformed_pieces(k: FloatArray, first: Integers, end: Integers, block: int) -> ComplexArray:
    """Conjugate spectra of pieces of keys, each where it stands in its block, shape (B + 1, d, pieces)."""
    spectra = np.empty((block + 1, k.shape[1], first.size), np.complex128)
    for place, (low, high) in enumerate(zip(first, end, strict=True)):
        own = low % block
        piece = np.zeros((k.shape[1], block))
        piece[:, own : own + high - low] = k[low:high].T
        spectra[:, :, place] = _fft.rfft(piece, 2 * block).conj().T
    return spectra
