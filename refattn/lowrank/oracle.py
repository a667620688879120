"""Masked low-rank products from the definition, dense: what `paper` and `fast` are compared with.

    Y = (W ∘ U1 U2ᵀ) V      dV = (W ∘ U1 U2ᵀ)ᵀ dY      dS = W ∘ (dY Vᵀ)      dU1 = dS U2      dU2 = dSᵀ U1

Time O(n² (r + d)), memory O(n²), for one head. Shares no code with what it checks.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.lowrank.masks import StructuredMask


def product(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(W ∘ U1 U2ᵀ) V``."""
    return np.asarray(np.where(mask.to_dense(), u1 @ u2.T, 0) @ v)


def product_transposed(mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``(Wᵀ ∘ U1 U2ᵀ) V``: the rows of u1 are columns of W."""
    return np.asarray(np.where(mask.to_dense().T, u1 @ u2.T, 0) @ v)


def pullback(
    mask: StructuredMask, u1: FloatArray, u2: FloatArray, v: FloatArray, dout: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the gradients with respect to U1, U2 and V."""
    W = mask.to_dense()
    # forward: (W ∘ U1 U2ᵀ) V
    dweights = np.where(W, dout @ v.T, 0)
    return dweights @ u2, dweights.T @ u1, np.where(W, u1 @ u2.T, 0).T @ dout
