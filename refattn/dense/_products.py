"""Products of matrices within compiled loops, a piece at a time, by the BLAS that these reach: SciPy's (ours).

OpenBLAS multiplies small matrices as they lie: without copying them first, or filling the result with zeros. Where it
has that for the processor, and the sums are as short as those of attention, a product takes a third less time. A
matrix is small to it up to a million products of two numbers; only what is summed over may be transposed, and that in
the first matrix alone. From Python a call would cost as much as such a product.
"""

from __future__ import annotations

import numpy as np
from numba.np.linalg import ensure_blas

from refattn._compiled import compiled
from refattn._validation import FloatArray

ensure_blas()
"""Raises where SciPy's BLAS counts with other integers than Numba; a loop read from the disk would not ask."""


@compiled
def multiply(a: FloatArray, b: FloatArray, rows: int, out: FloatArray) -> None:
    """Write ``A B``, so many rows at a time."""
    for first in range(0, a.shape[0], rows):
        last = min(first + rows, a.shape[0])
        np.dot(a[first:last], b, out[first:last])


@compiled
def add_product(a: FloatArray, b: FloatArray, rows: int, space: FloatArray, out: FloatArray) -> None:
    """Add ``A B``, so many rows at a time; `space`, flat, is workspace for them."""
    for first in range(0, a.shape[0], rows):
        last = min(first + rows, a.shape[0])
        product = space[: (last - first) * b.shape[1]].reshape(last - first, b.shape[1])
        np.dot(a[first:last], b, product)
        for i in range(last - first):
            for x in range(b.shape[1]):
                out[first + i, x] += product[i, x]


@compiled
def add_sum(a: FloatArray, b: FloatArray, rows: int, space: FloatArray, out: FloatArray) -> None:
    """Add ``Aᵀ B``, summed over so many rows at a time; `space`, flat, is workspace of the result's size."""
    product = space[: out.size].reshape(out.shape)
    for first in range(0, a.shape[0], rows):
        last = min(first + rows, a.shape[0])
        np.dot(a[first:last].T, b[first:last], product)
        for i in range(out.shape[0]):
            for x in range(out.shape[1]):
                out[i, x] += product[i, x]
