"""Measures of the difference between a result and its reference (ours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray


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
    ValueError
        The shapes differ, or have fewer than two axes.

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
        Of one shape.

    Returns
    -------
    float
        The error; infinite where either side holds a NaN or an infinity.

    Raises
    ------
    ValueError
        The shapes differ.

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
    got, right = np.asarray(result, np.float64), np.asarray(reference, np.float64)
    if got.shape != right.shape:
        raise ValueError(f"result: shape {got.shape} came, the reference's {right.shape} was wanted")
    return got, right
