"""Measures of the difference between a result and its reference (ours)."""

from __future__ import annotations

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray, as_array


def row_errors(result: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Relative error of every row: ``max_j |result_ij − reference_ij| / max_j |reference_ij|``.

    One lost row shows, however large the others are. Where a reference row is zero the error is absolute; where either
    side holds a NaN or an infinity it is infinite.

    Parameters
    ----------
    result, reference : array_like, shape (…, n, d)
        What was computed and what is right.

    Returns
    -------
    ndarray, shape (…, n)
        Errors in float64.

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        The shapes differ, or have fewer than two axes.

    Notes
    -----
    Time and memory O(n d). Source: ours.

    Examples
    --------
    >>> [float(e) for e in row_errors([[1.0, 2.0], [0.0, 1e-9]], [[1.0, 2.0], [0.0, 2e-9]])]
    [0.0, 0.5]
    """
    got, right = _pair(result, reference)
    if right.ndim < 2:
        raise ValueError(f"result: shape {got.shape} came, (…, n, d) was wanted")
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(right).max(axis=-1)
        error = np.abs(got - right).max(axis=-1)
        error = np.divide(error, size, out=error, where=size > 0)
    return np.where(np.isfinite(error), error, np.inf)


def relative_error(result: ArrayLike, reference: ArrayLike) -> float:
    """Relative error in the Frobenius norm, ``‖result − reference‖ / ‖reference‖`` (absolute if that is zero).

    Parameters
    ----------
    result, reference : array_like
        Of one shape; compared in float64.

    Returns
    -------
    float
        The error; infinite where either side holds a NaN or an infinity.

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        The shapes differ.

    Notes
    -----
    Time and memory O(size). Source: ours.

    Examples
    --------
    >>> relative_error([3.0, 4.0], [3.0, 5.0]) < 0.18
    True
    """
    got, right = _pair(result, reference)
    with np.errstate(invalid="ignore", over="ignore"):
        unit = np.abs(right).max(initial=0.0) or 1.0  # the norm's squares neither overflow nor vanish
        error = np.linalg.norm((got - right) / unit) / (np.linalg.norm(right / unit) or 1.0)
    return float(error) if np.isfinite(error) else float("inf")


def _pair(result: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    got, right = _wide("result", result), _wide("reference", reference)
    if got.shape != right.shape:
        raise ValueError(f"result: shape {got.shape} came, the reference's {right.shape} was wanted")
    return got, right


def _wide(name: str, value: ArrayLike) -> FloatArray:
    """Return numbers of any real dtype, another library's half precisions and mpmath's too, as float64."""
    array = as_array(name, value)
    try:
        objects = array.flat if array.dtype == object else ()
        if array.dtype.kind in "cSUmM" or not all(isinstance(x, Real) for x in objects):
            raise TypeError
        with np.errstate(over="ignore"):
            return array.astype(np.float64, order="C")
    except (TypeError, ValueError):
        raise TypeError(f"{name}: dtype {array.dtype} came, real numbers were wanted") from None
