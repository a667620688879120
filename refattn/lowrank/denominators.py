"""Which denominators of low-rank attention stand: as large as the features allow, and rounded by little (ours)."""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.lowrank import guard
from refattn.lowrank.features import FeatureMap
from refattn.lowrank.masks import RowChangeMask, StructuredMask
from refattn.lowrank.products import module_of

ROUNDING_TOLERANCE = 1e-6
"""Largest estimated rounding error of a denominator, relative to it."""


def judged(
    denominators: FloatArray, u1: FloatArray, u2: FloatArray, mask: StructuredMask, features: FeatureMap, method: str
) -> FloatArray:
    """Return the estimated rounding error of the denominators, or raise naming the first that cannot stand.

    A sum over c columns of r products each is off by at most ``(c + r) u`` of its natural size, and features that
    vanish by as much as the smallest number. The natural size is bounded by that of all columns, and by that of c times
    the largest; where neither will do, it is computed.
    """
    counts = mask.row_counts()
    seen = counts > 0
    least = counts * features.least_entry * (1 - 1e-6)
    bad = seen & ~((denominators > 0) & (denominators >= least))
    if bad.any():
        *head, i = (int(x) for x in np.unravel_index(int(bad.argmax()), bad.shape))
        raise ValueError(
            f"q, k: the denominator of row {i} is {denominators[*head, i]:.6g}, at least {least[i]:.6g} and above 0 was"
            " wanted; the features do not serve these logits, or rounding has taken the row"
        )
    queries, keys = np.abs(u1), np.abs(u2)
    unit = (counts + u1.shape[-1]) * 2.0**-53
    vanished = counts * (queries.sum(axis=-1) + keys.sum(axis=-1).max(axis=-1, keepdims=True)) * 2.0**-1074

    def relative(size: FloatArray) -> FloatArray:
        return np.divide(size, denominators, out=np.zeros(denominators.shape), where=seen)

    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is computed
        sums, largest = ((queries @ x[..., None])[..., 0] for x in (keys.sum(axis=-2), keys.max(axis=-2)))
        rounding = relative(unit * np.minimum(sums, counts * largest) + vanished)
    doubtful = ~(rounding.max(axis=-1, keepdims=True) <= ROUNDING_TOLERANCE)
    if doubtful.any():
        ones = np.ones((*denominators.shape, 1))
        natural = guard.product(module_of(method), mask, queries, keys, ones).whole()[..., 0]
        rounding = np.where(doubtful, relative(unit * natural + vanished), rounding)
    if method == "paper" and isinstance(mask, RowChangeMask):
        ones = np.ones((len(u1), 1))
        running = guard.rounding_bound(mask, u1, u2, ones, transposed=False)[:, 0]
        rounding = np.maximum(rounding, np.minimum(relative(running), guard.ROW_TOLERANCE))
    if not rounding.max() <= ROUNDING_TOLERANCE:
        worst = int(np.nan_to_num(rounding, nan=np.inf).argmax())
        *head, i = (int(x) for x in np.unravel_index(worst, rounding.shape))
        raise ValueError(
            f"q, k: row {i} is so small beside the terms it is summed from that rounding is estimated at"
            f" {rounding[*head, i]:.3g} of its denominator, at most {ROUNDING_TOLERANCE:g} was wanted; other features"
            " were"
        )
    return np.asarray(rounding)
