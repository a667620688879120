"""Compiled loop of attention with heavy hitters: one key-value head, one pair after the other (ours).

Keys are kept as columns, so that the products of a query with all of them run along memory without a sum reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled, compiled_with_fma
from refattn._validation import FloatArray
from refattn.patterns._loops import combine, soften

Index = NDArray[np.int64]


@compiled
def freed_slot(position: int, recent: int, sums: NDArray[np.float64], positions: Index) -> int:
    """Return the slot for the pair at `position`: the next empty one, or that of the pair that is given up.

    Given up is, of the pairs that are not among the newest `recent`, the one with the least attention so far; of
    several the latest.
    """
    if position < positions.size:
        return position
    least = -1
    for c in range(positions.size):
        if positions[c] > position - recent:
            continue
        if least < 0 or sums[c] < sums[least] or (sums[c] == sums[least] and positions[c] > positions[least]):
            least = c
    return least


@compiled_with_fma
def products(row: FloatArray, columns: FloatArray, held: int, out: FloatArray) -> None:
    """``out_c = Σ_x row_x columns_xc`` for the columns that are held."""
    for c in range(held):
        out[c] = 0
    for x in range(row.size):
        factor, column = row[x], columns[x]
        for c in range(held):
            out[c] += factor * column[c]


def _with(softened: Callable[..., Any]) -> Callable[..., bool]:
    @compiled_with_fma
    def take(
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        scale: Any,
        start: int,
        recent: int,
        columns: FloatArray,
        values: FloatArray,
        sums: NDArray[np.float64],
        positions: Index,
        slots: Index,
        weights: FloatArray,
        out: FloatArray,
    ) -> bool:
        """Take in the pairs from position `start` on, and write each query's output; whether all logits are finite.

        q and out are (group, n, ·), k and v (n, ·); kept are `columns` (d, m), `values` (m, d_v), `sums` and
        `positions` (m,). `slots` counts to m; `weights` (m,) is workspace.
        """
        fine = True
        for i in range(k.shape[0]):
            slot = freed_slot(start + i, recent, sums, positions)
            for x in range(k.shape[1]):
                columns[x, slot] = k[i, x]
            for x in range(v.shape[1]):
                values[slot, x] = v[i, x]
            sums[slot], positions[slot] = 0, start + i
            held = min(start + i + 1, positions.size)
            places, row = slots[:held], weights[:held]
            for h in range(q.shape[0]):
                products(q[h, i], columns, held, row)
                finite, inverse = softened(row, 0, scale)
                fine &= finite
                for c in range(held):
                    row[c] *= inverse
                    sums[c] += row[c]
                combine(row, values, places, 0, out[h, i])
        return fine

    return take


take = {dtype: _with(one) for dtype, one in soften.items()}
"""By the dtype of the computation."""
