"""SparseK attention with a sliding window, as the paper writes it (arXiv 2406.16747): selection matrices and masks.

For every query i, in the paper's letters, with m candidates outside the window:

    m_topk    0/1 mask of the k candidates with the largest scores
    m_SparseK = SparseK(u, k)                                  the gates, u the candidates' scores
    Δ         = MaskSelect(Diag(m_SparseK), m_topk)  ∈ R^{k×m}  the rows of Diag(m_SparseK) that m_topk keeps
    K̂ = Δ K    V̂ = Δ V
    out_i     = softmax(scale · q_i [K̂; K_window]ᵀ) [V̂; V_window]

Ours: `gate` chooses for K̂ and for V̂ whether Δ carries the gate or one; ties in m_topk go to the earlier position;
``hard=True`` puts one for every gate, and its backward takes the gradient with respect to the gate *at gate one*
through SparseK's Jacobian (straight through). Which queries keep a pair comes from intervals, and the gradient returns
to the scores by intervals and prefix sums (`refattn.sparsek.prefix`): both ours, both checked against the oracle.

One query at a time: O(n (k + w) d) time plus O(n) per query for m_topk, no n × n array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from refattn._overflow import all_finite, average, replace_what_is_not_finite, wider
from refattn._validation import FloatArray
from refattn.sparsek._problem import SparseKProblem, require_no_overflow
from refattn.sparsek.prefix import (
    SelectionIntervals,
    SupportIntervals,
    prefix_thresholds,
    pull_back_prefixes,
    selection_intervals,
    support_intervals,
)


class HeadState(NamedTuple):
    """Of one head: scores, thresholds of all prefixes, and the two kinds of intervals."""

    scores: NDArray[np.float64]
    tau: NDArray[np.float64]
    support: SupportIntervals
    selected: SelectionIntervals


class Query(NamedTuple):
    """Of one query: window, chosen positions, their gates, Δ for keys and values, K̂ and V̂ with the window below."""

    window: slice
    chosen: NDArray[np.int64]
    gates: NDArray[np.float64]
    delta_k: sp.csr_array
    delta_v: sp.csr_array
    keys: FloatArray
    values: FloatArray
    weights: FloatArray


def forward(problem: SparseKProblem) -> FloatArray:
    """Return the output, one entry per query head: shape (heads, n, d_v).

    Not judged: an entry is finite if v is. A logit that overflows is refused.
    """
    q, k, v, scores = problem.heads()
    out = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    for head in range(q.shape[0]):
        state = _head_state(scores[head], problem)
        for i in range(q.shape[1]):
            query = _attend(i, q[head], k[head], v[head], state, problem, head)
            out[head, i] = average(query.weights, query.values)
    return out


def backward(dout: FloatArray, problem: SparseKProblem) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k, v (heads, n, ·) and of the scores (heads, n); not judged."""
    q, k, v, scores = problem.heads()
    dq, dk, dv = np.zeros(q.shape, q.dtype), np.zeros(k.shape, q.dtype), np.zeros(v.shape, q.dtype)
    dscores = np.zeros(scores.shape, np.result_type(scores, q))
    scale = np.asarray(problem.scale, q.dtype)
    for head in range(q.shape[0]):
        state = _head_state(scores[head], problem)
        n = scores.shape[1]
        by_position, by_entry = np.zeros((2, n), dscores.dtype)  # sums of dm over the pairs whose gate is inside (0, 1)
        for i in range(n):
            query = _attend(i, q[head], k[head], v[head], state, problem, head)
            chosen = query.chosen
            # forward: out_i = weights @ [V̂; V_window]
            dvalues = np.outer(query.weights, dout[head, i])
            dweights = query.values @ dout[head, i]
            # forward: weights = softmax(scale · [K̂; K_window] q_i); a small scale before a product takes its digits
            dlogits = query.weights * (dweights - query.weights @ dweights)
            dkeys = scale * np.outer(dlogits, q[head, i])
            dq[head, i] = scale * (dlogits @ query.keys)
            # forward: K̂ = Δ_k K, V̂ = Δ_v V, the window's rows below
            dk[head] += query.delta_k.T @ dkeys[: chosen.size]
            dv[head] += query.delta_v.T @ dvalues[: chosen.size]
            dk[head, query.window] += dkeys[chosen.size :]
            dv[head, query.window] += dvalues[chosen.size :]
            # forward: Δ holds the gates; with `hard` this is the gradient at gate one. Rows of dkeys · K and
            # dvalues · V, with the weight taken out: a weight times a tiny dout has no digits left for a huge value
            dgates = np.zeros(chosen.size, dscores.dtype)
            if problem.gates_keys:
                dgates += scale * (dlogits[: chosen.size] * (k[head, chosen] @ q[head, i]))
            if problem.gates_values:
                dgates += query.weights[: chosen.size] * (v[head, chosen] @ dout[head, i])
            inside = (query.gates > 0) & (query.gates < 1)
            if inside.any():
                by_position[i - problem.window] = dgates[inside].sum()
                by_entry[chosen[inside]] += dgates[inside]
        # forward: gates = SparseK(scores[: i − w + 1], k) for every i
        dscores[head] = pull_back_prefixes(by_position, by_entry, state.support)
    return dq, dk, dv, dscores


def _head_state(scores: NDArray[np.float64], problem: SparseKProblem) -> HeadState:
    tau = prefix_thresholds(scores, problem.n_select, method="paper")
    return HeadState(
        scores,
        tau,
        support_intervals(scores, tau),
        selection_intervals(scores, problem.n_select, problem.window, method="paper"),
    )


def _attend(
    i: int, q: FloatArray, k: FloatArray, v: FloatArray, state: HeadState, problem: SparseKProblem, head: int
) -> Query:
    """Carry out the paper's equations for query i of one head."""
    prefix = i - problem.window  # the candidates are the positions 0 … prefix
    window = slice(max(prefix + 1, 0), i + 1)
    m_topk = (state.selected.enter <= i) & (i < state.selected.exit)
    (chosen,) = np.nonzero(m_topk)
    gates = np.clip(state.scores[chosen] - state.tau[prefix], 0, 1) if chosen.size else np.zeros(0)
    ones = np.ones(chosen.size)
    delta_k = _mask_select(ones if problem.hard or not problem.gates_keys else gates, chosen, k)
    delta_v = _mask_select(ones if problem.hard or not problem.gates_values else gates, chosen, v)
    keys = np.concatenate([delta_k @ k, k[window]])
    values = np.concatenate([delta_v @ v, v[window]])
    with np.errstate(over="ignore", invalid="ignore"):
        logits = (keys @ q[i]) * np.asarray(problem.scale, q.dtype)
        if not all_finite(logits):  # perhaps before the scale only
            wide_keys, wide_q = wider(keys, q[i])
            replace_what_is_not_finite(logits, wide_keys @ wide_q * problem.scale)
    require_no_overflow(logits, head, i)
    weights = np.exp(logits - logits.max(initial=-np.inf))
    return Query(window, chosen, gates, delta_k, delta_v, keys, values, weights / weights.sum())


def _mask_select(gates: NDArray[np.float64], chosen: NDArray[np.int64], like: FloatArray) -> sp.csr_array:
    """Return Δ: row r holds the gate of the r-th chosen position, in that position's column."""
    rows = np.arange(chosen.size)
    return sp.csr_array((gates.astype(like.dtype), (rows, chosen)), shape=(chosen.size, like.shape[0]))
