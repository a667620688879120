"""Compiled loop that compares rows of attention with those of a basis; see `refattn._compiled`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def compare_rows(
    logits: Floats, rows: Integers, starts: Integers, kernels: Floats, errors: Floats, residuals: Floats
) -> int:
    """Write ``‖a_i − ã_i‖₁`` and ``max_j |H_ij − H'_ij|`` of every row; overwrite `logits` with the exact weights.

    `starts` begin at column 0. Return a row with a logit that is not finite, at a column that the row sees, or −1.
    """
    represented = np.empty(logits.shape[1])
    for place in range(rows.size):
        i = rows[place]
        row = logits[place]
        top, top_represented, residual = -np.inf, -np.inf, 0.0
        for s in range(starts.size):
            end = starts[s + 1] if s + 1 < starts.size else logits.shape[1]
            for j in range(starts[s], min(end, i + 1)):
                if not np.isfinite(row[j]):
                    return int(i)
                represented[j] = kernels[s, i - j]
                top = max(top, row[j])
                top_represented = max(top_represented, represented[j])
                residual = max(residual, abs(row[j] - represented[j]))
        total, total_represented = 0.0, 0.0
        for j in range(i + 1):
            row[j] = np.exp(row[j] - top)
            represented[j] = np.exp(represented[j] - top_represented)
            total += row[j]
            total_represented += represented[j]
        error = 0.0
        for j in range(i + 1):
            row[j] /= total
            error += abs(row[j] - represented[j] / total_represented)
        errors[place], residuals[place] = error, residual
    return -1
