"""conv(a) and conv(a, m): lower-triangular Toeplitz matrices, dense and as products (arXiv 2405.05219, section 3).

Notation of the paper: ``conv(a)`` is the n×n lower-triangular Toeplitz matrix with first column a;
``conv(a, m)`` is zero but for its bottom-right m×m block, which is ``conv(a[:m])``. Products are additive:
``conv(a, m) x + conv(b, m) x = conv(a + b, m) x``.

A transform has an error relative to the norms of what it is given, and it also holds entries that are cut off, which
may be far larger than those that are kept. So the products that are public are judged by their size without
cancellation, ``s = max_i Σ_j |a_{i−j}| |x_j|`` of each column: where the error that is to be expected exceeds
`TOLERANCE` of it, the column is computed by the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn import _fft
from refattn._validation import FloatArray, as_count, as_float_arrays, as_option, require_finite, require_rank
from refattn.convbasis.bounds import convolution_error

TOLERANCE = {"float64": 1e-12, "float32": 1e-4}
"""Error of a column relative to its largest size without cancellation, from which on no transform is used."""
_NOTHING = -(1 << 20)
"""An exponent of two that every float underflows with."""


def conv_matrix(a: ArrayLike) -> FloatArray:
    """Dense ``conv(a)``.

    Parameters
    ----------
    a : array_like, shape (n,)
        First column.

    Returns
    -------
    ndarray, shape (n, n)
        Entry (i, j) is ``a[i − j]`` for i ≥ j, else 0.

    Raises
    ------
    TypeError, ValueError
        `a` is not a finite, non-empty vector of numbers.

    Notes
    -----
    Time and memory O(n²). Source: arXiv 2405.05219, definition of the convolution matrix. The dtype is that of `a`,
    float64 for integers.

    Examples
    --------
    >>> conv_matrix([1.0, 2.0, 3.0])
    array([[1., 0., 0.],
           [2., 1., 0.],
           [3., 2., 1.]])
    """
    (a,) = as_float_arrays(a=a)
    a = _as_vector(a)
    n = a.size
    dense = np.zeros((n, n), a.dtype)
    for j in range(n):
        dense[j:, j] = a[: n - j]
    return dense


def subconv_matrix(a: ArrayLike, m: int) -> FloatArray:
    """Dense ``conv(a, m)``: zero, but ``conv(a[:m])`` in the bottom-right m×m block.

    Parameters
    ----------
    a : array_like, shape (n,)
        First column of the block, in its first m entries; the others do not matter.
    m : int
        Size of the block, 1 ≤ m ≤ n.

    Returns
    -------
    ndarray, shape (n, n)
        The matrix.

    Raises
    ------
    TypeError, ValueError
        `a` is not a finite, non-empty vector of numbers, or `m` is out of range.

    Notes
    -----
    Time and memory O(n²). Source: arXiv 2405.05219, definition of the sub-convolution matrix. The dtype is that of `a`,
    float64 for integers.

    Examples
    --------
    >>> subconv_matrix([1.0, 2.0, 3.0], 2)
    array([[0., 0., 0.],
           [0., 1., 0.],
           [0., 2., 1.]])
    """
    (a,) = as_float_arrays(a=a)
    a = _as_vector(a)
    n = a.size
    m = as_count("m", m, least=1, most=n, most_is="n")
    dense = np.zeros((n, n), a.dtype)
    dense[n - m :, n - m :] = conv_matrix(a[:m])
    return dense


def conv_product(a: ArrayLike, x: ArrayLike, *, method: str = "fft") -> FloatArray:
    """Product ``conv(a) x``: the first n entries of the linear convolution of a with every column of x.

    Parameters
    ----------
    a : array_like, shape (n,)
        First column of the matrix.
    x : array_like, shape (n,) or (n, d)
        One vector, or d of them as columns.
    method : {"fft", "direct"}, optional
        ``"fft"``: O(n d log n) through a circulant of length at least 2n − 1; the error of an entry is at most 1e-12
        (float32: 1e-4) of ``max_i Σ_j |a_{i−j}| |x_j|`` *of its column*. Columns for which a transform does not give
        that, as where entries beyond the n that are kept would be far larger, are computed as by ``"direct"``.
        ``"direct"``: O(n² d) by the definition; the error is at most n units of rounding of the entry's own ``Σ_j
        |a_{i−j}| |x_j|``.

    Returns
    -------
    ndarray, shape of `x`
        The product.

    Raises
    ------
    TypeError, ValueError
        Inputs are not finite numbers or do not fit, the product overflows, or `method` is unknown.

    Notes
    -----
    Memory O(n d). Source: arXiv 2405.05219, the claim that conv(a) x takes O(n log n) by FFT. float32 if every input
    is, else float64.

    Examples
    --------
    >>> conv_product([1.0, 2.0, 3.0], [1.0, 0.0, 1.0], method="direct")
    array([1., 2., 4.])
    """
    a, x = as_float_arrays(a=a, x=x)
    a = _as_vector(a)
    require_rank("x", x, 1, "(n,) or (n, d)")
    if x.ndim > 2 or x.shape[0] != a.size:
        raise ValueError(f"x: shape {x.shape} came, ({a.size},) or ({a.size}, d) was wanted")
    as_option("method", method, ("fft", "direct"))
    columns = x.reshape(a.size, -1)
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        if method == "fft":
            product = fft_product(a, columns)
            lost = _lost_columns(a, columns, product)
            if lost.any():
                product[:, lost] = _conv_direct(a, columns[:, lost])
        else:
            product = _conv_direct(a, columns)
    require_finite("a, x: product", product)
    return product.reshape(x.shape)


def subconv_product(a: ArrayLike, m: int, x: ArrayLike, *, method: str = "fft") -> FloatArray:
    """Product ``conv(a, m) x``, which is ``[0; conv(a[:m]) x[n − m:]]``.

    Parameters
    ----------
    a, m : array_like, shape (n,), and int
        As for `subconv_matrix`.
    x, method : array_like, shape (n,) or (n, d), and {"fft", "direct"}
        As for `conv_product`.

    Returns
    -------
    ndarray, shape of `x`
        The product; its first n − m rows are zero.

    Raises
    ------
    TypeError, ValueError
        As for `conv_product`, or `m` is out of range.

    Notes
    -----
    Time O(m d log m) or O(m² d), memory O(n d). Source: arXiv 2405.05219, sub-convolution matrices. float32 if every
    input is, else float64.

    Examples
    --------
    >>> subconv_product([1.0, 2.0, 3.0], 2, [5.0, 1.0, 1.0], method="direct")
    array([0., 1., 3.])
    """
    a, x = as_float_arrays(a=a, x=x)
    a = _as_vector(a)
    m = as_count("m", m, least=1, most=a.size, most_is="n")
    require_rank("x", x, 1, "(n,) or (n, d)")
    if x.ndim > 2 or x.shape[0] != a.size:
        raise ValueError(f"x: shape {x.shape} came, ({a.size},) or ({a.size}, d) was wanted")
    product = np.zeros_like(x)
    product[a.size - m :] = conv_product(a[:m], x[a.size - m :], method=method)
    return product


def correlation(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Correlation of two sets of columns, summed over the columns: ``c[t] = Σ_j a[j + t] · b[j]``.

    Parameters
    ----------
    a : array_like, shape (m, d)
        Longer set.
    b : array_like, shape (s, d), s ≤ m
        Shorter set.

    Returns
    -------
    ndarray, shape (m,)
        For lags t from 0; terms with ``j + t ≥ m`` are left out.

    Raises
    ------
    TypeError, ValueError
        Inputs are not finite numbers or do not fit, or the correlation overflows.

    Notes
    -----
    Time O(m d log m), memory O(m d). The error of an entry is at most 1e-12 (float32: 1e-4) of ``max_t Σ_j |a[j + t]| ·
    |b[j]|``; where a transform does not give that, the correlation is computed by the definition, in O(m s d). The
    derivative of ``conv(a) x`` with respect to a is of this form. Source: ours. float32 if every input is, else
    float64.

    Examples
    --------
    >>> correlation([[1.0], [2.0], [3.0]], [[1.0], [10.0]]).round(12)
    array([21., 32.,  3.])
    """
    a, b = as_float_arrays(a=a, b=b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not 1 <= b.shape[0] <= a.shape[0]:
        raise ValueError(f"b: shape {b.shape} came, (s, d) with s ≤ m and a's (m, d) = {a.shape} was wanted")
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        found = fft_correlation(a, b)
        if _is_lost(a, b, found):
            found = _correlation_direct(a, b)
    require_finite("a, b: correlation", found)
    return found


def fft_correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    """`correlation` of arrays that fit, by FFT; what overflows is infinite or NaN."""
    a, exponents, largest = _scaled_pairs(a, b)
    b = np.ldexp(b, exponents - largest)  # times a, the columns have their sizes relative to the largest product
    length = _fft.fast_length(a.shape[0] + b.shape[0] - 1)
    a_hat, b_hat = (_fft.rfft(np.ascontiguousarray(x.T), length) for x in (a, b))
    return np.asarray(np.ldexp(_fft.irfft((a_hat * b_hat.conj()).sum(axis=0), length)[: a.shape[0]], largest))


def _scaled_pairs(a: FloatArray, b: FloatArray) -> tuple[FloatArray, NDArray[np.int64], int]:
    """Return a with columns near one, their exponents, and that of the largest product of two columns.

    A pair of which one column is zero has an exponent so small that it vanishes from sums, whatever the other is.
    """
    (a, e), (_, f) = near_one(a, axis=0), near_one(b, axis=0)
    used = a.any(axis=0) & b.any(axis=0)
    return a, np.where(used, e, _NOTHING), int((e + f)[used].max()) if used.any() else 0


def near_one(x: FloatArray, axis: int | None = None) -> tuple[FloatArray, Any]:
    """Return x times a power of two, its largest entry then between ½ and 1, and the exponent that undoes it.

    With `axis` every column has its own. Nothing in a transform of such numbers overflows, and nothing that counts
    underflows; no other bit changes.
    """
    exponent = np.frexp(np.abs(x).max(axis=axis, initial=0.0))[1]
    return np.ldexp(x, -exponent), exponent


def _as_vector(a: FloatArray) -> FloatArray:
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"a: shape {a.shape} came, (n,) with n ≥ 1 was wanted")
    return a


def fft_product(a: FloatArray, x: FloatArray) -> FloatArray:
    """``conv(a) x`` of arrays that fit, x of shape (n, d), by FFT; what overflows is infinite or NaN."""
    (a, e), (x, f) = near_one(a), near_one(x, axis=0)
    length = _fft.fast_length(2 * a.size - 1)
    x_hat = _fft.rfft(np.ascontiguousarray(x.T), length)
    return np.asarray(np.ldexp(_fft.irfft(_fft.rfft(a, length) * x_hat, length)[:, : a.size].T, e + f))


def _lost_columns(a: FloatArray, x: FloatArray, product: FloatArray) -> NDArray[np.bool_]:
    """Which columns of a `fft_product` may be off by more than `TOLERANCE` of their largest size."""
    (a, e), (x, f) = near_one(a), near_one(x, axis=0)
    a, x = np.abs(a), np.abs(x)
    error = _transform_error(_fft.fast_length(2 * a.size - 1), a[:, None], x)
    # max_i Σ_j |a_{i−j}| |x_j| is at least as large as an entry, and as the mean of the sums over i
    entry = np.ldexp(np.abs(product).max(axis=0), -(e + f)) - error
    lost = ~(error <= TOLERANCE[x.dtype.name] * entry)
    if lost.any():
        mean = np.cumsum(a)[::-1] @ x / a.size
        lost &= ~(error <= TOLERANCE[x.dtype.name] * mean)
    return np.asarray(lost)


def _is_lost(a: FloatArray, b: FloatArray, found: FloatArray) -> bool:
    """Whether a `fft_correlation` may be off by more than `TOLERANCE` of its largest size."""
    a, exponents, largest = _scaled_pairs(a, b)
    a, b = np.abs(a), np.abs(np.ldexp(b, exponents - largest))
    m, s = a.shape[0], b.shape[0]
    error = float(_transform_error(_fft.fast_length(m + s - 1), a, b).sum())
    # max_t Σ_j |a_{j+t}| |b_j| is at least as large as an entry, and as the mean of the sums over t
    entry = float(np.ldexp(np.abs(found).max(), -largest)) - error
    if error <= TOLERANCE[a.dtype.name] * entry:
        return False
    mean = float((np.cumsum(a[::-1], axis=0)[::-1][:s] * b).sum()) / m
    return not error <= TOLERANCE[a.dtype.name] * mean


def _transform_error(length: int, a: FloatArray, x: FloatArray) -> Any:
    """Error of the entries of a convolution by FFT, for every pair of columns of absolute values near one."""
    a1, x1 = a.sum(axis=0, dtype=np.float64), x.sum(axis=0, dtype=np.float64)
    a2, x2 = (np.sqrt(np.einsum("ij,ij->j", y, y, dtype=np.float64)) for y in (a, x))
    return convolution_error(length, x.dtype, factors=a2 * x2, product=np.minimum(a1 * x2, a2 * x1))


def _conv_direct(a: FloatArray, x: FloatArray) -> FloatArray:
    product = np.zeros_like(x)
    for j in np.flatnonzero(x.any(axis=1)):
        product[j:] += a[: a.size - j, None] * x[j]
    return product


def _correlation_direct(a: FloatArray, b: FloatArray) -> FloatArray:
    found = np.zeros(a.shape[0], a.dtype)
    for j in np.flatnonzero(b.any(axis=1)):
        found[: a.shape[0] - j] += a[j:] @ b[j]
    return found
