"""A linear probe of vectors: logistic regression with a ridge, by Newton's method (ours)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from refattn._validation import FloatArray

RIDGE = 300.0
"""λ of the penalty ``λ ‖w‖² / 2`` of a sum of losses. Of 1, 10, …, 3000 it is in the middle of those that were the best
for vectors of 384 entries and 1,000 texts, on texts that are used for nothing else."""
_STEPS, _CLOSE = 50, 1e-10


class Probe(NamedTuple):
    """A linear map of vectors whose entries are centred and divided by their deviation."""

    mean: FloatArray
    deviation: FloatArray
    weight: FloatArray
    intercept: float

    def margins(self, x: FloatArray) -> FloatArray:
        """Return how far every row of x, shape (m, d), is on the positive side."""
        return np.asarray((x - self.mean) / self.deviation @ self.weight + self.intercept)


def fit(x: FloatArray, positive: NDArray[np.bool_], *, ridge: float = RIDGE) -> Probe:
    """Return the minimum of ``Σ log(1 + exp(−s (w·z + b))) + λ ‖w‖² / 2``, s = ±1, z the standardised rows of x.

    x is (m, d), with no constant entry. O(m d² + d³) a step.

    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe = fit(x, x[:, 0] > 0, ridge=1.0)
    >>> (probe.margins(x) > 0).tolist(), bool(abs(probe.intercept) < 1e-12)
    ([False, False, True, True], True)
    """
    x = np.asarray(x, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    rows = np.column_stack([(x - mean) / deviation, np.ones(len(x))])
    penalty = np.append(np.full(x.shape[1], ridge), 0.0)
    weight = np.zeros(rows.shape[1])
    for _ in range(_STEPS):
        probability = expit(rows @ weight)
        gradient = rows.T @ (probability - positive) + penalty * weight
        curvature = (rows * (probability * (1 - probability))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weight -= step
        if np.abs(step).max() <= _CLOSE:
            return Probe(mean, deviation, weight[:-1], float(weight[-1]))
    raise ArithmeticError(f"x: after {_STEPS} steps the weights still move by {np.abs(step).max():.2g}")
