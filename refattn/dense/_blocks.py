"""A block of queries with its tiles in one compiled loop, where patterns and sinks alone say what is seen (ours)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray
from refattn.dense._loops import divide_rows, exponentials, hide_out_of_sight, scale_rows
from refattn.dense._products import add_sum


def _with(soften: Callable[..., None]) -> Callable[..., None]:
    @compiled
    def attend(
        q: FloatArray, k: FloatArray, v: FloatArray, scale: Any, row: int, tiles: NDArray[np.int64],
        sights: NDArray[np.int64], space: FloatArray, out: FloatArray, largest: FloatArray, total: FloatArray,
    ) -> None:  # fmt: skip
        """Add to a block's rows of the output, from query `row` on, and to largest logits and sums, as they came.

        `tiles` has a row for each: its keys, and those of them that may be hidden, first and end. `space`, flat, is
        workspace for a tile of logits, the block's queries, its output, and three numbers a query.
        """
        (n_q, d), d_v = q.shape, v.shape[1]
        queries, product = space[: d * n_q].reshape(d, n_q), space[d * n_q : (d + d_v) * n_q]
        kept = space[(d + d_v) * n_q : (d + d_v + 1) * n_q]
        work = space[(d + d_v + 1) * n_q : (d + d_v + 3) * n_q].reshape(2, n_q)
        space = space[(d + d_v + 3) * n_q :]
        for i in range(n_q):
            for x in range(d):
                queries[x, i] = scale * q[i, x]
        for tile in range(tiles.shape[0]):
            first, last, some, some_end = tiles[tile]
            weights = space[: (last - first) * n_q].reshape(last - first, n_q)
            np.dot(k[first:last], queries, weights)
            for sight in range(sights.shape[0] if some < some_end else 0):
                position, window, sinks = sights[sight]
                hide_out_of_sight(weights[some:some_end], first + some, position + row, window, sinks)
            soften(weights, largest, total, kept, work)
            scale_rows(out, kept)
            add_sum(weights, v[first:last], last - first, product, out)
        divide_rows(out, total)

    return attend


attend = {dtype: _with(soften) for dtype, soften in exponentials.items()}
"""By the dtype of the computation."""
