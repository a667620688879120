"""Scores as the operator and its prefixes take them: finite or −∞, checked in one place."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray, as_float_arrays, require_rank


def as_scores(z: ArrayLike, axes: str) -> FloatArray:
    """Return the scores `z` as an array of float32 or float64 with at least one axis, none of them empty.

    NaN and +∞ are refused; −∞ is a score: never selected.
    """
    (scores,) = as_float_arrays(check_finite=False, z=z)
    require_rank("z", scores, 1, axes)
    bad = np.isnan(scores) | np.isposinf(scores)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"z: {scores[index]} at index {index}, finite scores or −inf were wanted")
    return scores
