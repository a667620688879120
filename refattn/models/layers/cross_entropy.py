"""Cross-entropy of the next token, from its logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray
from refattn.models.layers.rows import by_rows


class CrossEntropyCache(NamedTuple):
    """What `cross_entropy_backward` needs, and the log-sum-exp.

    Attributes
    ----------
    probabilities : ndarray, shape (rows, vocab_size)
        ``softmax(z)``, in the dtype of the logits.
    targets : ndarray of int, shape (rows,)
        The right tokens.
    log_sum_exp : ndarray of float64, shape (rows,)
        ``log Σ_j exp(z_j)``.

    Examples
    --------
    >>> cross_entropy_forward([[0.0, 0.0]], [1])[1].probabilities
    array([[0.5, 0.5]])
    """

    probabilities: FloatArray
    targets: NDArray[np.int64]
    log_sum_exp: NDArray[np.float64]


def cross_entropy_forward(logits: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], CrossEntropyCache]:
    """``log Σ_j exp(z_j) − z_target``, row by row.

    Parameters
    ----------
    logits : array_like, shape (rows, vocab_size)
        z, float32 or float64.
    targets : array_like of int, shape (rows,)
        The right token of each row.

    Returns
    -------
    losses : ndarray of float64, shape (rows,)
        In nats; a mask, or the mean, is what the losses are multiplied with.
    cache : CrossEntropyCache
        For `cross_entropy_backward`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(rows · vocab_size). Sums are in float64. Source: the definition.

    Examples
    --------
    >>> cross_entropy_forward([[0.0, 0.0], [0.0, 3.0]], [1, 1])[0].round(4)
    array([0.6931, 0.0486])
    """
    z, targets = np.asarray(logits), np.asarray(targets)
    p, log_sum_exp, chosen = np.empty_like(z), np.empty(len(z)), np.empty(len(z))

    def lose(some: slice) -> None:
        top = z[some].max(axis=-1, keepdims=True)
        weights = np.subtract(z[some], top, out=p[some])
        np.exp(weights, out=weights)
        total = weights.sum(axis=-1, dtype=np.float64)
        weights *= (1 / total).astype(z.dtype)[:, None]
        log_sum_exp[some] = np.log(total) + top[:, 0]
        chosen[some] = np.take_along_axis(z[some], targets[some, None], axis=-1)[:, 0]

    by_rows(lose, z.shape)
    return log_sum_exp - chosen, CrossEntropyCache(p, targets, log_sum_exp)


def cross_entropy_backward(dlosses: ArrayLike, cache: CrossEntropyCache) -> FloatArray:
    """Gradient of `cross_entropy_forward` with respect to the logits.

    ``∂ log Σ_j exp(z_j) / ∂z_j = p_j``, so ``dz = dloss (p − e_target)`` with e the unit vector.

    Parameters
    ----------
    dlosses : array_like, shape (rows,)
        Gradient of the loss with respect to each row's: its weight, where the loss is a weighted mean.
    cache : CrossEntropyCache
        From `cross_entropy_forward`.

    Returns
    -------
    ndarray, shape (rows, vocab_size)
        In the dtype of the logits.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time and memory O(rows · vocab_size). Source: ours.

    Examples
    --------
    >>> losses, cache = cross_entropy_forward([[0.0, 0.0]], [1])
    >>> cross_entropy_backward([2.0], cache)
    array([[ 1., -1.]])
    """
    p, targets, _ = cache
    upstream = np.asarray(dlosses, p.dtype)[:, None]
    dlogits = np.empty_like(p)

    def pull_back(some: slice) -> None:
        # forward: log_sum_exp(z)
        np.multiply(p[some], upstream[some], out=dlogits[some])
        # forward: − z_target
        dlogits[some][np.arange(len(targets[some])), targets[some]] -= upstream[some, 0]

    by_rows(pull_back, p.shape)
    return dlogits
