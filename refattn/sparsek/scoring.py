"""The scoring network: which pairs are worth keeping (arXiv 2406.16747, section on key-value pair selection).

    score_t = x_t · w + slope · t                                   one w and one slope per key-value head

The position term keeps early and late scores comparable: with a positive slope a later pair needs less to get in.

Optionally the linear part is normalised over time without looking ahead (the paper uses timestep normalisation; where
it stands is our choice): with ``u = x · w`` and the running moments of ``u_0 … u_t``

    μ_t = mean      v_t = mean of (u_s − μ_t)²      score_t = (u_t − μ_t) / √(v_t + eps) + slope · t.

The position term stays outside, for a running normalisation would flatten any slope. The moments follow Welford's
recursion: squared deviations are added up, never squares, so a large offset or 10⁶ steps lose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._kept import kept
from refattn._overflow import overflow_judged
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_flag,
    as_float_arrays,
    as_real,
    as_upstream,
    finite_gradients,
    require_finite,
    require_kind,
    require_rank,
)


class CausalMoments(NamedTuple):
    """Running mean, sum of squared deviations from it, and the normalised sequence, each of the sequence's shape."""

    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    normalised: NDArray[np.float64]


@dataclass(frozen=True)
class ScoringForwardCache:
    """What `sparsek_scores_backward` needs of the forward; `moments` is None without normalisation.

    Attributes
    ----------
    x, weight, slope : ndarray, shapes (…, n, d_model), (H_kv, d_model), (H_kv,)
        The inputs, in the dtype of the computation: read-only copies.
    moments : CausalMoments or None
        Running mean and variance.
    eps : float
        Added to the running variance.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_scores_forward
    >>> scores, cache = sparsek_scores_forward([[1.0], [3.0]], [[1.0]], [0.5])
    >>> cache.moments is None
    True
    """

    x: FloatArray
    weight: FloatArray
    slope: FloatArray
    moments: CausalMoments | None
    eps: float


class ScoringGradients(NamedTuple):
    """Gradients of the scores, each of the shape of its input; a tuple, ``dx, dweight, dslope = gradients``.

    Attributes
    ----------
    x, weight, slope : ndarray, shapes (…, n, d_model), (H_kv, d_model), (H_kv,)
        With respect to the layer's input, the linear maps and the position slopes, in the dtype of the forward.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_scores_backward, sparsek_scores_forward
    >>> scores, cache = sparsek_scores_forward([[1.0], [3.0]], [[1.0]], [0.5])
    >>> dx, dweight, dslope = sparsek_scores_backward([[1.0, 0.0]], cache)
    >>> dweight.tolist(), dslope.tolist()
    ([[1.0]], [0.0])
    """

    x: FloatArray
    weight: FloatArray
    slope: FloatArray


def sparsek_scores(
    x: ArrayLike, weight: ArrayLike, slope: ArrayLike, *, normalise: bool = False, eps: float = 1e-5
) -> FloatArray:
    """Score the pairs of every key-value head from the layer's input.

    Parameters
    ----------
    x, weight, slope : array_like, shapes (…, n, d_model), (H_kv, d_model), (H_kv,)
        The layer's input in the order of time; the linear map of each key-value head; its position slope, in score per
        position.
    normalise : bool, optional
        Normalise the linear part by its running mean and variance.
    eps : float, optional
        Added to the running variance; above 0.

    Returns
    -------
    ndarray, shape (…, H_kv, n), float32 if every input is, else float64
        Scores, as `sparsek_attention` takes them. Score t depends on ``x[…, :t+1, :]`` only.

    Raises
    ------
    TypeError
        An argument is not real.
    ValueError
        Shapes do not fit, an entry is NaN or infinite, a score overflows, or `eps` is not above 0.

    Notes
    -----
    Time O(n H_kv d_model), memory O(n H_kv). Source: arXiv 2406.16747, its scoring network; see the module for what is
    ours.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_scores
    >>> x = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
    >>> sparsek_scores(x, weight=[[1.0, 0.5]], slope=[0.25])
    array([[1.  , 1.25, 2.  ]])
    """
    return sparsek_scores_forward(x, weight, slope, normalise=normalise, eps=eps)[0]


@one_blas_thread()
def sparsek_scores_forward(
    x: ArrayLike, weight: ArrayLike, slope: ArrayLike, *, normalise: bool = False, eps: float = 1e-5
) -> tuple[FloatArray, ScoringForwardCache]:
    """Score the pairs, and keep what the backward needs.

    Parameters
    ----------
    x, weight, slope, normalise, eps : array_like, and options
        As for `sparsek_scores`.

    Returns
    -------
    scores : ndarray, shape (…, H_kv, n)
        The scores.
    cache : ScoringForwardCache
        For `sparsek_scores_backward`. The last column of its moments is the state of a running normalisation.

    Raises
    ------
    TypeError, ValueError
        As `sparsek_scores`.

    Notes
    -----
    Time O(n H_kv d_model), memory O(n H_kv), dtypes as `sparsek_scores`. Source: arXiv 2406.16747, its scoring network.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_scores_forward
    >>> scores, cache = sparsek_scores_forward([[1.0], [3.0]], [[1.0]], [0.0], normalise=True)
    >>> scores.round(4), cache.moments.mean
    (array([[0., 1.]]), array([[1., 2.]]))
    """
    x, weight, slope = (kept(array) for array in as_float_arrays(x=x, weight=weight, slope=slope))
    require_rank("x", x, 2, "(…, n, d_model)")
    require_rank("weight", weight, 2, "(H_kv, d_model)")
    if weight.ndim != 2 or weight.shape[-1] != x.shape[-1]:
        raise ValueError(f"weight: shape {weight.shape} came, (H_kv, {x.shape[-1]}) was wanted")
    if slope.shape != weight.shape[:1]:
        raise ValueError(f"slope: shape {slope.shape} came, one number per head {weight.shape[:1]} was wanted")
    floor = as_real("eps", eps, positive=True)
    normalised = as_flag("normalise", normalise)
    with overflow_judged():
        linear = weight @ x.swapaxes(-1, -2)
        moments = _causal_moments(linear.astype(np.float64), floor) if normalised else None
        content = linear if moments is None else moments.normalised.astype(x.dtype)
        position = np.arange(x.shape[-2], dtype=x.dtype)
        scores = content + slope[:, None] * position
    if moments is not None:  # an infinite variance would make zeros of the scores
        require_finite("x, weight: running variance", moments.squares)
    require_finite("x, weight, slope: scores", scores)
    held = None if moments is None else CausalMoments(*(kept(array) for array in moments))
    return scores, ScoringForwardCache(x, weight, slope, held, floor)


@one_blas_thread()
def sparsek_scores_backward(dscores: ArrayLike, cache: ScoringForwardCache) -> ScoringGradients:
    """Pull a gradient back through the scoring network.

    Parameters
    ----------
    dscores : array_like, shape (…, H_kv, n)
        Gradient of the loss with respect to the scores.
    cache : ScoringForwardCache
        From `sparsek_scores_forward`.

    Returns
    -------
    ScoringGradients
        Fields `x`, `weight`, `slope`, of the inputs' shapes and the forward's dtype.

    Raises
    ------
    TypeError, ValueError
        `dscores` is not real, not finite, or not of the scores' shape; or a gradient overflows.

    Notes
    -----
    Time O(n H_kv d_model), memory O(n H_kv). Source: ours.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_scores_backward, sparsek_scores_forward
    >>> scores, cache = sparsek_scores_forward([[1.0], [3.0]], [[1.0]], [0.5])
    >>> sparsek_scores_backward([[1.0, 1.0]], cache)
    ScoringGradients(x=array([[1.], [1.]]), weight=array([[4.]]), slope=array([1.]))
    """
    require_kind("cache", cache, ScoringForwardCache, "sparsek_scores_forward")
    x, weight = cache.x, cache.weight
    n = x.shape[-2]
    upstream = as_upstream((*x.shape[:-2], weight.shape[0], n), "that of the scores", dscores=dscores)
    with overflow_judged():
        upstream = np.ascontiguousarray(upstream, x.dtype)
        # forward: scores = content + slope · position
        by_head = np.moveaxis(upstream, -2, 0).reshape(weight.shape[0], -1, n)
        dslope = (by_head * np.arange(n, dtype=x.dtype)).sum(axis=(-1, -2))
        # forward: the normalised part of the linear map
        dlinear = upstream
        if cache.moments is not None:
            dlinear = _causal_moments_backward(upstream.astype(np.float64), cache.moments, cache.eps).astype(x.dtype)
        # forward: linear = weight @ xᵀ
        dx = dlinear.swapaxes(-1, -2) @ weight
        dweight = (dlinear @ x).reshape(-1, *weight.shape).sum(axis=0)
    return finite_gradients(ScoringGradients(dx, dweight, dslope), "dscores")


def _causal_moments(u: NDArray[np.float64], eps: float) -> CausalMoments:
    """Normalise a sequence by its running mean and variance, along the last axis.

    Welford: ``M_t = M_{t−1} + (u_t − μ_{t−1})(u_t − μ_t)``; every term is at least zero, so nothing cancels. The mean
    is summed from the first entry, which takes away a common offset.
    """
    count = np.arange(1, u.shape[-1] + 1)
    first = u[..., :1]
    mean = first + np.cumsum(u - first, axis=-1) / count
    before = np.concatenate([first, mean[..., :-1]], axis=-1)
    squares = np.cumsum((u - before) * (u - mean), axis=-1)
    return CausalMoments(mean, squares, (u - mean) / np.sqrt(squares / count + eps))


def _causal_moments_backward(upstream: NDArray[np.float64], moments: CausalMoments, eps: float) -> NDArray[np.float64]:
    """Pull a gradient back through `_causal_moments`.

    With ``r_t = (v_t + eps)^(−1/2)``, ``y_t = (u_t − μ_t) r_t``, and for s ≤ t ``∂μ_t/∂u_s = 1/(t+1)``,
    ``∂v_t/∂u_s = 2 (u_s − μ_t)/(t+1)``:

        du_s = g_s r_s − Σ_{t≥s} A_t − Σ_{t≥s} B_t (u_s − μ_t),   A_t = g_t r_t/(t+1),   B_t = g_t y_t r_t²/(t+1).

    The last sum is taken around μ_s, so that a large offset does not cancel:
    ``(u_s − μ_s) Σ_{t≥s} B_t + D_s`` with ``D_s = D_{s+1} + (μ_s − μ_{s+1}) Σ_{t>s} B_t``.
    """
    count = np.arange(1, upstream.shape[-1] + 1)
    rate = 1 / np.sqrt(moments.squares / count + eps)
    a = upstream * rate / count
    b = a * moments.normalised * rate
    sum_a, sum_b = _from_the_end(a), _from_the_end(b)
    steps = np.zeros_like(b)
    steps[..., :-1] = -np.diff(moments.mean, axis=-1) * sum_b[..., 1:]
    return upstream * rate - sum_a - moments.normalised / rate * sum_b - _from_the_end(steps)


def _from_the_end(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``Σ_{t ≥ s} terms_t`` along the last axis."""
    return np.flip(np.cumsum(np.flip(terms, -1), axis=-1), -1)
