"""The best starts for every number of terms, in the least-squares sense on the logits, by dynamic programming (ours).

The squared error of a conv basis is a sum over its segments, so the best starts are a shortest path over columns: once
the cost of every segment is known (`refattn.convbasis.starts.partition`), one pass gives the best k starts for all k
at once. No k-conv matrix is nearer to the logits in the Frobenius norm: what the error is here, no method for choosing
starts and kernels can go below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_count, as_float_arrays, as_scale, require_finite
from refattn.convbasis.basis import as_head, require_lower_triangular
from refattn.convbasis.starts.partition import DiagonalSums, all_diagonals, cheapest_partitions
from refattn.convbasis.toeplitz import fft_correlation


@dataclass(frozen=True, eq=False)
class BestStarts:
    """Best starts for 1 … n_basis terms, and the squared error they leave.

    Attributes
    ----------
    starts : tuple of ndarray of int64
        ``starts[k − 1]``, shape (k,): first columns of the segments of the best k-conv matrix, whose kernels are those
        of `least_squares_basis`. Columns before the first start, if there are any, are best represented by zero.
    squared_error : ndarray, shape (n_basis,)
        ``‖H − H'‖_F²`` of that matrix over the causal entries, in float64; it never rises with k.
    energy : float
        ``‖H‖_F²`` over the causal entries.
    grid : int
        The starts are multiples of it. With 1 they are the best of all; with more, the best of these only.

    Examples
    --------
    >>> from refattn.convbasis import best_starts_of_matrix
    >>> best = best_starts_of_matrix([[1.0, 0.0], [1.0, 3.0]], 2)
    >>> best.energy, best.squared_error.tolist()
    (11.0, [2.0, 0.0])
    """

    starts: tuple[NDArray[np.int64], ...]
    squared_error: NDArray[np.float64]
    energy: float
    grid: int

    @property
    def relative_error(self) -> NDArray[np.float64]:
        """``‖H − H'‖_F / ‖H‖_F`` for every k, shape (n_basis,); 0 where H is zero."""
        return np.sqrt(self.squared_error / (self.energy or 1.0))


def best_starts(q: ArrayLike, k: ArrayLike, n_basis: int, *, grid: int = 1, scale: float | None = None) -> BestStarts:
    """Find the starts of the k-conv matrix nearest to the causal logits of a head, for every k up to `n_basis`.

    Parameters
    ----------
    q, k : array_like, shape (n, d)
        Queries and keys of one head, float32 or float64.
    n_basis : int
        Most terms, from 1 to the number of places for a start, ``⌈n / grid⌉``.
    grid : int, optional
        Starts are multiples of it, 1 ≤ grid ≤ n. With 1, the squared errors bound from below what *any* k-conv basis
        reaches, whatever its starts and kernels; with more, they hold for starts on the grid only.
    scale : float, optional
        As for `recover`.

    Returns
    -------
    BestStarts
        In float64, whatever the dtype of `q` and `k`.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, a number is out of range, or an entry or a logit is not finite.
    MemoryError
        The tables do not fit: a larger grid was wanted.

    Notes
    -----
    With m = ⌈n/grid⌉ places: O(n² d) for the logits, block by block, about m² n / 3 operations in products of matrices
    for the costs of all segments, and O(n_basis m²) for the dynamic programme; memory ``8 m (n + m)`` bytes and
    ``4 n_basis m``. The absolute error of the squared errors is about ``n u`` times the energy, u being float64's unit
    roundoff. Source: ours; optimal segmentation by dynamic programming is Bellman's (1961).

    Examples
    --------
    >>> from refattn.testing import rope_structured
    >>> q, k, v, starts = rope_structured(60, 8, starts=[0, 20, 40], seed=0)
    >>> best = best_starts(q, k, 4)
    >>> best.starts[2].tolist(), bool(best.relative_error[2] < 1e-6)
    ([0, 20, 40], True)
    >>> bool(best.relative_error[1] > 0.1)  # no two terms come near
    True
    """
    q, k = as_head(q, k)
    n = q.shape[0]
    n_basis, grid = _counts(n, n_basis, grid)
    factor = as_scale(scale, q.shape[1], q.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        queries, keys = q.astype(np.float64), k.astype(np.float64) * factor
        offset = fft_correlation(queries, keys) / np.arange(n, 0, -1)
        require_finite("q, k: logits", offset)
        diagonals = all_diagonals(lambda first, end: keys[first:end] @ queries[first:].T, offset, n, grid)
    return _best("q, k: squares of logits", diagonals, n_basis, grid)


def best_starts_of_matrix(h: ArrayLike, n_basis: int, *, grid: int = 1) -> BestStarts:
    """Find the starts of the k-conv matrix nearest to a lower-triangular matrix, for every k up to `n_basis`.

    Parameters
    ----------
    h : array_like, shape (n, n)
        Lower-triangular, float32 or float64.
    n_basis, grid : int
        As for `best_starts`.

    Returns
    -------
    BestStarts
        In float64, whatever the dtype of `h`.

    Raises
    ------
    TypeError, ValueError
        `h` is not a square, finite, lower-triangular matrix of numbers, or a number is out of range.
    MemoryError
        The tables do not fit: a larger grid was wanted.

    Notes
    -----
    Time O(m² n + n_basis m²) with m = ⌈n/grid⌉, memory O(m (n + m + n_basis)). Source: ours.

    Examples
    --------
    >>> best_starts_of_matrix([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 7.0]], 2).starts
    (array([2]), array([0, 2]))
    """
    (h,) = as_float_arrays(h=h)
    require_lower_triangular(h)
    n = h.shape[0]
    n_basis, grid = _counts(n, n_basis, grid)
    wide = h.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        offset = np.array([wide.diagonal(-t).mean() for t in range(n)])
        diagonals = all_diagonals(lambda first, end: wide[first:, first:end].T, offset, n, grid)
    return _best("h: squares", diagonals, n_basis, grid)


def _counts(n: int, n_basis: Any, grid: Any) -> tuple[int, int]:
    grid = as_count("grid", grid, least=1, most=n, most_is="n")
    places = -(-n // grid)
    return as_count("n_basis", n_basis, least=1, most=places, most_is="places for a start"), grid


def _best(squares: str, diagonals: DiagonalSums, n_basis: int, grid: int) -> BestStarts:
    energy = float(diagonals.plain_energy[-1])
    for sums in (np.asarray(energy), diagonals.energy, diagonals.sums):
        require_finite(squares, sums)
    found = cheapest_partitions(diagonals, n_basis, zero_before=True)
    return BestStarts(found.starts, found.squared_error, energy, grid)
