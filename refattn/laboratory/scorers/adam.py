"""Adam: gradient steps of a length that does not depend on the gradient's scale (Kingma and Ba 2015, arXiv 1412.6980).

With the gradient g_t at step t = 1, 2, …

    m_t = β₁ m_{t−1} + (1 − β₁) g_t      s_t = β₂ s_{t−1} + (1 − β₂) g_t²
    θ_t = θ_{t−1} − rate · m̂_t / (√ŝ_t + ε)       m̂_t = m_t/(1 − β₁ᵗ),  ŝ_t = s_t/(1 − β₂ᵗ)

The state is plain arrays, so that it can be written to a file and read back without losing a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BETA_1, BETA_2, EPSILON = 0.9, 0.98, 1e-12
"""Second moments over 50 steps, for runs of some hundred; ε is far below any gradient's size here."""


@dataclass(frozen=True)
class AdamState:
    """Parameters θ and moments m and s, of one shape, after some steps."""

    parameters: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    step: int = 0

    @classmethod
    def start(cls, parameters: NDArray[np.float64]) -> AdamState:
        """Return the state before the first step."""
        return cls(parameters.astype(np.float64), np.zeros(parameters.shape), np.zeros(parameters.shape))

    def stepped(self, gradient: NDArray[np.float64], rate: float) -> AdamState:
        """Return the state after one more step, about `rate` long in every coordinate; this one is left as it is.

        >>> state = AdamState.start(np.array([3.0, -2.0]))
        >>> for _ in range(400):
        ...     state = state.stepped(2 * state.parameters, rate=0.05)
        >>> bool(np.abs(state.parameters).max() < 1e-3)
        True
        """
        step = self.step + 1
        mean = BETA_1 * self.mean + (1 - BETA_1) * gradient
        square = BETA_2 * self.square + (1 - BETA_2) * np.square(gradient)
        scaled = (mean / (1 - BETA_1**step)) / (np.sqrt(square / (1 - BETA_2**step)) + EPSILON)
        return AdamState(self.parameters - rate * scaled, mean, square, step)


def cosine_rate(step: int, total: int, rate: float) -> float:
    """Return the rate of a step, 0 … total − 1: from `rate` down to nearly 0 along half a cosine.

    >>> [round(cosine_rate(step, 4, 1.0), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return rate * 0.5 * (1 + math.cos(math.pi * step / total))
