"""The features of linear attention: elu + 1, entry by entry (Katharopoulos et al. 2020, arXiv 2006.16236).

    φ(x) = x + 1 where x ≥ 0, exp(x) elsewhere

Weights are ``φ(q)·φ(k)``, in the place of exponentials: nothing is approximated, and there is no scale.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray, as_count
from refattn.lowrank.features import FeatureMap


class EluFeatures(FeatureMap):
    """Positive features elu + 1 of linear attention: as many as q and k are wide.

    Parameters
    ----------
    width : int
        The width d of q and k.

    Raises
    ------
    TypeError, ValueError
        `width` is not such a number.

    Notes
    -----
    Rank d; ``φ(q)·φ(k)`` is not near ``exp(q·k)``, but another weight. Factors take time and memory O(nd). Source:
    arXiv 2006.16236.

    Examples
    --------
    >>> from refattn.lowrank import EluFeatures, lowrank_attention
    >>> u1, u2 = EluFeatures(2).factors([[1.0, -1.0]], [[0.0, 2.0]])
    >>> u1.round(3).tolist(), u2.tolist()
    ([[2.0, 0.368]], [[1.0, 3.0]])
    """

    scale = 1.0
    error = None
    _row_by_row = True

    def __init__(self, width: int) -> None:
        self.width = self.rank = as_count("width", width, least=1)

    def _require_inside(self, q: FloatArray, k: FloatArray) -> None:
        """Nothing: defined everywhere."""

    def _queries(self, q: FloatArray, *, shifted: bool) -> FloatArray:
        return _elu_plus_one(q)

    def _keys(self, k: FloatArray, *, shifted: bool) -> FloatArray:
        return _elu_plus_one(k)

    def _pull_queries(self, q: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        return np.where(q < 0, u * du, du)

    def _pull_keys(self, k: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        return np.where(k < 0, u * du, du)


def _elu_plus_one(x: FloatArray) -> FloatArray:
    with np.errstate(under="ignore"):
        return np.where(x < 0, np.exp(np.minimum(x, 0)), x + 1)
