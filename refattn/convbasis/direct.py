"""Rows of conv attention from the logits of the basis, each with its own maximum: exact, O(nd) a row (ours).

What the block transform would lose to rounding is computed here, and everything where this is the cheaper way. A tile
of rows visits the columns it sees in runs: gather the logits, take the exponentials, add the weighted values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import as_input
from refattn._threads import for_each
from refattn._validation import FloatArray, require_finite
from refattn.convbasis import _row_kernels
from refattn.convbasis.toeplitz import near_one

_ROWS = 64
_COLUMNS = 512
"""Size of a tile of logits: 128 kB in float32, which a core keeps in its cache."""

Segments = tuple[NDArray[np.int64], FloatArray]
"""Starts, the first of which is 0, and cumulative kernels."""


def write_rows(
    rows: NDArray[np.int64], v: FloatArray, lower: Segments, upper: Segments | None, out: FloatArray
) -> None:
    """Write the given rows of the output, in increasing order, to `out`, shape (n, d_v).

    Raises
    ------
    ValueError
        The output overflows.
    """
    v = as_input(v)
    lower = lower[0], as_input(lower[1])
    upper = None if upper is None else (upper[0], as_input(upper[1]))
    _write_tiles(rows, v, lower, upper, out)
    if not np.isfinite(out[rows]).all() and np.isfinite(v).all():
        # a sum of values overflowed, though their average need not
        v, exponent = near_one(v)
        _write_tiles(rows, v, lower, upper, out)
        with np.errstate(over="ignore"):
            out[rows] = np.ldexp(out[rows], exponent)
        require_finite("v: output", out[rows])


def _write_tiles(
    rows: NDArray[np.int64], v: FloatArray, lower: Segments, upper: Segments | None, out: FloatArray
) -> None:
    for_each(
        lambda first: _write_tile(rows[first : first + _ROWS], v, lower, upper, out),
        # the longest rows first: what is left for the last thread is short
        range((rows.size - 1) // _ROWS * _ROWS, -1, -_ROWS),
    )


def _write_tile(
    rows: NDArray[np.int64], v: FloatArray, lower: Segments, upper: Segments | None, out: FloatArray
) -> None:
    n, d = v.shape
    columns = int(rows[-1]) + 1 if upper is None else n
    runs = [(first, min(first + _COLUMNS, columns)) for first in range(0, columns, _COLUMNS)]
    tile = np.empty((min(_COLUMNS, columns), rows.size), v.dtype)
    largest = np.full(rows.size, -np.inf, v.dtype)

    def gather(first: int, last: int) -> FloatArray:
        logits = tile[: last - first]
        _row_kernels.gather_lower(*lower, rows, first, logits, largest)
        if upper is not None:
            _row_kernels.gather_upper(*upper, rows, first, logits, largest)
        return logits

    for run in runs[:-1]:
        gather(*run)
    logits = gather(*runs[-1])
    numerator, total = np.zeros((rows.size, d)), np.zeros(rows.size)
    part = np.empty((rows.size, d + 1), v.dtype)
    for run in reversed(runs):
        if run != runs[-1]:
            logits = gather(*run)
        _row_kernels.subtract_row_maximum(logits, largest)
        _row_kernels.add_weighted(np.exp(logits, out=logits), v, run[0], part, total, numerator)
    _row_kernels.write_quotient(rows, numerator, total, out)


def row_weights(rows: NDArray[np.int64], columns: int, lower: Segments, upper: Segments | None) -> FloatArray:
    """Softmax weights of the given rows, in increasing order, over the first `columns` keys: shape (columns, rows)."""
    dtype = lower[1].dtype
    weights, largest = np.empty((columns, rows.size), dtype), np.full(rows.size, -np.inf, dtype)
    _row_kernels.gather_lower(lower[0], as_input(lower[1]), rows, 0, weights, largest)
    if upper is not None:
        _row_kernels.gather_upper(upper[0], as_input(upper[1]), rows, 0, weights, largest)
    _row_kernels.subtract_row_maximum(weights, largest)
    with np.errstate(under="ignore"):
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=0, dtype=np.float64).astype(dtype)
    return weights
