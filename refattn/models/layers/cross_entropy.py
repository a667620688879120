"""Cross-entropy of the next token, from logits, with a weight for every target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray


class CrossEntropyCache(NamedTuple):
    """What `cross_entropy_backward` needs: the probabilities, the targets, and the log-sum-exp of every row."""

    probabilities: FloatArray
    targets: NDArray[np.int64]
    log_sum_exp: NDArray[np.float64]


def cross_entropy_forward(
    logits: FloatArray, targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], CrossEntropyCache]:
    """``loss_r = log Σ_j exp(z_rj) − z_r,target`` of every row, in float64."""
    top = logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    weights = np.subtract(logits, top)
    np.exp(weights, out=weights)
    total = weights.sum(axis=-1, dtype=np.float64)
    log_sum_exp = np.log(total) + top[:, 0]
    weights *= (1 / total).astype(logits.dtype)[:, None]
    return log_sum_exp - chosen, CrossEntropyCache(weights, targets, log_sum_exp)


def cross_entropy_backward(dloss: FloatArray, cache: CrossEntropyCache) -> FloatArray:
    """Pull a gradient back: ``∂ log Σ_j exp(z_j) / ∂z_j = p_j``, so ``dz = dloss (p − e_target)``."""
    p, targets, _ = cache
    upstream = np.asarray(dloss, p.dtype)[:, None]
    # forward: loss = log_sum_exp(z) − z_target
    dlogits = p * upstream
    rows = np.arange(len(targets))
    dlogits[rows, targets] -= upstream[:, 0]
    return dlogits
