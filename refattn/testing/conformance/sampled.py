"""Exact attention of which some rows are wanted: their truth, and the plain implementation's (ours).

Rows of the output and of dq are those of the same attention with these queries alone. Rows of dk and dv collect from
all the queries. With the log-sum-exp ℓ of every row of logits and ``δ_i = dout_i · out_i``, computed once, they need
the columns of these keys alone:

    P_ij = exp(s_ij − ℓ_i),  dv_j = Σ_i P_ij dout_i,  dk_j = scale · Σ_i P_ij (dout_i · v_j − δ_i) q_i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance import heads
from refattn.testing.conformance.operation import Arrays, Problem
from refattn.testing.conformance.precision import Precision

AT_ONCE = 2**22
"""Logits of a block of rows."""

AllowedKeys = Callable[[Problem, str | None], NDArray[np.bool_]]


def row_sums(problem: Problem, upstream: FloatArray, allowed_keys: AllowedKeys) -> Arrays:
    """Return ℓ, δ and ``Σ_j P_ij k_j`` of all rows in float64; computed at the first call, then held by the sample."""
    assert problem.sample is not None
    if not problem.sample.held:
        q, k, v, dout = (x.astype(np.float64) for x in (*(problem.arrays[x] for x in "qkv"), upstream))
        shared = heads.shared_heads(q.shape[1], k.shape[1], None)
        lse, delta, mean = np.empty((*q.shape[:-1], 1)), np.empty((*q.shape[:-1], 1)), np.empty(q.shape)
        for rows in blocks(problem):
            part = problem.at_rows(rows)
            logits = q[..., rows, :] @ k[:, shared].swapaxes(-1, -2) * problem.options["scale"]
            logits = np.where(allowed_keys(part, None), logits, -np.inf)
            top = np.maximum(logits.max(axis=-1, keepdims=True), np.finfo(np.float64).min)
            weights = np.exp(logits - top)
            total = weights.sum(axis=-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse[..., rows, :] = np.where(total > 0, top + np.log(total), np.inf)  # nothing seen: weights of zero
            weights /= np.where(total > 0, total, 1)
            out, mean[..., rows, :] = weights @ v[:, shared], weights @ k[:, shared]
            delta[..., rows, :] = (dout[..., rows, :] * out).sum(axis=-1, keepdims=True)
        problem.sample.held.update(lse=lse, delta=delta, mean_key=mean)
    return problem.sample.held


def blocks(problem: Problem) -> Iterator[NDArray[np.int64]]:
    """The queries, some at a time."""
    batch, n_heads, n_q, _ = problem.arrays["q"].shape
    step = max(1, AT_ONCE // (batch * n_heads * problem.arrays["k"].shape[-2]))
    for start in range(0, n_q, step):
        yield np.arange(start, min(start + step, n_q))


def key_gradients(
    problem: Problem,
    upstream: FloatArray,
    to: Precision,
    allowed_keys: AllowedKeys,
    scale: float,
    fault: str | None = None,
) -> Arrays:
    """Return the sampled rows of dk and dv, from logits and weights rounded to a precision."""
    assert problem.sample is not None
    at = problem.sample.keys
    held = row_sums(problem, upstream, allowed_keys)
    q, k, v = to.round(problem.arrays["q"]), to.keys(problem.arrays["k"]), to.round(problem.arrays["v"])
    n_kv = k.shape[1]
    shared = heads.shared_heads(q.shape[1], n_kv, fault)
    keys, values = k[:, shared][..., at, :], v[:, shared][..., at, :]
    dkeys = np.zeros(keys.shape, to.work)
    dvalues = np.zeros(values.shape, to.work)
    lse, delta = (np.asarray(held[x], to.work) for x in ("lse", "delta"))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for rows in blocks(problem):
            allowed = allowed_keys(problem.at_rows(rows), fault)[..., at]
            logits = (q[..., rows, :] @ keys.swapaxes(-1, -2)) * to.work.type(scale)
            weights = np.where(allowed, np.exp(logits - lse[..., rows, :]), 0)
            # forward: out = weights @ values
            dvalues += to.round(weights).swapaxes(-1, -2) @ upstream[..., rows, :]
            dweights = upstream[..., rows, :] @ values.swapaxes(-1, -2)
            # forward: weights = softmax(logits)
            dlogits = to.round(weights * (dweights - delta[..., rows, :]))
            # forward: logits = scale · q kᵀ
            dkeys += dlogits.swapaxes(-1, -2) @ q[..., rows, :]
        dkeys *= to.work.type(scale)
        dk, dv = (to.result(heads.add_shared(x, shared, n_kv, to, fault)) for x in (dkeys, dvalues))
    return {"dk": dk, "dv": dv}
