"""SparseK attention from its definition: dense, O(n²) memory, the operator by bisection for every prefix.

With positions i (query) and j (key), ``candidate_ij = j ≤ i − w``, ``near_ij = i − w < j ≤ i``:

    M_ij = SparseK(score[: i − w + 1], k)_j                       by bisection
    chosen_ij = candidate, M_ij > 0, and fewer than k candidates of query i precede j by (score, then earlier position)
    g_ij = M_ij (1 if hard) where chosen, 1 where near
    A = softmax(scale · q_i · (g^K_ij k_j)) over chosen and near      out_i = Σ_j A_ij g^V_ij v_j

The backward differentiates these lines; the scores' gradient applies the dense Jacobian of every prefix. Nothing is
shared with `refattn.sparsek.paper` but the problem's checks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import average, replace_what_is_not_finite, wider
from refattn._validation import FloatArray
from refattn.sparsek._problem import SparseKProblem, require_no_overflow
from refattn.sparsek.bisection import sparsek_by_bisection

_AT_A_KINK = 2.0**-50
"""A gate nearer to zero or one is there: bisection finds thresholds to two units of rounding of one."""


class Dense(NamedTuple):
    """Of one head, all (n, n): soft gates M, gates as applied to keys and values, weights A, chosen pairs."""

    soft: NDArray[np.float64]
    gate_k: FloatArray
    gate_v: FloatArray
    weights: FloatArray
    chosen: NDArray[np.bool_]


def forward(problem: SparseKProblem) -> FloatArray:
    """Return the output, one entry per query head: shape (heads, n, d_v).

    Not judged: an entry is finite if v is. A logit that overflows is refused.
    """
    q, k, v, scores = problem.heads()
    out = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for head in range(q.shape[0]):
        dense = _dense(q[head], k[head], scores[head], problem, head)
        out[head] = average(dense.weights * dense.gate_v, v[head])
    return out


def backward(dout: FloatArray, problem: SparseKProblem) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k, v (heads, n, ·) and of the scores (heads, n); not judged."""
    q, k, v, scores = problem.heads()
    dq, dk, dv = np.empty(q.shape, q.dtype), np.empty(k.shape, q.dtype), np.empty(v.shape, q.dtype)
    dscores = np.empty(scores.shape, np.result_type(scores, q))
    scale = np.asarray(problem.scale, q.dtype)
    for head in range(q.shape[0]):
        dense = _dense(q[head], k[head], scores[head], problem, head)
        # forward: out = (A ∘ g^V) v
        dv[head] = (dense.weights * dense.gate_v).T @ dout[head]
        dvalue = dout[head] @ v[head].T
        # forward: A = softmax(scale · (q kᵀ) ∘ g^K)
        dweights = dvalue * dense.gate_v
        row_dot = (dense.weights * dweights).sum(axis=-1, keepdims=True)
        dlogits = dense.weights * (dweights - row_dot)
        dq[head] = scale * ((dlogits * dense.gate_k) @ k[head])
        dk[head] = scale * ((dlogits * dense.gate_k).T @ q[head])
        # forward: g^K, g^V = M where chosen (hard: one, but differentiated as M)
        dsoft = np.zeros(dense.soft.shape, dscores.dtype)
        if problem.gates_keys:
            dsoft += scale * (dlogits * (q[head] @ k[head].T))
        if problem.gates_values:
            dsoft += dense.weights * dvalue
        dsoft = np.where(dense.chosen, dsoft, 0)
        # forward: M_i = SparseK(score[: i − w + 1], k), Jacobian Diag(s) − s sᵀ/|s|
        dscores[head] = 0
        for row, upstream in zip(dense.soft, dsoft, strict=True):
            s = ((row > _AT_A_KINK) & (row < 1 - _AT_A_KINK)).astype(np.float64)
            jacobian = np.diag(s) - np.outer(s, s) / max(s.sum(), 1)
            dscores[head] += jacobian @ upstream
    return dq, dk, dv, dscores


def _dense(q: FloatArray, k: FloatArray, scores: NDArray[np.float64], problem: SparseKProblem, head: int) -> Dense:
    n = scores.size
    lag = np.arange(n)[:, None] - np.arange(n)
    candidate, near = lag >= problem.window, (lag >= 0) & (lag < problem.window)
    soft, _ = sparsek_by_bisection(np.where(candidate, scores, -np.inf), problem.n_select)
    precedes = (scores[:, None] > scores) | ((scores[:, None] == scores) & (lag < 0))  # [l, j]: l comes before j
    rank = candidate.astype(np.float64) @ precedes.astype(np.float64)  # exact, and faster than of integers
    chosen = candidate & (soft > 0) & (rank < problem.n_select)

    one = np.ones((n, n), q.dtype)
    applied = np.where(chosen & (not problem.hard), soft.astype(q.dtype), one)
    gate_k = applied if problem.gates_keys else one
    gate_v = applied if problem.gates_values else one

    with np.errstate(over="ignore", invalid="ignore"):
        logits = (q @ k.T) * gate_k * np.asarray(problem.scale, q.dtype)
        attended = chosen | near
        if not np.isfinite(logits[attended]).all():  # perhaps before the gate and the scale only
            wide_q, wide_k = wider(q, k)
            replace_what_is_not_finite(logits, (wide_q @ wide_k.T) * gate_k * problem.scale)
    for i in range(n):
        require_no_overflow(logits[i, attended[i]], head, i)
    logits = np.where(attended, logits, -np.inf)
    largest = np.where(attended.any(axis=-1, keepdims=True), logits.max(axis=-1, keepdims=True), 0)
    weights = np.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    return Dense(soft, gate_k, gate_v, np.divide(weights, total, out=weights, where=total > 0), chosen)
