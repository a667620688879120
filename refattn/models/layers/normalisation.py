"""Norms over the width: root mean square (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray
from refattn.models.layers.rows import by_rows, loop_rows


class NormCache(NamedTuple):
    """What a norm's backward needs.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    x : ndarray, shape (…, width)
        The input.
    mean : ndarray, shape (rows, 1), or None
        Of every row; None for the norm of the root mean square.
    rate : ndarray, shape (rows, 1)
        ``1/√(mean x² + ε)``, or of the variance, of every row.
    gain : ndarray, shape (width,)
        The factors.

    Examples
    --------
    >>> out, cache = rms_norm_forward([[3.0, 3.0]], [1.0, 1.0], 0.0)
    >>> cache.rate.round(3)
    array([[0.333]])
    """

    x: FloatArray
    mean: FloatArray | None
    rate: FloatArray
    gain: FloatArray


class NormGradients(NamedTuple):
    """Gradients of a norm.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    x, gain : ndarray, shapes (…, width), (width,)
        With respect to the input and the gain.
    shift : ndarray, shape (width,), or None
        With respect to the shift; None where there is none.

    Examples
    --------
    >>> out, cache = rms_norm_forward([[3.0, 3.0]], [1.0, 1.0], 0.0)
    >>> rms_norm_backward(out, cache).shift is None
    True
    """

    x: FloatArray
    gain: FloatArray
    shift: FloatArray | None


def rms_norm_forward(x: ArrayLike, gain: ArrayLike, eps: float) -> tuple[FloatArray, NormCache]:
    """``x / √(mean x² + ε) ∘ gain``, row by row.

    Parameters
    ----------
    x, gain : array_like, shapes (…, width), (width,)
        Rows and factors, both float32 or both float64.
    eps : float
        ε, at least 0.

    Returns
    -------
    out : ndarray, shape (…, width)
        The norm.
    cache : NormCache
        For `rms_norm_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). What the arrays hold is not checked. Source: Zhang and Sennrich 2019 (RMSNorm).

    Examples
    --------
    >>> rms_norm_forward([[3.0, 4.0]], [1.0, 10.0], 0.0)[0].round(4)
    array([[ 0.8485, 11.3137]])
    """
    from refattn.models.layers import _loops as loops

    x, gain = np.asarray(x), np.asarray(gain)
    rows = loop_rows("x", x, x.dtype, x.shape)
    (factors,) = loop_rows("gain", gain, x.dtype, x.shape[-1:])
    out, rate = np.empty_like(rows), np.empty((len(rows), 1), rows.dtype)
    least = rows.dtype.type(eps)
    by_rows(lambda some: loops.rms_norm(rows[some], factors, least, rate[some], out[some]), rows.shape)
    return out.reshape(x.shape), NormCache(x, None, rate, gain)


def rms_norm_backward(dout: ArrayLike, cache: NormCache) -> NormGradients:
    """Gradients of `rms_norm_forward`.

    With ``r = (mean x² + ε)^(−1/2)``, ``u = x r`` and ``du = dout ∘ gain``: ``∂r/∂x_j = −r³ x_j / width``, so

        dx = r du − r³ x mean(du ∘ x) = r (du − u mean(du ∘ u))        dgain = Σ_rows dout ∘ u.

    Parameters
    ----------
    dout : array_like, shape (…, width)
        Gradient of the loss with respect to the output, of the input's dtype.
    cache : NormCache
        From `rms_norm_forward`.

    Returns
    -------
    NormGradients
        Of x and the gain.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). Source: ours.

    Examples
    --------
    A row's length makes no difference, so no gradient points along it:

    >>> out, cache = rms_norm_forward([[3.0, 4.0]], [1.0, 1.0], 0.0)
    >>> dx = rms_norm_backward([[1.0, 2.0]], cache).x
    >>> abs(float(dx[0] @ [3.0, 4.0])) < 1e-15
    True
    """
    from refattn.models.layers import _loops as loops

    x, rate = cache.x, cache.rate
    rows, upstream = loop_rows("x", x, x.dtype, x.shape), loop_rows("dout", dout, x.dtype, x.shape)
    (factors,) = loop_rows("gain", cache.gain, x.dtype, x.shape[-1:])
    dx = np.empty_like(rows)

    def pull_back(some: slice) -> FloatArray:
        dgain = np.zeros(factors.shape, factors.dtype)
        loops.rms_norm_backward(upstream[some], rows[some], rate[some], factors, dx[some], dgain)
        return dgain

    dgain = sum_of(by_rows(pull_back, rows.shape))
    return NormGradients(dx.reshape(x.shape), dgain, None)


def layer_norm_forward(x: ArrayLike, gain: ArrayLike, shift: ArrayLike, eps: float) -> tuple[FloatArray, NormCache]:
    """``(x − mean x) / √(variance x + ε) ∘ gain + shift``, row by row.

    Parameters
    ----------
    x, gain, shift : array_like, shapes (…, width), (width,), (width,)
        Rows, factors and what is added, all float32 or all float64.
    eps : float
        As for `rms_norm_forward`.

    Returns
    -------
    out : ndarray, shape (…, width)
        The norm.
    cache : NormCache
        For `layer_norm_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). What the arrays hold is not checked. Source: Ba et al. 2016 (LayerNorm).

    Examples
    --------
    >>> layer_norm_forward([[1.0, 3.0]], [1.0, 10.0], [0.0, 5.0], 0.0)[0]
    array([[-1., 15.]])
    """
    from refattn.models.layers import _loops as loops

    x, gain = np.asarray(x), np.asarray(gain)
    rows = loop_rows("x", x, x.dtype, x.shape)
    (factors,) = loop_rows("gain", gain, x.dtype, x.shape[-1:])
    (added,) = loop_rows("shift", shift, x.dtype, x.shape[-1:])
    out, (mean, rate) = np.empty_like(rows), np.empty((2, len(rows), 1), rows.dtype)
    least = rows.dtype.type(eps)

    def norm(some: slice) -> None:
        loops.layer_norm(rows[some], factors, added, least, mean[some], rate[some], out[some])

    by_rows(norm, rows.shape)
    return out.reshape(x.shape), NormCache(x, mean, rate, gain)


def layer_norm_backward(dout: ArrayLike, cache: NormCache) -> NormGradients:
    """Gradients of `layer_norm_forward`.

    With ``c = x − mean x``, ``r = (mean c² + ε)^(−1/2)``, ``u = c r`` and ``du = dout ∘ gain``: as for the root mean
    square ``dc = r (du − u mean(du ∘ u))``, and ``dx = dc − mean dc``, where the mean of u is zero:

        dx = r (du − mean du − u mean(du ∘ u))        dgain = Σ_rows dout ∘ u        dshift = Σ_rows dout.

    Parameters
    ----------
    dout : array_like, shape (…, width)
        As for `rms_norm_backward`.
    cache : NormCache
        From `layer_norm_forward`.

    Returns
    -------
    NormGradients
        Of x, the gain and the shift.

    Raises
    ------
    ValueError
        Shapes do not fit, or the cache is that of another norm.

    Notes
    -----
    Time and memory O(size of x). Source: ours.

    Examples
    --------
    What is added to a whole row makes no difference, so its gradient sums to zero:

    >>> out, cache = layer_norm_forward([[1.0, 3.0, 8.0]], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 0.0)
    >>> dx = layer_norm_backward([[1.0, 2.0, 0.0]], cache).x
    >>> abs(float(dx.sum())) < 1e-15
    True
    """
    from refattn.models.layers import _loops as loops

    x, rate, mean = cache.x, cache.rate, cache.mean
    if mean is None:
        raise ValueError("cache: one of rms_norm_forward came, one of layer_norm_forward was wanted")
    rows, upstream = loop_rows("x", x, x.dtype, x.shape), loop_rows("dout", dout, x.dtype, x.shape)
    (factors,) = loop_rows("gain", cache.gain, x.dtype, x.shape[-1:])
    dx = np.empty_like(rows)

    def pull_back(some: slice) -> FloatArray:
        dgain, dshift, u = sums = np.zeros((3, rows.shape[1]), rows.dtype)
        loops.layer_norm_backward(
            upstream[some], rows[some], mean[some], rate[some], factors, dx[some], dgain, dshift, u
        )
        return sums[:2]

    dgain, dshift = sum_of(by_rows(pull_back, rows.shape))
    return NormGradients(dx.reshape(x.shape), dgain, dshift)


def sum_of(parts: list[FloatArray]) -> FloatArray:
    """Return the sum of the blocks' parts, in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
