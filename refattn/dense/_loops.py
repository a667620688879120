"""Compiled loops over a tile of logits, one row for every key and one column for every query (ours).

What is summed over keys runs down the tile, so that neighbouring queries are worked on at once without reordering a
sum. A sum is taken over 32 keys, and these sums are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled, compiled_with_fma
from refattn._exponential import exp_float32, exp_float64
from refattn._validation import FloatArray


def _with(exp: Callable[[Any], Any]) -> Callable[..., None]:
    @compiled_with_fma
    def exponentials(
        logits: FloatArray, largest: FloatArray, total: FloatArray, kept: FloatArray, space: FloatArray
    ) -> None:
        """Turn the logits of a tile into ``E = exp(S − m)``, m the largest of a query so far (0 where all are −inf).

        `largest` and `total`, of the tiles before (−inf and 0 at first), become those with this one; `kept` is what
        sums of the tiles before have to be multiplied by. `space`, of two rows, is workspace.
        """
        n_k, n_q = logits.shape
        part, sums = space[0], space[1]
        for i in range(n_q):
            part[i] = largest[i]
        pairs = n_k // 4 * 4
        for j in range(0, pairs, 4):
            for i in range(n_q):
                one, other = max(logits[j, i], logits[j + 1, i]), max(logits[j + 2, i], logits[j + 3, i])
                part[i] = max(part[i], max(one, other))
        for j in range(pairs, n_k):
            for i in range(n_q):
                part[i] = max(part[i], logits[j, i])
        for i in range(n_q):
            before, largest[i] = largest[i], part[i]
            part[i] = part[i] if part[i] > -np.inf else 0
            kept[i] = exp(before - part[i])
            total[i] *= kept[i]
        for first in range(0, n_k, 32):
            for i in range(n_q):
                sums[i] = 0
            for j in range(first, min(first + 32, n_k)):
                for i in range(n_q):
                    logits[j, i] = exp(logits[j, i] - part[i])
                    sums[i] += logits[j, i]
            for i in range(n_q):
                total[i] += sums[i]

    return exponentials


exponentials = {np.dtype(np.float32): _with(exp_float32), np.dtype(np.float64): _with(exp_float64)}
"""By the dtype of the computation."""


@compiled
def hide(seen: NDArray[np.bool_], logits: FloatArray) -> None:
    """Write −inf where a query, a row of `seen`, may not see a key."""
    for j in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            logits[j, i] = logits[j, i] if seen[i, j] else -np.inf


@compiled
def hide_out_of_sight(logits: FloatArray, key: int, position: int, window: int, sinks: int) -> None:
    """Write −inf where a pattern hides a key; the first ones are key `key` and the query at `position`."""
    for j in range(logits.shape[0]):
        sink = key + j < sinks
        for i in range(logits.shape[1]):
            lag = position + i - key - j
            seen = (lag >= 0) & (sink | (lag < window))
            logits[j, i] = logits[j, i] if seen else -np.inf


@compiled
def scale_rows(rows: FloatArray, factors: FloatArray) -> None:
    """Multiply each row by its factor."""
    for i in range(rows.shape[0]):
        for x in range(rows.shape[1]):
            rows[i, x] *= factors[i]


@compiled
def divide_rows(rows: FloatArray, total: FloatArray) -> None:
    """Divide each row by its total, unless that is 0."""
    for i in range(rows.shape[0]):
        factor = 1 / total[i] if total[i] > 0 else total[i]
        for x in range(rows.shape[1]):
            rows[i, x] *= factor


@compiled_with_fma
def through_softmax(weights: FloatArray, total: FloatArray, flow: FloatArray, space: FloatArray) -> None:
    """Divide weights by their sum, P = E / t, and write ``P ∘ (F − Σ P F)`` over the flow F.

    What nobody attends to counts for nothing, however large its flow is. `space`, of two rows, is workspace.
    """
    n_k, n_q = weights.shape
    correction, part = space[0], space[1]
    zero = weights.dtype.type(0)
    for i in range(n_q):
        total[i] = 1 / total[i] if total[i] > 0 else zero
        correction[i] = 0
    for first in range(0, n_k, 32):
        for i in range(n_q):
            part[i] = 0
        for j in range(first, min(first + 32, n_k)):
            for i in range(n_q):
                weight = weights[j, i] * total[i]
                weights[j, i] = weight
                part[i] += weight * flow[j, i] if weight > 0 else zero
        for i in range(n_q):
            correction[i] += part[i]
    for j in range(n_k):
        for i in range(n_q):
            weight = weights[j, i]
            flow[j, i] = weight * (flow[j, i] - correction[i]) if weight > 0 else zero


@compiled
def largest_of_rows(bits: NDArray[Any], but_sign: Any, out: NDArray[Any]) -> None:
    """Write of each row of numbers the bits of the largest in size, or of a NaN: without signs they are in order."""
    for i in range(bits.shape[0]):
        most = out.dtype.type(0)
        for x in range(bits.shape[1]):
            size = out.dtype.type(bits[i, x] & but_sign)  # else a wider integer
            most = size if size > most else most
        out[i] = most
