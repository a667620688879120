"""Conv attention and its gradients from the definition, dense: what `paper` and `fast` are compared with.

``H' = Σ_i conv(b_i, m_i)`` is summed up entry by entry, then ``Y = P V`` with ``P = D⁻¹ (M ∘ exp(H'))``, D the row sums
(arXiv 2405.05219, section 4). For an upstream G the derivative with respect to the logits is

    W_ij = P_ij (G_i · v_j − r_i),      r_i = Σ_l P_il (G_i · v_l),

which the two gradients carry on in different ways; in both ``dV = Pᵀ G``. Of every gradient there is also the natural
size: what it would be if no sum cancelled, all signs being equal. It is what an error of it is compared with.

O(k n² + n² d) time, O(n²) memory, float64. Shares no code with what it checks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis


class DenseGradients(NamedTuple):
    """Gradients of one head, in float64, or their natural sizes, of the shapes of q, k and v.

    `lower` and `upper`, shapes (terms, n), are with respect to the cumulative kernels u_i, lag by lag; `upper` is empty
    for causal attention.
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    lower: FloatArray
    upper: FloatArray


def dense_logits(basis: ConvBasis) -> FloatArray:
    """``Σ_i conv(b_i, m_i)`` of one matrix, shape (n, n), from the paper's vectors, one column after the other."""
    n = basis.n
    h = np.zeros((n, n), np.longdouble)  # b_i = u_i − u_{i−1} is summed up again: the roundings of neither may show
    wide = ConvBasis._trusted(basis.starts, basis.kernels.astype(np.longdouble))
    for vector, size in zip(wide.vectors, wide.sizes, strict=True):
        for j in range(n - size, n):
            h[j:, j] += vector[: n - j]
    return h.astype(np.float64)


def dense_weights(lower: ConvBasis, upper: ConvBasis | None) -> FloatArray:
    """P, shape (n, n): the softmax of the logits of a basis, row by row."""
    n = lower.n
    above = np.arange(n) > np.arange(n)[:, None]
    h = np.where(above, -np.inf if upper is None else dense_logits(upper).T, dense_logits(lower))
    a = np.exp(h - h.max(axis=1, keepdims=True))
    return np.asarray(a / a.sum(axis=1, keepdims=True))


def conv_attention_head(v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> FloatArray:
    """Attention of one head with the logits of a basis, in float64.

    `upper` is the basis of the transposed logits, of which those above the diagonal are used; None for causal
    attention.
    """
    return np.asarray(dense_weights(lower, upper) @ v.astype(np.float64))  # an average does not overflow


def approximation_gradient(
    G: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, lower: ConvBasis, upper: ConvBasis | None, scale: float
) -> tuple[DenseGradients, DenseGradients]:
    """Derivative of the output with the starts held fixed, by the chain rule, and the same sums of absolute values.

    The logit of row ``c_i + t + s`` and column ``c_i + s`` of segment i is ``u_i[t] = scale · q_{c_i+t} · k_{c_i}`` for
    every s, so the derivative with respect to u_i[t] is the sum of W along that diagonal of the segment. Above the
    diagonal the same holds of the transposed logits, with q and k exchanged.
    """
    G, Q, K, V = (np.asarray(x, np.float64) for x in (G, Q, K, V))
    P = dense_weights(lower, upper)
    found = _through_kernels(P, _logit_gradient(P, G, V), G, Q, K, lower, upper, scale)
    G, Q, K = np.abs(G), np.abs(Q), np.abs(K)
    return found, _through_kernels(P, _logit_size(P, G, V), G, Q, K, lower, upper, abs(scale))


def attention_gradient(
    G: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, lower: ConvBasis, upper: ConvBasis | None, scale: float
) -> tuple[DenseGradients, DenseGradients]:
    """Gradient of exact attention with its softmax replaced by P: ``dQ = scale · W K``, ``dK = scale · Wᵀ Q``.

    The kernels' gradients are empty, as the logits are taken for ``scale · q_i · k_j`` themselves (section 5).
    """
    G, Q, K, V = (np.asarray(x, np.float64) for x in (G, Q, K, V))
    P = dense_weights(lower, upper)
    found = _through_logits(P, _logit_gradient(P, G, V), G, Q, K, scale)
    G, Q, K = np.abs(G), np.abs(Q), np.abs(K)
    return found, _through_logits(P, _logit_size(P, G, V), G, Q, K, abs(scale))


def _logit_gradient(P: FloatArray, G: FloatArray, V: FloatArray) -> FloatArray:
    """W, shape (n, n)."""
    dP = G @ V.T
    return np.asarray(P * (dP - (P * dP).sum(axis=1, keepdims=True)))


def _logit_size(P: FloatArray, G: FloatArray, V: FloatArray) -> FloatArray:
    """What W would be if no sum cancelled: ``P_ij (Σ_a |G_ia| |v_ja| + Σ_a |G_ia| Y°_ia)``, Y° that of the output."""
    output = natural_size(P, V)
    return np.asarray(P * (np.abs(G) @ np.abs(V).T + (np.abs(G) * output).sum(axis=1, keepdims=True)))


def natural_size(P: FloatArray, w: FloatArray) -> FloatArray:
    """Natural size of ``P w``, shape of w: ``Σ_j P_ij ‖w_j‖_∞``, what it would be if nothing cancelled.

    A column whose largest entry is more than 64 times smaller than that of another is not hidden by it: all columns
    are then in units of their largest entries.
    """
    w = np.abs(w)
    units = w.max(axis=0)
    if units.max() <= 64 * units.min(where=units > 0, initial=np.inf):
        units[:] = units.max()
    rows = np.divide(w, units, out=np.zeros_like(w), where=units > 0).max(axis=1, keepdims=True)
    return np.asarray(units * (P @ rows))


def _through_logits(
    P: FloatArray, W: FloatArray, G: FloatArray, Q: FloatArray, K: FloatArray, scale: float
) -> DenseGradients:
    none = np.zeros((0, len(P)))
    return DenseGradients(scale * (W @ K), scale * (W.T @ Q), P.T @ G, none, none)


def _through_kernels(
    P: FloatArray,
    W: FloatArray,
    G: FloatArray,
    Q: FloatArray,
    K: FloatArray,
    lower: ConvBasis,
    upper: ConvBasis | None,
    scale: float,
) -> DenseGradients:
    dQ, dK = np.zeros_like(Q), np.zeros_like(K)
    dlower = _one_triangle(np.tril(W), lower, Q, K, scale, dQ, dK)
    dupper: FloatArray = np.zeros((0, len(P)))
    if upper is not None:
        dupper = _one_triangle(np.triu(W, 1).T, upper, K, Q, scale, dK, dQ)
    return DenseGradients(dQ, dK, P.T @ G, dlower, dupper)


def _one_triangle(
    W: FloatArray,
    basis: ConvBasis,
    rows: FloatArray,
    columns: FloatArray,
    scale: float,
    drows: FloatArray,
    dcolumns: FloatArray,
) -> FloatArray:
    """Derivative with respect to the kernels of a lower triangle of logits, carried on to its rows and columns."""
    n = basis.n
    du = np.zeros((len(basis.starts), n))
    for i, c in enumerate(basis.starts):
        end = basis.starts[i + 1] if i + 1 < len(basis.starts) else n
        for t in range(n - c):
            du[i, t] = W[c:, c:end].diagonal(-t).sum()
        if c < n:
            drows[c:] += scale * du[i, : n - c, None] * columns[c]
            dcolumns[c] += scale * du[i, : n - c] @ rows[c:]
    return du
