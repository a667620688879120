"""Linear maps of rows, ``x Wᵀ + b``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray
from refattn.models.layers.products import products
from refattn.models.layers.rows import as_rows


class LinearCache(NamedTuple):
    """What `linear_backward` needs.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    x, weight : ndarray, shapes (…, inputs), (outputs, inputs)
        The input and the map.

    Examples
    --------
    >>> out, cache = linear_forward([[1.0, 2.0]], [[3.0, 4.0]])
    >>> cache.weight
    array([[3., 4.]])
    """

    x: FloatArray
    weight: FloatArray


class LinearGradients(NamedTuple):
    """Gradients of a linear map.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    x : ndarray, shape (…, inputs)
        With respect to the input.
    weight, bias : ndarray, shapes (outputs, inputs), (outputs,), or None
        With respect to the map and what is added; None where they were not asked for.

    Examples
    --------
    >>> out, cache = linear_forward([[1.0, 2.0]], [[3.0, 4.0]])
    >>> linear_backward([[1.0]], cache)
    LinearGradients(x=array([[3., 4.]]), weight=array([[1., 2.]]), bias=None)
    """

    x: FloatArray
    weight: FloatArray | None
    bias: FloatArray | None


def linear_forward(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> tuple[FloatArray, LinearCache]:
    """``x Wᵀ + b``, row by row.

    Parameters
    ----------
    x, weight : array_like, shapes (…, inputs), (outputs, inputs)
        Rows and the map, both float32 or both float64.
    bias : array_like, shape (outputs,), optional
        What is added to every row.

    Returns
    -------
    out : ndarray, shape (…, outputs)
        The mapped rows.
    cache : LinearCache
        For `linear_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time O(rows · inputs · outputs): one product. What the arrays hold is not checked. Source: the definition.

    Examples
    --------
    >>> linear_forward([[1.0, 2.0]], [[3.0, 4.0], [0.0, 1.0]], [0.0, 10.0])[0]
    array([[11., 12.]])
    """
    x, weight = np.asarray(x), np.asarray(weight)
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"x, weight: shapes {x.shape}, {weight.shape} came, (…, inputs), (outputs, inputs) were wanted"
        )
    (out,) = products((as_rows(x), weight.T))
    if bias is not None:
        out += np.asarray(bias)
    return out.reshape(*x.shape[:-1], len(weight)), LinearCache(x, weight)


def linear_backward(dout: ArrayLike, cache: LinearCache, *, weight: bool = True, bias: bool = False) -> LinearGradients:
    """Gradients of `linear_forward`.

    With ``out_ro = Σ_i x_ri W_oi + b_o`` for every row r,

        dx_ri = Σ_o dout_ro W_oi        dW_oi = Σ_r dout_ro x_ri        db_o = Σ_r dout_ro.

    Parameters
    ----------
    dout : array_like, shape (…, outputs)
        Gradient of the loss with respect to the output, of the input's dtype.
    cache : LinearCache
        From `linear_forward`.
    weight, bias : bool, optional
        Whether their gradients are wanted.

    Returns
    -------
    LinearGradients
        Of x, and of the map and the bias where wanted.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time O(rows · inputs · outputs) a gradient: one product each. Source: ours.

    Examples
    --------
    >>> out, cache = linear_forward([[1.0, 2.0], [0.0, 1.0]], [[3.0, 4.0]], [0.5])
    >>> linear_backward([[1.0], [2.0]], cache, bias=True)
    LinearGradients(x=array([[3., 4.], [6., 8.]]), weight=array([[1., 4.]]), bias=array([3.]))
    """
    dout = np.asarray(dout)
    if dout.shape != (wanted := (*cache.x.shape[:-1], len(cache.weight))):
        raise ValueError(f"dout: shape {dout.shape} came, {wanted} was wanted")
    x, upstream = as_rows(cache.x), as_rows(dout)
    # forward: out += bias
    dbias = upstream.sum(axis=0) if bias else None
    # forward: out = x @ weight.T
    dx, *dweight = products((upstream, cache.weight), *[(upstream.T, x)] * weight)
    return LinearGradients(dx.reshape(cache.x.shape), dweight[0] if weight else None, dbias)
