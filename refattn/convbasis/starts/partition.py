"""What it costs, in squared logits, to represent a run of columns by one kernel, and the cheapest partitions (ours).

H is the lower-triangular matrix of the logits. A segment of the columns ``a … b − 1`` with one kernel u has the squared
error ``Σ_t Σ_j (H[j + t, j] − u[t])²`` over its columns j with j + t < n, and u[t], lag by lag, is best the mean:

    cost(a, b) = Σ_{j,t} H[j + t, j]² − Σ_t (Σ_j H[j + t, j])² / count_t,     count_t = min(b, n − t) − a.

With prefix sums along diagonals, ``S_t(b) = Σ_{j<b} H[j + t, j]``, the second term falls in two parts:

    t ≤ n − b    (S_t(b) − S_t(a))² / (b − a): one product of matrices for all pairs (a, b);
    t > n − b    (S_t(n) − S_t(a))² / (n − t − a): does not depend on b but for where the sum over t begins.

The derivation is in docs/explanation/fewest-starts.md. Any matrix conv(c) may be subtracted from H without a change of
any cost; the means of the whole diagonals are, because S is then small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._threads import for_each, one_blas_thread
from refattn._validation import FloatArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_COLUMNS = 128
"""Columns, and boundaries, that are worked on at once."""


class DiagonalSums(NamedTuple):
    """Prefix sums along the diagonals `lags`, ascending, at the `bounds` where a segment may begin or end, from 0 to n.

    `sums`, shape (m + 1, τ), are ``S_t(b)`` of the matrix less the mean of every diagonal, and `energy`, shape (m +
    1,), ``Σ_{j<b} Σ_t`` of the squares of the same entries. `plain_energy` is that of the matrix itself: what the
    columns before b cost where they are represented by zero.
    """

    n: int
    lags: Integers
    bounds: Integers
    sums: Floats
    energy: Floats
    plain_energy: Floats

    def at(self, places: Integers) -> DiagonalSums:
        """Return the sums at some of the places, given by their numbers; the first and last are among them."""
        return DiagonalSums(
            self.n, self.lags, self.bounds[places], self.sums[places], self.energy[places], self.plain_energy[places]
        )


def all_diagonals(columns: Callable[[int, int], FloatArray], offset: Floats, n: int, grid: int) -> DiagonalSums:
    """Sum up all diagonals of a matrix, at every `grid`-th column.

    ``columns(first, end)`` gives the columns ``first … end − 1`` from row `first` down, as rows; what is above the
    diagonal is not read. `offset`, the diagonals' means as far as they are known, is subtracted from every column.
    """
    bounds = np.append(np.arange(0, n, grid), n)
    require_memory("q, k: prefix sums of the diagonals", bounds.size * n * 8)
    sums, energy, plain = np.zeros((bounds.size, n)), np.zeros(bounds.size), np.zeros(bounds.size)
    running = np.zeros(n)
    place = 1
    for first in range(0, n, _COLUMNS):
        with one_blas_thread():  # the same sums, whatever BLAS may use
            block = np.asarray(columns(first, min(first + _COLUMNS, n)), np.float64)
        for row in range(block.shape[0]):
            column = block[row, row:]
            centred = column - offset[: column.size]
            running[: column.size] += centred
            energy[place] += centred @ centred
            plain[place] += column @ column
            if first + row + 1 == bounds[place]:
                sums[place] = running
                place += 1
    return DiagonalSums(n, np.arange(n), bounds, sums, energy.cumsum(), plain.cumsum())


def some_diagonals(q: FloatArray, k: FloatArray, scale: float, lags: Integers) -> DiagonalSums:
    """Sum up some diagonals of the logits of one head, at every column; O(n d) for each diagonal."""
    n = q.shape[0]
    require_memory("q, k: prefix sums of the sampled diagonals", (n + 1) * lags.size * 8)
    sums, energy, plain = np.zeros((n + 1, lags.size)), np.zeros(n + 1), np.zeros(n + 1)
    for place, t in enumerate(lags):
        diagonal = np.einsum("jd,jd->j", q[t:], k[: n - t], dtype=np.float64) * scale
        centred = diagonal - diagonal.mean()
        sums[1 : n - t + 1, place] = centred.cumsum()
        sums[n - t + 1 :, place] = sums[n - t, place]
        energy[1 : n - t + 1] += centred * centred
        plain[1 : n - t + 1] += diagonal * diagonal
    return DiagonalSums(n, lags, np.arange(n + 1), sums, energy.cumsum(), plain.cumsum())


def segment_costs(diagonals: DiagonalSums) -> Floats:
    """Squared error of every segment from place a to a later place b, shape (m, m + 1); the other entries are infinite.

    Time O(m² τ), in products of matrices, and O(m (m + τ)); memory O(m² + mτ). Absolute error about ``u n`` times the
    energy, u being the unit roundoff.
    """
    n, lags, bounds, sums, energy, _ = diagonals
    m = bounds.size - 1
    require_memory("q, k: costs of all segments", m * (m + 1) * 8)
    full = np.searchsorted(lags, n - bounds, side="right")  # the first diagonals, on which all columns before b count
    costs = _common_products(sums, full)
    own = np.array([row[:count] @ row[:count] for row, count in zip(sums, full, strict=True)])
    for a in range(m):
        later = slice(a + 1, m + 1)
        length = bounds[later] - bounds[a]
        squares = _running_sum(sums[a] * sums[a])
        seen = int(np.searchsorted(lags, n - bounds[a], side="left"))
        beyond = sums[m, :seen] - sums[a, :seen]
        tails = _running_sum(beyond * beyond / (n - lags[:seen] - bounds[a]))
        explained = (own[later] + squares[full[later]] - 2 * costs[a, later]) / length
        explained += tails[seen] - tails[full[later]]
        costs[a, : a + 1] = np.inf
        costs[a, later] = np.where(length > 1, np.maximum(energy[later] - energy[a] - explained, 0), 0)
    return costs


def _common_products(sums: Floats, full: Integers) -> Floats:
    """``Σ_t S_t(a) S_t(b)`` over the first ``full[b]`` diagonals, for all a < b."""
    m = sums.shape[0] - 1
    products = np.empty((m, m + 1))

    def block(first: int) -> None:
        end = min(first + _COLUMNS, m + 1)
        rows, most = min(end, m), full[first]
        cut = np.where(np.arange(most) < full[first:end, None], sums[first:end, :most], 0)
        np.matmul(sums[:rows, :most], cut.T, out=products[:rows, first:end])

    with one_blas_thread():
        for_each(block, range(0, m + 1, _COLUMNS))
    return products


def _running_sum(values: Floats) -> Floats:
    return np.concatenate([[0.0], values.cumsum()])


class Partitions(NamedTuple):
    """Cheapest partitions into 1, 2, … segments: the first columns of each, and what they cost."""

    starts: tuple[Integers, ...]
    squared_error: Floats


def cheapest_partitions(diagonals: DiagonalSums, n_basis: int, *, zero_before: bool) -> Partitions:
    """Find the cheapest partition into k segments for every k up to `n_basis` ≤ m, by dynamic programming.

    With `zero_before`, the first segment may begin later than column 0; the columns before it are then represented by
    zero, as in a basis whose first term is smaller than the matrix. Time O(n_basis m²) after `segment_costs`, memory
    O(m² + n_basis m).
    """
    from refattn.convbasis.starts import partition_loops

    m = diagonals.bounds.size - 1
    require_memory("n_basis: the table of the dynamic programme", n_basis * (m + 1) * 4)
    before = diagonals.plain_energy.copy() if zero_before else np.full(m + 1, np.inf)
    before[0] = 0.0
    errors, parents = np.empty(n_basis), np.zeros((n_basis, m + 1), np.int32)
    partition_loops.shortest_partitions(segment_costs(diagonals), before, errors, parents)
    starts = []
    for k in range(1, n_basis + 1):
        places = [m]
        for layer in range(k - 1, -1, -1):
            places.append(int(parents[layer, places[-1]]))
        starts.append(diagonals.bounds[places[:0:-1]])
    return Partitions(tuple(starts), errors)
