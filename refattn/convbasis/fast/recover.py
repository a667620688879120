"""Recover with compiled loops: the starts and kernels of `refattn.convbasis.recover`, for the fast path.

`recover` stands next to the paper; this does the same work in the same order, block by block of rows over all kernels
at once, and the tests hold the starts of the two against each other.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import as_input
from refattn._memory import require_memory
from refattn._threads import for_each
from refattn._validation import FloatArray, require_finite
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.fast import recover_loops

_ROWS = 512


def recover_heads(
    queries: FloatArray, keys: FloatArray, n_basis: int, probe: int, threshold: float, scale: float
) -> ConvBasis:
    """Recover the basis of every head of checked arrays ``(…, n, d)``; unused places of the stack start at n."""
    *lead, n, _ = queries.shape
    heads = list(np.ndindex(*lead))
    found = [_find_starts(queries[head], keys[head], n_basis, probe, threshold, scale) for head in heads]
    most = max(starts.size for starts in found)
    require_memory("n_basis: the kernels of the basis", len(heads) * most * n * queries.itemsize)
    starts: NDArray[np.int64] = np.full((*lead, most), n, dtype=np.int64)
    kernels = np.zeros((*lead, most, n), queries.dtype)
    for head, columns in zip(heads, found, strict=True):
        starts[head][: columns.size] = columns
        _write_kernels(queries[head], keys[head], columns, scale, kernels[head])
    return ConvBasis._trusted(starts, kernels)


def _find_starts(
    Q: FloatArray, K: FloatArray, n_basis: int, probe: int, threshold: float, scale: float
) -> NDArray[np.int64]:
    starts = np.empty(n_basis, np.int64)
    v, column = np.empty(probe), np.empty(probe)
    largest = float(np.finfo(Q.dtype).max)
    found = recover_loops.find_starts(as_input(Q), as_input(K), threshold, scale, largest, v, column, starts)
    if found < 0:
        j = -1 - found
        raise ValueError(f"q, k: a logit of column {j} overflows {Q.dtype}, finite numbers were wanted")
    return starts[:found]


def _write_kernels(Q: FloatArray, K: FloatArray, starts: NDArray[np.int64], scale: float, kernels: FloatArray) -> None:
    """``kernels[i, t] = scale · Q[c_i + t] · K[c_i]``."""
    Q, K = as_input(Q), as_input(K)
    n, d = Q.shape
    bad: list[int] = []

    def rows(first: int) -> None:
        transposed = np.empty((d, min(_ROWS, n - first)), Q.dtype)
        if recover_loops.logit_columns(Q, K, cast(float, Q.dtype.type(scale)), starts, first, transposed, kernels):
            bad.append(first)

    for_each(rows, range(0, n, _ROWS))
    if bad:
        require_finite("q, k: logits", kernels[: starts.size])
