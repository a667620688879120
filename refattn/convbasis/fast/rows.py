"""Conv attention and its gradients from the logits of the basis, row by row, column by column and lag by lag (ours).

What the block transform would lose to rounding is computed here, and everything where this is the cheaper way. A tile
of rows visits the columns it sees in runs: gather the logits, take the exponentials, add the weighted values; O(nd) a
row. A column of the softmax visits its rows, a lag of a segment the pairs of rows and columns on its diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import as_input
from refattn._threads import for_each, one_blas_thread
from refattn._validation import FloatArray, require_finite
from refattn.convbasis.fast import rows_loops
from refattn.convbasis.toeplitz import near_one

_ROWS = 64
_COLUMNS = 512
"""Size of a tile of logits: 128 kB in float32, which a core keeps in its cache."""
_TILE_ENTRIES = 1 << 21
"""Weights of whole rows formed at once."""
_LAGS = 64
"""Lags computed by a thread at once."""

Segments = tuple[NDArray[np.int64], FloatArray]
"""Starts, the first of which is 0, and cumulative kernels, as compiled loops take them."""


def write_rows(
    rows: NDArray[np.int64], v: FloatArray, lower: Segments, upper: Segments | None, out: FloatArray
) -> None:
    """Write the given rows of the output, in increasing order, to `out`, shape (n, d_v); raise if it overflows."""

    def write_tiles(v: FloatArray, step: int = _ROWS) -> None:
        for_each(
            lambda first: _write_tile(rows[first : first + step], v, lower, upper, out),
            # the longest rows first: what is left for the last thread is short
            range((rows.size - 1) // step * step, -1, -step),
        )

    v = as_input(v)
    write_tiles(v)
    if np.isfinite(out[rows]).all():
        return
    if np.isfinite(v).all():
        # a sum of values overflowed, though their average need not
        v, exponent = near_one(v)
        write_tiles(v)
        with np.errstate(over="ignore"):
            out[rows] = np.ldexp(out[rows], exponent)
        require_finite("v: output", out[rows])
    elif upper is None:  # in a tile, a row meets values that it does not see, with a weight of zero
        write_tiles(v, step=1)


def _write_tile(
    rows: NDArray[np.int64], v: FloatArray, lower: Segments, upper: Segments | None, out: FloatArray
) -> None:
    n, d = v.shape
    columns = int(rows[-1]) + 1 if upper is None else n
    runs = [(first, min(first + _COLUMNS, columns)) for first in range(0, columns, _COLUMNS)]
    tile = np.empty((min(_COLUMNS, columns), rows.size), v.dtype)
    largest = np.full(rows.size, -np.inf, v.dtype)

    def gather(first: int, last: int) -> FloatArray:
        return _gather(lower, upper, rows, first, tile[: last - first], largest)

    for run in runs[:-1]:
        gather(*run)
    logits = gather(*runs[-1])
    numerator, total = np.zeros((rows.size, d)), np.zeros(rows.size)
    part = np.empty((rows.size, d + 1), v.dtype)
    for run in reversed(runs):
        if run != runs[-1]:
            logits = gather(*run)
        rows_loops.subtract_row_maximum(logits, largest)
        rows_loops.add_weighted(np.exp(logits, out=logits), v, run[0], part, total, numerator)
    rows_loops.write_quotient(rows, numerator, total, out)


def row_tiles(
    rows: NDArray[np.int64], lower: Segments, upper: Segments | None
) -> Iterator[tuple[NDArray[np.int64], int, FloatArray]]:
    """Yield rows, the number of keys they see, and their weights, shape (keys, rows); with one BLAS thread."""
    with one_blas_thread():  # sums in one order, whatever the number of threads
        for tile, weights, _, total in _exponentials(rows, lower, upper):
            with np.errstate(under="ignore"):
                weights /= total.astype(weights.dtype)
            yield tile, len(weights), weights


def write_log_sum_exp(
    rows: NDArray[np.int64], lower: Segments, upper: Segments | None, out: NDArray[np.float64]
) -> None:
    """``out[i]``, in float64, is the logarithm of the sum of the exponentials of the logits of row i."""
    for tile, _, largest, total in _exponentials(rows, lower, upper):
        out[tile] = np.log(total) + largest


def _exponentials(
    rows: NDArray[np.int64], lower: Segments, upper: Segments | None
) -> Iterator[tuple[NDArray[np.int64], FloatArray, FloatArray, NDArray[np.float64]]]:
    """Yield rows, exponentials of their logits less the largest of each, shape (keys, rows), these, and the sums."""
    n, dtype = lower[1].shape[1], lower[1].dtype
    step = max(1, _TILE_ENTRIES // n)
    for first in range(0, rows.size, step):
        tile = rows[first : first + step]
        logits = np.empty((int(tile[-1]) + 1 if upper is None else n, tile.size), dtype)
        largest = np.full(tile.size, -np.inf, dtype)
        rows_loops.subtract_row_maximum(_gather(lower, upper, tile, 0, logits, largest), largest)
        with np.errstate(under="ignore"):
            np.exp(logits, out=logits)
        yield tile, logits, largest, logits.sum(axis=0, dtype=np.float64)


def write_columns(
    columns: NDArray[np.int64],
    w: FloatArray,
    log_sum_exp: NDArray[np.float64],
    lower: Segments,
    upper: Segments | None,
    out: FloatArray,
) -> None:
    """``out[j] = Σ_i exp(logit_ij − log_sum_exp_i) w_i`` for the given columns, in increasing order; O(nd) a column."""
    w = as_input(w)
    n, d = w.shape

    def some(place: int) -> None:
        own = columns[place : place + _ROWS]
        numerator, total = np.zeros((own.size, d)), np.zeros(own.size)
        part, unused = np.empty((own.size, d + 1), w.dtype), np.empty(own.size, w.dtype)
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            for first in range(0 if upper is not None else int(own[0]), n, _COLUMNS):
                last = min(first + _COLUMNS, n)
                logits = np.full((last - first, own.size), -np.inf, w.dtype)
                if upper is not None:  # above the diagonal, column j of the matrix is row j of its transpose
                    rows_loops.gather_lower(*upper, own, first, logits, unused)
                rows_loops.gather_upper(*lower, own, first, logits, unused)
                rows_loops.gather_diagonal(*lower, own, first, logits)
                weights = np.exp(logits - log_sum_exp[first:last, None]).astype(w.dtype)
                rows_loops.add_weighted(weights, w, first, part, total, numerator)
            out[own] = numerator

    for_each(some, range(0, columns.size, _ROWS))


def write_lags(
    lost: NDArray[np.bool_],
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    log_sum_exp: NDArray[np.float64],
    basis: Segments,
    du: FloatArray,
    *,
    transposed: bool,
) -> None:
    """Write the lost entries of the gradient of the kernels, shape (k, n): ``Σ f_ij (G_i · v_j − r_i)`` on a diagonal.

    Where `transposed`, the basis is that of the transposed logits: its columns are the rows of f.
    """
    G, V = as_input(G), as_input(V)
    places = np.ascontiguousarray(np.argwhere(lost))  # by columns otherwise, and its slices in any order
    for_each(
        lambda first: rows_loops.write_lags(
            places[first : first + _LAGS], *basis, G, r, V, log_sum_exp, transposed, du
        ),
        range(0, len(places), _LAGS),
    )


def _gather(
    lower: Segments,
    upper: Segments | None,
    rows: NDArray[np.int64],
    first: int,
    logits: FloatArray,
    largest: FloatArray,
) -> FloatArray:
    """Write logits of the given rows, from key `first` on, and raise the largest of each row."""
    rows_loops.gather_lower(*lower, rows, first, logits, largest)
    if upper is not None:
        rows_loops.gather_upper(*upper, rows, first, logits, largest)
    return logits
