"""Rotary positions (Su et al. 2021).

At position p every pair of neighbours ``(x_2i, x_2i+1)`` is turned by the angle ``p · base^(−2i/d)``: as a complex
number ``x_2i + i x_2i+1`` it is multiplied by ``exp(i · angle)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refattn._validation import FloatArray

ComplexArray = NDArray[np.complexfloating[Any, Any]]


def rotation(start: int, n: int, d: int, base: float, dtype: DTypeLike) -> ComplexArray:
    """Return ``exp(i · angle)`` of n positions and d/2 pairs.

    Parameters
    ----------
    start, n, d : int
        The first position, how many, and the width of a head, which is even.
    base : float
        Base of the angles, above 0.
    dtype : {float32, float64}
        Of what is turned.

    Returns
    -------
    ndarray of complex64 or complex128, shape (n, d/2)
        Computed in float64.

    Raises
    ------
    TypeError
        `dtype` is no dtype.

    Notes
    -----
    Time and memory O(n d). Source: Su et al. 2021 (RoPE).

    Examples
    --------
    >>> rotation(0, 2, 2, 1e4, "float64").round(4)
    array([[1.    +0.j    ], [0.5403+0.8415j]])
    """
    return rotation_at(np.arange(start, start + n), d, base, dtype)


def rotation_at(positions: NDArray[np.int64], d: int, base: float, dtype: DTypeLike) -> ComplexArray:
    """Return the same at any positions, shape (n,), in any order."""
    angles = positions[:, None] * base ** (-np.arange(0, d, 2) / d)
    turn: ComplexArray = np.exp(1j * angles).astype(np.result_type(dtype, np.complex64))
    return turn


def rotary_forward(x: ArrayLike, turn: ComplexArray) -> tuple[FloatArray, ComplexArray]:
    """Turn every pair of neighbours by the angle of its position.

    Parameters
    ----------
    x : array_like, shape (…, n, d)
        Queries or keys, float32 or float64, the last axis contiguous.
    turn : ndarray of complex, shape (n, d/2)
        From `rotation`, in the precision of x.

    Returns
    -------
    out : ndarray, shape (…, n, d)
        What was turned.
    cache : ndarray of complex, shape (n, d/2)
        For `rotary_backward`: the turn.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). Source: Su et al. 2021 (RoPE).

    Examples
    --------
    >>> rotary_forward([[1.0, 0.0], [1.0, 0.0]], rotation(0, 2, 2, 1e4, "float64"))[0].round(4)
    array([[1.    , 0.    ], [0.5403, 0.8415]])
    """
    return _times(np.asarray(x), turn), turn


def rotary_backward(dout: ArrayLike, cache: ComplexArray) -> FloatArray:
    """Gradient of `rotary_forward` with respect to x.

    A turn is an orthogonal map, so its transpose is the turn by the opposite angle: ``dx = dout · exp(−i · angle)``.

    Parameters
    ----------
    dout : array_like, shape (…, n, d)
        Gradient of the loss with respect to the output, of the input's dtype.
    cache : ndarray of complex, shape (n, d/2)
        From `rotary_forward`.

    Returns
    -------
    ndarray, shape (…, n, d)
        With respect to x.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). Source: ours.

    Examples
    --------
    >>> x = [[1.0, 0.0], [1.0, 3.0]]
    >>> out, cache = rotary_forward(x, rotation(0, 2, 2, 1e4, "float64"))
    >>> bool(np.allclose(rotary_backward(out, cache), x))
    True
    """
    # forward: out = x · exp(i · angle)
    return _times(np.asarray(dout), cache.conj())


def _times(x: FloatArray, turn: ComplexArray) -> FloatArray:
    """Multiply pairs of neighbours as complex numbers."""
    out = np.empty(x.shape, x.dtype)
    np.multiply(x.view(turn.dtype), turn, out=out.view(turn.dtype))
    return out
