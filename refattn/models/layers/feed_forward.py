"""What bends between the two maps of a feed-forward block: SwiGLU (Shazeer 2020), or GELU (Hendrycks and Gimpel 2016).

GELU is in the form that GPT-2 uses, ``½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray
from refattn.models.layers.rows import as_rows, by_rows, loop_rows

_CUBE = 0.044715
_RATE = math.sqrt(2 / math.pi)


class SwiGLUCache(NamedTuple):
    """What `swiglu_backward` needs.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    gate, up, open : ndarray, shape (…, width)
        The inputs, and ``σ(gate)``.

    Examples
    --------
    >>> swiglu_forward([[0.0]], [[2.0]])[1].open
    array([[0.5]])
    """

    gate: FloatArray
    up: FloatArray
    open: FloatArray


class SwiGLUGradients(NamedTuple):
    """Gradients of SwiGLU.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    gate, up : ndarray, shape (…, width)
        With respect to the inputs.

    Examples
    --------
    >>> out, cache = swiglu_forward([[0.0]], [[2.0]])
    >>> swiglu_backward([[1.0]], cache)
    SwiGLUGradients(gate=array([[1.]]), up=array([[0.]]))
    """

    gate: FloatArray
    up: FloatArray


def swiglu_forward(gate: ArrayLike, up: ArrayLike) -> tuple[FloatArray, SwiGLUCache]:
    """``silu(gate) ∘ up`` with ``silu(x) = x σ(x)`` and ``σ(x) = 1/(1 + e^(−x))``.

    Parameters
    ----------
    gate, up : array_like, shape (…, width)
        Both float32 or both float64.

    Returns
    -------
    out : ndarray, shape (…, width)
        The product.
    cache : SwiGLUCache
        For `swiglu_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of gate). Source: Shazeer 2020 (SwiGLU).

    Examples
    --------
    >>> swiglu_forward([[1.0, -1.0]], [[1.0, 2.0]])[0].round(4)
    array([[ 0.7311, -0.5379]])
    """
    from refattn.models.layers import _loops as loops

    gate, up = np.asarray(gate), np.asarray(up)
    x = loop_rows("gate", gate, gate.dtype, gate.shape)
    factor = loop_rows("up", up, gate.dtype, gate.shape)
    opening, out = np.empty_like(x), np.empty_like(x)
    bend = loops.swiglu[x.dtype]
    by_rows(lambda some: bend(x[some], factor[some], opening[some], out[some]), x.shape)
    return out.reshape(gate.shape), SwiGLUCache(gate, up, opening.reshape(gate.shape))


def swiglu_backward(dout: ArrayLike, cache: SwiGLUCache) -> SwiGLUGradients:
    """Gradients of `swiglu_forward`.

    With ``σ' = σ (1 − σ)``, ``silu'(x) = σ + x σ (1 − σ) = σ (1 + x (1 − σ))``, so

        dgate = dout ∘ up ∘ σ (1 + gate (1 − σ))        dup = dout ∘ gate ∘ σ.

    Parameters
    ----------
    dout : array_like, shape (…, width)
        Gradient of the loss with respect to the output, of the inputs' dtype.
    cache : SwiGLUCache
        From `swiglu_forward`.

    Returns
    -------
    SwiGLUGradients
        Of gate and up.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of gate). Source: ours.

    Examples
    --------
    >>> out, cache = swiglu_forward([[1.0]], [[2.0]])
    >>> swiglu_backward([[1.0]], cache).gate.round(4)
    array([[1.8553]])
    """
    from refattn.models.layers import _loops as loops

    gate = cache.gate
    x, factor, opening, upstream = (
        loop_rows(name, array, gate.dtype, gate.shape)
        for name, array in (("gate", gate), ("up", cache.up), ("open", cache.open), ("dout", dout))
    )
    dgate, dup = np.empty_like(x), np.empty_like(x)

    def pull_back(some: slice) -> None:
        loops.swiglu_backward(upstream[some], x[some], factor[some], opening[some], dgate[some], dup[some])

    by_rows(pull_back, x.shape)
    return SwiGLUGradients(dgate.reshape(gate.shape), dup.reshape(gate.shape))


class GELUCache(NamedTuple):
    """What `gelu_backward` needs.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    x, tanh : ndarray, shape (…, width)
        The input, and the hyperbolic tangent in the formula.

    Examples
    --------
    >>> gelu_forward([[0.0]])[1].tanh
    array([[0.]])
    """

    x: FloatArray
    tanh: FloatArray


def gelu_forward(x: ArrayLike) -> tuple[FloatArray, GELUCache]:
    """``½ x (1 + t)`` with ``t = tanh(c (x + a x³))``, ``c = √(2/π)``, ``a = 0.044715``.

    Parameters
    ----------
    x : array_like, shape (…, width)
        The input, float32 or float64.

    Returns
    -------
    out : ndarray, shape (…, width)
        Of every entry.
    cache : GELUCache
        For `gelu_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(size of x). Source: Hendrycks and Gimpel 2016 (GELU), the approximation that GPT-2 uses.

    Examples
    --------
    >>> gelu_forward([[1.0, -1.0]])[0].round(4)
    array([[ 0.8412, -0.1588]])
    """
    x = np.asarray(x)
    rows = as_rows(x)
    t, out = np.empty_like(rows), np.empty_like(rows)

    def bend(some: slice) -> None:
        inner = np.square(rows[some], out=t[some])
        inner *= _CUBE * _RATE
        inner += _RATE
        inner *= rows[some]
        np.tanh(inner, out=inner)
        np.add(inner, 1, out=out[some])
        out[some] *= rows[some]
        out[some] *= 0.5

    by_rows(bend, rows.shape)
    return out.reshape(x.shape), GELUCache(x, t.reshape(x.shape))


def gelu_backward(dout: ArrayLike, cache: GELUCache) -> FloatArray:
    """Gradient of `gelu_forward`.

    With ``t' = (1 − t²) c (1 + 3 a x²)``, the derivative is ``½ (1 + t + x t')``.

    Parameters
    ----------
    dout : array_like, shape (…, width)
        Gradient of the loss with respect to the output, of the input's dtype.
    cache : GELUCache
        From `gelu_forward`.

    Returns
    -------
    ndarray, shape (…, width)
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
    >>> out, cache = gelu_forward([[0.0, 1.0]])
    >>> gelu_backward([[1.0, 1.0]], cache).round(4)
    array([[0.5  , 1.083]])
    """
    x, t, upstream = as_rows(cache.x), as_rows(cache.tanh), as_rows(np.asarray(dout))
    dx = np.empty_like(x)

    def pull_back(some: slice) -> None:
        # forward: inner = tanh(c (x + a x³))
        slope = np.square(x[some], out=dx[some])
        slope *= 3 * _CUBE * _RATE
        slope += _RATE
        slope *= 1 - np.square(t[some])
        # forward: out = ½ x (1 + inner)
        slope *= x[some]
        slope += t[some]
        slope += 1
        slope *= 0.5
        slope *= upstream[some]

    by_rows(pull_back, x.shape)
    return dx.reshape(cache.x.shape)
