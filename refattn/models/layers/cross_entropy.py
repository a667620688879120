"""Cross-entropy of the next token, from its logits; what it should be is one token, or a distribution over some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray
from refattn.models.layers.rows import by_rows, loop_rows


class CrossEntropyCache(NamedTuple):
    """What `cross_entropy_backward` needs, and the log-sum-exp.

    Attributes
    ----------
    probabilities : ndarray, shape (rows, vocab_size)
        ``softmax(z)``, in the dtype of the logits.
    targets : ndarray of int, shape (rows, m)
        The tokens of each row's target.
    shares : ndarray of float64, shape (rows, m)
        Their shares of it, t.
    log_sum_exp : ndarray of float64, shape (rows,)
        ``log Σ_j exp(z_j)``.

    Examples
    --------
    >>> cross_entropy_forward([[0.0, 0.0]], [1])[1].probabilities
    array([[0.5, 0.5]])
    """

    probabilities: FloatArray
    targets: NDArray[np.int64]
    shares: NDArray[np.float64]
    log_sum_exp: NDArray[np.float64]


def cross_entropy_forward(
    logits: ArrayLike, targets: ArrayLike, shares: ArrayLike | None = None
) -> tuple[NDArray[np.float64], CrossEntropyCache]:
    """``Σ_j t_j (log Σ_i exp(z_i) − z_j)``, row by row; with one target ``log Σ_i exp(z_i) − z_target``.

    Parameters
    ----------
    logits : array_like, shape (rows, vocab_size)
        z, float32 or float64.
    targets : array_like of int, shape (rows,) or (rows, m)
        The right token of each row, or m tokens of which it should be one.
    shares : array_like, shape (rows, m), optional
        t, how much each of the m counts, at least 0: the probabilities that they should have. All one by default.

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
    Time and memory O(rows · vocab_size). Sums are in float64. Source: the definition. With t the distribution of
    another model it is the Kullback-Leibler divergence from that one, and that one's entropy, which is a constant
    (Hinton et al. 2015).

    Examples
    --------
    >>> cross_entropy_forward([[0.0, 0.0], [0.0, 3.0]], [1, 1])[0].round(4)
    array([0.6931, 0.0486])
    >>> cross_entropy_forward([[0.0, 3.0]], [[0, 1]], [[0.5, 0.5]])[0].round(4)
    array([1.5486])
    """
    from refattn.models.layers import _loops as loops

    given, targets = np.asarray(logits), np.asarray(targets)
    z = loop_rows("logits", given, given.dtype, given.shape)
    targets = targets[:, None] if targets.ndim == 1 else targets
    t = np.ones(targets.shape) if shares is None else np.asarray(shares, np.float64)
    p, log_sum_exp, losses = np.empty_like(z), np.empty(len(z)), np.empty(len(z))
    softmax = loops.softmax[z.dtype]

    def lose(some: slice) -> None:
        softmax(z[some], z[some].max(axis=-1), p[some], log_sum_exp[some])
        chosen = np.take_along_axis(z[some], targets[some], axis=-1)
        losses[some] = (t[some] * (log_sum_exp[some, None] - chosen)).sum(axis=-1)

    by_rows(lose, z.shape)
    return losses, CrossEntropyCache(p, targets, t, log_sum_exp)


def cross_entropy_backward(dlosses: ArrayLike, cache: CrossEntropyCache) -> FloatArray:
    """Gradient of `cross_entropy_forward` with respect to the logits.

    ``∂ log Σ_i exp(z_i) / ∂z_j = p_j``, so ``dz = dloss (p Σ_j t_j − Σ_j t_j e_j)`` with e_j the unit vectors.

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
    p, targets, shares, _ = cache
    upstream = np.asarray(dlosses, np.float64)[:, None] * shares
    whole, upstream = upstream.sum(axis=-1, keepdims=True).astype(p.dtype), upstream.astype(p.dtype)
    dlogits = np.empty_like(p)

    def pull_back(some: slice) -> None:
        # forward: t_j log_sum_exp(z)
        np.multiply(p[some], whole[some], out=dlogits[some])
        # forward: − t_j z_j, one after the other: a token may be among them twice
        rows = np.arange(len(targets[some]))
        for of_row, share in zip(targets[some].T, upstream[some].T, strict=True):
            dlogits[some][rows, of_row] -= share

    by_rows(pull_back, p.shape)
    return dlogits
