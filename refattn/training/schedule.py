"""How the rate of the steps goes up and down: linearly up, then half a cosine down (Loshchilov and Hutter 2017).

    rate(t) = top · (t + 1)/warmup                                    t < warmup
    rate(t) = least + (top − least) (1 + cos π (t − warmup)/(total − warmup))/2      warmup ≤ t < total

(arXiv 1608.03983, equation 5, without its restarts; the warm-up: Goyal et al. 2017, arXiv 1706.02677.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from refattn._validation import as_count, as_real


@dataclass(frozen=True)
class WarmupCosine:
    """A rate for every step.

    Parameters
    ----------
    top : float
        The largest rate, that of step ``warmup``; above 0.
    total : int
        Steps; at least 1.
    warmup : int, optional
        Steps of going up, less than `total`.
    least : float, optional
        Where the cosine ends, one step after the last; from 0 to `top`.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    O(1). Source: arXiv 1608.03983, equation 5.

    Examples
    --------
    >>> rate = WarmupCosine(top=1.0, total=6, warmup=2)
    >>> [round(rate(step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    top: float
    total: int
    warmup: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        as_real("top", self.top, positive=True)
        as_count("total", self.total, least=1)
        as_count("warmup", self.warmup, least=0, most=self.total - 1, most_is="one less than total")
        as_real("least", self.least, least=0.0, most=self.top)

    def __call__(self, step: int) -> float:
        """Return the rate of a step, 0 … total − 1.

        Parameters
        ----------
        step : int
            Steps taken before it.
        """
        step = as_count("step", step, least=0, most=self.total - 1, most_is="one less than total")
        if step < self.warmup:
            return self.top * (step + 1) / self.warmup
        gone = (step - self.warmup) / (self.total - self.warmup)
        return self.least + (self.top - self.least) * 0.5 * (1 + math.cos(math.pi * gone))
