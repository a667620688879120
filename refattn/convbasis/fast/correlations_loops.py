"""Compiled loops of correlations: collecting them by chunk, and putting lags together; see `refattn._compiled`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray


@compiled
def add_correlations_of_one(
    x: NDArray[Any],
    z: NDArray[Any],
    place: NDArray[np.int64],
    weight: FloatArray,
    last: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """``out[f, place[R, p]] += weight[R, p] · z[R, f, 0] · conj(x[p, f, 0])`` for the pairs p below ``last[R]``."""
    near = np.empty(x.shape[0], x.dtype)
    for f in range(out.shape[0]):
        for p in range(x.shape[0]):
            near[p] = np.conj(x[p, f, 0])
        for row in range(z.shape[0]):
            far = z[row, f, 0]
            for p in range(last[row]):
                out[f, place[row, p]] += weight[row, p] * (far * near[p])


@compiled
def add_correlations(
    products: NDArray[Any],
    place: NDArray[np.int64],
    weight: FloatArray,
    first: int,
    last: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """``out[f, place[R, p]] += weight[R, p] · products[f, R − first, p]`` for the pairs p below ``last[R]``."""
    for f in range(products.shape[0]):
        for r in range(products.shape[1]):
            row = first + r
            for p in range(last[row]):
                out[f, place[row, p]] += weight[row, p] * products[f, r, p]


@compiled
def add_lags(
    lags: FloatArray,
    halves: FloatArray,
    own: NDArray[np.float64],
    behind: NDArray[np.float64],
    block: int,
    out: FloatArray,
) -> None:
    """``out[t] = halves[t] (own[δ] Re lags[δ, t − δ·block] + behind[δ] Re lags[δ + 1, block + t − δ·block])``.

    δ is the block of the lag t. `lags` has real and imaginary parts in turn; its first lag of the block before is none.
    """
    for first in range(0, out.size, block):
        chunk = first // block
        a, b = out.dtype.type(own[chunk]), out.dtype.type(behind[chunk])
        last = min(first + block, out.size)
        for t in range(first, last):
            out[t] = halves[t] * a * lags[chunk, 2 * (t - first)]
        if chunk + 1 < lags.shape[0]:
            for t in range(first + 1, last):
                out[t] += halves[t] * b * lags[chunk + 1, 2 * (block + t - first)]
