"""The SparseK operator, its threshold and its derivatives (arXiv 2406.16747, section on the SparseK operator).

    SparseK(z, k) = argmin_p ‖p − z‖²   subject to   0 ≤ p ≤ 1,  1ᵀp = k

The solution is ``p_j = clip(z_j − τ, 0, 1)``, where the *threshold* τ makes the entries sum to the *budget* k. With
``u`` entries at one and ``w`` above zero (the paper's letters; z sorted in descending order)

    τ = (Σ_{u < j ≤ w} z_(j) + u − k) / (w − u).

Departures, and what the paper leaves open (ours):

- Of all thresholds that solve the problem the smallest is returned, ``τ = inf {t : Σ_j clip(z_j − t, 0, 1) ≤ k}``.
  Where no entry is strictly between zero and one that is ``z_(k+1)``; for k = 0 it is ``max z``; for k ≥ m it is −∞.
- The sums are taken of ``z − z_(⌊k⌋+1)``, which lies within one of τ, so p is exact to rounding at every scale of z.
- A score of −∞ is never selected: the operator acts as if the entry were not there.
- At a kink (an entry exactly at 0 or 1, so z_j = τ or z_j = τ + 1) the entry counts as saturated. This is the one-sided
  derivative along every direction that pushes the entry further out; with no entry inside, all derivatives are zero.

`refattn.sparsek.bisection` solves the same problem another way and shares only the input check with this module.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._overflow import overflow_judged
from refattn._validation import (
    FloatArray,
    as_count,
    as_float_arrays,
    as_real,
    as_real_array,
    require_finite,
    require_rank,
)
from refattn.sparsek._scores import as_scores


class SparseKGradients(NamedTuple):
    """Gradients of the SparseK operator; a tuple, ``dz, dk = gradients``.

    Attributes
    ----------
    z : ndarray, shape (…, m, …)
        With respect to the scores, in their dtype.
    k : ndarray, shape of `z` without the axis
        With respect to the budget, one number per problem.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_operator, sparsek_vjp
    >>> dz, dk = sparsek_vjp(sparsek_operator([3.0, 1.25, 1.0, -2.0], k=2), [5.0, 1.0, 0.0, 5.0])
    >>> dz.shape, dk.shape
    ((4,), ())
    """

    z: FloatArray
    k: FloatArray


def sparsek_operator(z: ArrayLike, k: float, *, axis: int = -1) -> FloatArray:
    """Project scores onto ``{p : 0 ≤ p ≤ 1, Σ p = k}``: a differentiable top-k mask.

    Parameters
    ----------
    z : array_like, shape (…, m, …)
        Scores, finite or −∞ (never selected). Computed in float64 whatever the dtype.
    k : float
        Budget, at least 0, not necessarily an integer; k ≥ m gives ones.
    axis : int, optional
        Axis of length m; the others are a batch of independent problems.

    Returns
    -------
    ndarray, shape of `z`
        Entries in [0, 1] with sum ``min(k, number of finite scores)``; dtype of z. One that is inside (0, 1) is never
        rounded to 0 or 1, so that its derivatives, which depend on which are, are those of z and the threshold.

    Raises
    ------
    TypeError
        `z` is not real, `k` not a number.
    ValueError
        A score is NaN or +∞, `k` is negative or not finite, an axis is empty or does not exist.

    Notes
    -----
    Time O(m log m), memory O(m) per problem. k = 1 is sparsemax; the operator of ``z / t`` tends to the indicator of
    the k largest scores as t → 0; that of ``z + c`` is that of z. Source: arXiv 2406.16747, its definition of SparseK.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_operator
    >>> sparsek_operator([3.0, 1.25, 1.0, -2.0], k=2)
    array([1.   , 0.625, 0.375, 0.   ])
    """
    scores, budget, dtype = _problems(z, k, axis)
    shifted, pivot, remainder = _solve(scores, budget)
    mask = np.where(np.isneginf(pivot), ~np.isneginf(scores), np.clip(shifted - remainder, 0, 1))
    return np.moveaxis(_rounded(mask, dtype), -1, axis)


def _rounded(mask: NDArray[np.float64], dtype: np.dtype[Any]) -> FloatArray:
    """Return the mask in a dtype; no entry inside (0, 1) is rounded to an end, as derivatives ask which are inside."""
    zero, one = np.zeros((), dtype), np.ones((), dtype)
    inside = (mask > 0) & (mask < 1)
    held = np.clip(mask.astype(dtype), np.nextafter(zero, one), np.nextafter(one, zero))
    return np.where(inside, held, mask.astype(dtype))


def sparsek_threshold(z: ArrayLike, k: float, *, axis: int = -1) -> FloatArray:
    """Return the threshold τ of SparseK, ``sparsek_operator(z, k) = clip(z − τ, 0, 1)``.

    Parameters
    ----------
    z, k, axis : array_like, float, int
        As for `sparsek_operator`.

    Returns
    -------
    ndarray, shape of `z` without `axis`
        The smallest τ that serves; −∞ where k is at least the number of finite scores. Rounded to the dtype of z, while
        `sparsek_operator` itself keeps its low-order part: prefer it to clipping for scores beyond about 10⁴.

    Raises
    ------
    TypeError, ValueError
        As `sparsek_operator`.

    Notes
    -----
    Time O(m log m), memory O(m) per problem. Source: arXiv 2406.16747, its solution of SparseK; the choice of the
    smallest threshold is ours.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_threshold
    >>> sparsek_threshold([[3.0, 1.25, 1.0, -2.0], [9.0, 7.0, 5.0, 4.0]], k=2)
    array([0.625, 5.   ])
    """
    scores, budget, dtype = _problems(z, k, axis)
    _, pivot, remainder = _solve(scores, budget)
    return np.asarray((pivot + remainder)[..., 0], dtype)


def _problems(z: ArrayLike, k: float, axis: int) -> tuple[NDArray[np.float64], float, np.dtype[Any]]:
    """Check the arguments; return the scores in float64 with `axis` last, the budget and the dtype to return."""
    budget = as_real("k", k, least=0.0)
    scores = as_scores(z, "(…, m)")
    _require_axis("z", scores, axis)
    return np.moveaxis(scores, axis, -1).astype(np.float64), budget, scores.dtype


def _require_axis(name: str, array: FloatArray, axis: int) -> None:
    as_count("axis", axis, least=-array.ndim, most=array.ndim - 1, most_is=f"{name} has {array.ndim} axes")


def _solve(z: NDArray[np.float64], k: float) -> tuple[NDArray[np.float64], ...]:
    """Return ``z − pivot`` clipped to [−1, 1], the pivot, and ``τ − pivot`` in (−1, 0], the last two with one column.

    The pivot is ``z_(⌊k⌋+1)``. At most ⌊k⌋ entries lie above it, so it is at least τ; at least ⌊k⌋ + 1 entries are
    at least one above ``pivot − 1``, so that is below τ. Hence an entry more than one away from the pivot is saturated.
    """
    m = z.shape[-1]
    if k >= m:
        return np.ones_like(z), np.full((*z.shape[:-1], 1), -np.inf), np.zeros((*z.shape[:-1], 1))
    descending = -np.sort(-z, axis=-1)
    pivot = descending[..., int(k), None]
    with np.errstate(invalid="ignore", over="ignore"):  # −∞ − −∞: no pivot, so nothing is used of that problem
        shifted = _difference(z, pivot)
        y = np.where(np.isneginf(pivot), 0.0, _difference(descending, pivot))

    # Breakpoints of f(t) = Σ clip(y − t, 0, 1) going down from 0 to −1: at t = y_j an entry leaves zero (slope + 1),
    # at t = y_j − 1 it reaches one (slope − 1).
    leaves = np.where(y <= 0, y, 0.0)
    arrives = np.where((y > 0) & (y < 1), y - 1, -1.0)
    breaks = np.concatenate([leaves, arrives], axis=-1)
    slopes = np.concatenate([np.where((y <= 0) & (y > -1), 1.0, 0.0), np.where((y > 0) & (y < 1), -1.0, 0.0)], axis=-1)
    order = np.argsort(-breaks, axis=-1, kind="stable")
    breaks = np.take_along_axis(breaks, order, axis=-1)
    inside = np.cumsum(np.take_along_axis(slopes, order, axis=-1), axis=-1)
    inside += ((y > 0) & (y < 1)).sum(axis=-1, keepdims=True)
    at_zero = np.clip(y, 0, 1).sum(axis=-1, keepdims=True)
    rises = inside[..., :-1] * -np.diff(breaks, axis=-1)
    f = at_zero + np.concatenate([np.zeros_like(at_zero), np.cumsum(rises, axis=-1)], axis=-1)

    # τ lies in the piece below the last breakpoint at which f is still at most k; there the sets are known.
    last = np.maximum((f <= k).sum(axis=-1, keepdims=True) - 1, 0)
    upper = np.take_along_axis(breaks, last, axis=-1)
    lower = np.take_along_axis(breaks, np.minimum(last + 1, 2 * m - 1), axis=-1)
    middle = (upper + lower) / 2
    interior = (y > middle) & (y < middle + 1)
    at_one = (y >= middle + 1).sum(axis=-1, keepdims=True)
    count = interior.sum(axis=-1, keepdims=True)
    total = np.where(interior, y, 0).sum(axis=-1, keepdims=True)
    return shifted, pivot, np.clip((total + at_one - k) / np.maximum(count, 1), lower, upper)


def _difference(z: NDArray[np.float64], pivot: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``z − pivot`` clipped to [−1, 1]; what is within but rounds to an end stays two units within."""
    difference = z - pivot
    part = difference - z
    error = (z - (difference - part)) - (pivot + part)  # of the difference, exactly
    within = (np.abs(difference) == 1) & (error * difference < 0)
    return np.where(within, difference * (1 - 2.0**-52), np.clip(difference, -1, 1))


def sparsek_jvp(p: ArrayLike, dz: ArrayLike, dk: ArrayLike = 0.0, *, axis: int = -1) -> FloatArray:
    """Push tangents forward: ``dp = J dz + (∂p/∂k) dk``, with ``J = Diag(s) − s sᵀ/|s|`` and ``∂p/∂k = s/|s|``.

    Here ``s_j = 1`` iff ``0 < p_j < 1``, and both derivatives are zero where s is.

    Parameters
    ----------
    p : array_like, shape (…, m, …)
        The operator's value as `sparsek_operator` returns it of z and k; entries in [0, 1]. What rounds it further may
        move an entry to an end, where it has no derivative.
    dz : array_like, shape of `p`
        Tangent of the scores.
    dk : array_like, shape of `p` without `axis`, optional
        Tangent of the budget; broadcasts.
    axis : int, optional
        Axis of length m.

    Returns
    -------
    ndarray, shape of `p`, in its dtype
        Tangent of the value.

    Raises
    ------
    TypeError, ValueError
        An argument is not real, not finite, or of the wrong shape; or the result overflows.

    Notes
    -----
    Time and memory O(m) per problem. Source: arXiv 2406.16747, its derivation of the Jacobian; the choice at kinks is
    ours.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_operator, sparsek_jvp
    >>> p = sparsek_operator([3.0, 1.25, 1.0, -2.0], k=2)
    >>> sparsek_jvp(p, [5.0, 1.0, 0.0, 5.0])
    array([ 0. ,  0.5, -0.5,  0. ])
    >>> sparsek_jvp(p, [0.0, 0.0, 0.0, 0.0], dk=1.0)
    array([0. , 0.5, 0.5, 0. ])
    """
    value, tangent = _value_and(p, axis, dz=dz)
    budget = as_real_array("dk", dk).astype(np.float64)
    require_finite("dk", budget)
    try:
        np.broadcast_to(budget, value.shape[:-1])
    except ValueError:
        raise ValueError(
            f"dk: shape {budget.shape} came, one that broadcasts to {value.shape[:-1]} was wanted"
        ) from None
    interior, count = _interior(value)
    with overflow_judged():
        tangent = np.where(interior, tangent, 0)
        mean = (budget[..., None] - tangent.sum(axis=-1, keepdims=True)) / count
        averaged = budget[..., None] / count - (tangent / count).sum(axis=-1, keepdims=True)
        mean = np.where(np.isfinite(mean), mean, averaged)
        pushed = np.moveaxis(np.where(interior, tangent + mean, 0), -1, axis).astype(value.dtype)
    require_finite("dz, dk: tangent", pushed)
    return pushed


def sparsek_vjp(p: ArrayLike, dp: ArrayLike, *, axis: int = -1) -> SparseKGradients:
    """Pull a gradient back: ``dz = Jᵀ dp`` and ``dk = ⟨∂p/∂k, dp⟩``; the adjoint of `sparsek_jvp`.

    Parameters
    ----------
    p : array_like
        As for `sparsek_jvp`.
    dp : array_like, shape of `p`
        Gradient of the loss with respect to the value.
    axis : int, optional
        As for `sparsek_jvp`.

    Returns
    -------
    SparseKGradients
        `z` of p's shape and dtype: the gradient less its mean over the interior, zero outside it; `k` without `axis`:
        that mean.

    Raises
    ------
    TypeError, ValueError
        An argument is not real, not finite, or of the wrong shape; or the result overflows.

    Notes
    -----
    Time and memory O(m) per problem. Source: arXiv 2406.16747, its derivation of the Jacobian; the choice at kinks is
    ours.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_operator, sparsek_vjp
    >>> p = sparsek_operator([3.0, 1.25, 1.0, -2.0], k=2)
    >>> sparsek_vjp(p, [5.0, 1.0, 0.0, 5.0]).z
    array([ 0. ,  0.5, -0.5,  0. ])
    >>> float(sparsek_vjp(p, [5.0, 1.0, 0.0, 5.0]).k)
    0.5
    """
    value, upstream = _value_and(p, axis, dp=dp)
    interior, count = _interior(value)
    with overflow_judged():
        upstream = np.where(interior, upstream, 0)
        mean = upstream.sum(axis=-1, keepdims=True) / count
        mean = np.where(np.isfinite(mean), mean, (upstream / count).sum(axis=-1, keepdims=True))
        dz = np.where(interior, upstream - mean, 0)
    require_finite("dp: gradient of z", dz)
    return SparseKGradients(np.moveaxis(dz, -1, axis).astype(value.dtype), mean[..., 0].astype(value.dtype))


def sparsek_jacobian(p: ArrayLike) -> FloatArray:
    """Return the dense Jacobian ``∂p/∂z = Diag(s) − s sᵀ/|s|``, with ``s_j = 1`` iff ``0 < p_j < 1``.

    Parameters
    ----------
    p : array_like, shape (…, m)
        The operator's value, `sparsek_operator` of z and k.

    Returns
    -------
    ndarray, shape (…, m, m), in the dtype of `p`
        Symmetric, positive semidefinite, rows summing to zero; zero where no entry is inside.

    Raises
    ------
    TypeError, ValueError
        `p` is not real, not finite, or outside [0, 1].

    Notes
    -----
    Time and memory O(m²) per problem: for small problems and tests, `sparsek_vjp` and `sparsek_jvp` for the others.
    Source: arXiv 2406.16747, its derivation of the Jacobian.

    Examples
    --------
    >>> from refattn.sparsek import sparsek_jacobian
    >>> sparsek_jacobian([1.0, 0.625, 0.375, 0.0])[1:3, 1:3]
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    value, _ = _value_and(p, -1)
    interior, count = _interior(value)
    s = interior.astype(value.dtype)
    return np.asarray(
        s[..., None] * np.eye(s.shape[-1]) - s[..., :, None] * s[..., None, :] / count[..., None], s.dtype
    )


def _value_and(p: ArrayLike, axis: int, **other: Any) -> tuple[FloatArray, FloatArray]:
    """Check p and at most one array of its shape; return both with `axis` last."""
    value, *rest = as_float_arrays(p=p, **other)
    require_rank("p", value, 1, "(…, m)")
    _require_axis("p", value, axis)
    if ((value < 0) | (value > 1)).any():
        raise ValueError(f"p: entries in [{value.min()}, {value.max()}] came, entries in [0, 1] were wanted")
    for name, array in zip(other, rest, strict=True):
        if array.shape != value.shape:
            raise ValueError(f"{name}: shape {array.shape} came, that of p {value.shape} was wanted")
    return np.moveaxis(value, axis, -1), np.moveaxis(rest[0] if rest else value, axis, -1)


def _interior(p: FloatArray) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which entries are strictly between zero and one, and how many (1 where there are none, to divide by)."""
    interior = (p > 0) & (p < 1)
    return interior, np.maximum(interior.sum(axis=-1, keepdims=True), 1)
