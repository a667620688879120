"""SparseK by bisection: the same projection as `refattn.sparsek.operator`, found without sorting (ours).

The budget function ``f(t) = Σ_j clip(z_j − t, 0, 1)`` is continuous and falls from the number of finite scores to zero,
so ``τ = inf {t : f(t) ≤ k}`` is found by halving a bracket with ``f(low) > k ≥ f(high)``. It is halved twice: first in
the scores' own units until it is at most one wide, or two neighbouring numbers; then relative to its upper end, where
differences of scores are exact. No score lies between two neighbouring numbers, so f is constant from the lower one to
one below the upper one, and τ is within one of the upper end in either case. The second stage gives p to rounding even
where τ itself cannot be represented.

Nothing but the input check is shared with the operator: the two check each other. This is the oracle's operator. Being
right to rounding, not exact, it may put an entry that lies exactly at a kink on either side of it; the operator, which
sums few terms, does not where the scores are round numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_real
from refattn.sparsek._scores import as_scores

_HALVINGS = 64
"""Halvings of a bracket at most one wide: below the rounding of p."""


def sparsek_by_bisection(z: ArrayLike, k: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve SparseK along the last axis by bisection.

    Parameters
    ----------
    z : array_like, shape (…, m)
        Scores, finite or −∞ (never selected).
    k : float
        Budget, at least 0.

    Returns
    -------
    p : ndarray, shape (…, m)
        The projection, float64.
    tau : ndarray, shape (…)
        The smallest threshold; −∞ where k is at least the number of finite scores.

    Raises
    ------
    TypeError
        `z` is not real, `k` not a number.
    ValueError
        A score is NaN or +∞, `k` is negative or not finite, or an axis is empty.

    Notes
    -----
    Time O(m (log range + 64)), memory O(m) per problem. Source: ours.

    Examples
    --------
    >>> p, tau = sparsek_by_bisection([3.0, 1.25, 1.0, -2.0], k=2)
    >>> p.round(15), round(float(tau), 15)
    (array([1.   , 0.625, 0.375, 0.   ]), 0.625)
    """
    scores = as_scores(z, "(…, m)").astype(np.float64)
    budget = as_real("k", k, least=0.0)
    selectable = scores > -np.inf
    everything = selectable.sum(axis=-1, keepdims=True) <= budget
    finite = np.where(selectable, scores, np.inf).min(axis=-1, keepdims=True)
    finite = np.where(everything, 0.0, finite)
    high = np.where(everything, 0.0, scores.max(axis=-1, keepdims=True))
    with np.errstate(over="ignore", under="ignore"):  # a difference that overflows is more than one all the same
        low = np.maximum(np.nextafter(finite - 1, -np.inf), -np.finfo(np.float64).max)
        while True:
            middle = low / 2 + high / 2
            wide = (high - low > 1) & (low < middle) & (middle < high)
            if not wide.any():
                break
            within = _spent(scores, middle) <= budget
            high = np.where(wide & within, middle, high)
            low = np.where(wide & ~within, middle, low)
        # no number below the smallest: τ is then within one of it
        high = np.where((high - low > 1) & (_spent(scores, low) <= budget), low, high)
        relative = np.where(selectable, scores - high, -np.inf)
    below, above = np.full_like(high, -1.0), np.zeros_like(high)
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        within = _spent(relative, middle) <= budget
        above = np.where(within, middle, above)
        below = np.where(within, below, middle)

    p = np.where(everything, selectable, np.clip(relative - above, 0, 1))
    tau = np.where(everything, -np.inf, high + above)
    return p, tau[..., 0]


def _spent(z: NDArray[np.float64], threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(z - threshold, 0, 1).sum(axis=-1, keepdims=True))
