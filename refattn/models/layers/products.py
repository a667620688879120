"""Products of matrices in blocks of rows on our own threads, BLAS at one thread in each (ours).

Blocks depend on shapes alone, so a product has the same bits for any number of threads. BLAS's own threads wait for
each other inside a product: where something else wants a processor, that took up to twenty times as long as it did.
"""

from __future__ import annotations

import numpy as np

from refattn._overflow import overflow_judged
from refattn._threads import for_each, one_blas_thread
from refattn._validation import FloatArray

_WORK = 1 << 24
"""Multiplications in a block, at least: a third of a millisecond."""
_ROWS, _BLOCKS = 64, 16
"""Rows of a block, at least, and blocks at most: each takes the whole second factor again."""


def products(*factors: tuple[FloatArray, FloatArray]) -> list[FloatArray]:
    """Return ``a @ b`` of every pair of matrices, all their blocks at the same time."""
    found = [np.empty((len(a), b.shape[-1]), np.result_type(a, b)) for a, b in factors]
    blocks = [
        (a[rows], b, out[rows])
        for (a, b), out in zip(factors, found, strict=True)
        for rows in _blocks(len(a), a.shape[-1] * b.shape[-1])
    ]

    def multiply(block: tuple[FloatArray, FloatArray, FloatArray]) -> None:
        a, b, out = block
        with overflow_judged():
            np.matmul(a, b, out=out)

    with one_blas_thread():
        for_each(multiply, blocks)
    return found


def _blocks(rows: int, work: int) -> list[slice]:
    """Cut rows that take so many multiplications each."""
    count = max(1, min(rows * work // _WORK, rows // _ROWS, _BLOCKS))
    step = max(1, -(-rows // count))
    return [slice(start, start + step) for start in range(0, rows, step)]
