"""Starts from a sample of the diagonals, in near-linear time (ours).

A column of the logits, read at τ sampled lags, is a vector of τ numbers, and a segment is a run of columns whose
vectors are equal but for noise: starts are the change points of a sequence. Two steps find them.

- *Splitting*: of all segments, the one whose best cut lowers the squared error most is cut there, again and again. If
  the logits are exactly k-conv, a best cut of a segment that holds several kernels lies at a true start, because
  between two true starts the fall is a convex function of the place (docs/explanation/fewest-starts.md).
- *Choosing*: of the starts that splitting offers, twice as many as will be needed, the dynamic programme of
  `refattn.convbasis.starts.partition` takes the best k, for every k at once. What a first cut did badly, it leaves out.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis.starts.partition import DiagonalSums, Partitions, cheapest_partitions, some_diagonals

N_LAGS = 64
"""Diagonals that are looked at, but for those drawn twice."""


def sampled_starts(q: FloatArray, k: FloatArray, scale: float, n_basis: int, rng: np.random.Generator) -> Partitions:
    """Choose starts for 1 … k terms, k ≤ `n_basis` ≤ n, by the squared error over diagonals that `rng` draws.

    There are less where no more cuts lower the error. Every choice begins at column 0. Time O(τ n (d + log k)) where
    cuts halve, O(τ n (d + k)) at worst, and O(k² (τ + k)); memory O(τ n).
    """
    diagonals = some_diagonals(q, k, scale, sampled_lags(q.shape[0], rng))
    offered = diagonals.at(_offered(diagonals, 2 * n_basis))
    return cheapest_partitions(offered, min(n_basis, offered.bounds.size - 1), zero_before=False)


def sampled_lags(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw lags, ascending: 0, half of the others evenly, half evenly in their logarithm.

    The last columns have small lags only.
    """
    evenly = rng.integers(0, n, N_LAGS // 2)
    small = np.floor(np.exp(rng.uniform(0, np.log(n), N_LAGS // 2))).astype(np.int64) - 1
    return np.unique(np.concatenate([[0], evenly, small]))


def _offered(diagonals: DiagonalSums, most: int) -> NDArray[np.int64]:
    """Places 0 and n, and up to `most` cuts between them, ascending."""
    from refattn.convbasis.starts import partition_loops

    cuts: list[int] = []
    waiting: list[tuple[float, int, int, int]] = []

    def offer(first: int, end: int) -> None:
        gain, place = partition_loops.best_split(diagonals.sums, diagonals.lags, first, end)
        if gain > 0:
            heappush(waiting, (-gain, place, first, end))

    offer(0, diagonals.n)
    while waiting and len(cuts) < most:
        _, place, first, end = heappop(waiting)
        cuts.append(place)
        offer(first, place)
        offer(place, end)
    return np.array([0, *sorted(cuts), diagonals.n])
