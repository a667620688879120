"""Linear maps of rows, ``y = x Wᵀ + b``."""

from __future__ import annotations

from typing import NamedTuple

from refattn._validation import FloatArray


class LinearCache(NamedTuple):
    """What `linear_backward` needs: the input and the map."""

    x: FloatArray
    weight: FloatArray


class LinearGradients(NamedTuple):
    """Gradients of the input, the matrix and the bias."""

    x: FloatArray
    weight: FloatArray | None
    bias: FloatArray | None


def linear_forward(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> tuple[FloatArray, LinearCache]:
    """Map every row: ``y = x Wᵀ + b``."""
    y = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], -1), LinearCache(x, weight)


def linear_backward(dy: FloatArray, cache: LinearCache, *, weight: bool = True, bias: bool = False) -> LinearGradients:
    """Pull a gradient back: with ``y_ro = Σ_i x_ri W_oi + b_o`` for every row r,

    dx_ri = Σ_o dy_ro W_oi        dW_oi = Σ_r dy_ro x_ri        db_o = Σ_r dy_ro.
    """
    x, rows = cache.x.reshape(-1, cache.x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    # forward: y += bias
    dbias = rows.sum(axis=0) if bias else None
    # forward: y = x @ weight.T
    dx = (rows @ cache.weight).reshape(cache.x.shape)
    dweight = rows.T @ x if weight else None
    return LinearGradients(dx, dweight, dbias)
