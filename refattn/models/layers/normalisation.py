"""Norms over the width: root mean square (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray
from refattn.models.layers.rows import as_rows, by_rows


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
    x, gain = np.asarray(x), np.asarray(gain)
    rows = as_rows(x)
    out, rate = np.empty_like(rows), np.empty((len(rows), 1), rows.dtype)

    def norm(some: slice) -> None:
        rate[some] = 1 / np.sqrt(_mean_product(rows[some], rows[some]) + rows.dtype.type(eps))
        np.multiply(rows[some], rate[some], out=out[some])
        out[some] *= gain

    by_rows(norm, rows.shape)
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
    dout = np.asarray(dout)
    rows, upstream, rate = as_rows(cache.x), as_rows(dout), cache.rate
    dx = np.empty_like(rows)

    def pull_back(some: slice) -> FloatArray:
        # forward: out[some] *= gain
        u = rows[some] * rate[some]
        dgain = np.einsum("ri,ri->i", upstream[some], u)
        du = np.multiply(upstream[some], cache.gain, out=dx[some])
        # forward: out[some] = rows[some] * rate[some]
        u *= _mean_product(du, u)
        du -= u
        du *= rate[some]
        return np.asarray(dgain)

    dgain = sum_of(by_rows(pull_back, rows.shape))
    return NormGradients(dx.reshape(dout.shape), dgain, None)


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
    x, gain, shift = np.asarray(x), np.asarray(gain), np.asarray(shift)
    rows = as_rows(x)
    out, (mean, rate) = np.empty_like(rows), np.empty((2, len(rows), 1), rows.dtype)

    def norm(some: slice) -> None:
        mean[some] = rows[some].mean(axis=-1, keepdims=True)
        centred = np.subtract(rows[some], mean[some], out=out[some])
        rate[some] = 1 / np.sqrt(_mean_product(centred, centred) + rows.dtype.type(eps))
        out[some] *= rate[some]
        out[some] *= gain
        out[some] += shift

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
    dout = np.asarray(dout)
    rows, upstream, rate, mean = as_rows(cache.x), as_rows(dout), cache.rate, cache.mean
    if mean is None:
        raise ValueError("cache: one of rms_norm_forward came, one of layer_norm_forward was wanted")
    dx = np.empty_like(rows)

    def pull_back(some: slice) -> FloatArray:
        # forward: out[some] += shift
        dshift = upstream[some].sum(axis=0)
        # forward: out[some] *= gain
        u = rows[some] - mean[some]
        u *= rate[some]
        dgain = np.einsum("ri,ri->i", upstream[some], u)
        du = np.multiply(upstream[some], cache.gain, out=dx[some])
        # forward: out[some] *= rate[some]
        u *= _mean_product(du, u)
        # forward: centred = rows[some] - mean[some]
        du -= du.mean(axis=-1, keepdims=True)
        du -= u
        du *= rate[some]
        return np.stack([dgain, dshift])

    dgain, dshift = sum_of(by_rows(pull_back, rows.shape))
    return NormGradients(dx.reshape(dout.shape), dgain, dshift)


def sum_of(parts: list[FloatArray]) -> FloatArray:
    """Return the sum of the blocks' parts, in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _mean_product(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the mean over the width of ``a ∘ b``, shape (rows, 1)."""
    return np.asarray(np.einsum("ri,ri->r", a, b)[:, None] / a.dtype.type(a.shape[-1]))
