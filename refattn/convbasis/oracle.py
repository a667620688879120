"""Conv attention from the definition, dense: what `paper` and `fast` are compared with (arXiv 2405.05219, section 4).

``H' = Σ_i conv(b_i, m_i)`` is summed up entry by entry, then ``Y = D⁻¹ (M ∘ exp(H')) V`` with D the row sums.
O(k n² + n² d) time, O(n²) memory, float64. Shares no code with what it checks.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis


def dense_logits(basis: ConvBasis) -> FloatArray:
    """``Σ_i conv(b_i, m_i)`` of one matrix, shape (n, n), from the paper's vectors, one diagonal after the other."""
    n = basis.n
    h = np.zeros((n, n))
    for vector, size in zip(np.asarray(basis.vectors, np.float64), basis.sizes, strict=True):
        for t in range(size):
            diagonal = np.arange(n - size, n - t)
            h[diagonal + t, diagonal] += vector[t]
    return h


def conv_attention_head(v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> FloatArray:
    """Attention of one head with the logits of a basis.

    Parameters
    ----------
    v : ndarray, shape (n, d_v)
        Values.
    lower : ConvBasis
        Basis of the logits on and below the diagonal.
    upper : ConvBasis or None
        Basis of the transposed logits, of which those above the diagonal are used; None for causal attention.

    Returns
    -------
    ndarray, shape (n, d_v)
        The output, in float64.
    """
    n = lower.n
    above = np.arange(n) > np.arange(n)[:, None]
    h = np.where(above, -np.inf if upper is None else dense_logits(upper).T, dense_logits(lower))
    a = np.exp(h - h.max(axis=1, keepdims=True))
    return np.asarray((a / a.sum(axis=1, keepdims=True)) @ v.astype(np.float64))  # an average does not overflow
