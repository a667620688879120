"""Exact attention from its definition: blocks of whole rows, what the fast path and everything else are checked with.

For every head, with logits ``S = scale · Q Kᵀ`` (capped as ``softcap · tanh(S / softcap)`` if a cap is given, then
masked):

    P = softmax(S) over the allowed keys of each row        Y = P V
    dV = Pᵀ dY     dP = dY Vᵀ     dS = P ∘ (dP − rowsum(P ∘ dP))     dQ = scale · dS K     dK = scale · dSᵀ Q

The backward computes P anew, from logits to the last division: it shares no rounding with the forward. Nothing of
`refattn.dense.fast` is used here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._overflow import all_finite, average, overflow_judged, replace_what_is_not_finite, wider
from refattn._threads import for_each, map_each, one_blas_thread
from refattn._validation import FloatArray
from refattn.dense._problem import DenseProblem, overflow
from refattn.masks import RowMask

_BLOCK_ENTRIES = 1 << 21
"""Most logits of a block when `block` is not given: 16 MB in float64."""
_AT_ONCE = 4
"""Blocks whose parts of the gradients are kept at once, and into at least as many a long sequence is cut, of"""
_LEAST_ROWS = 256
"""as many rows or more."""


def rows_of_a_block(problem: DenseProblem) -> int:
    """Query rows processed at once."""
    if problem.block is not None:
        return problem.block
    n_q: int = problem.q.shape[-2]
    n_k: int = problem.k.shape[-2]
    heads = int(np.prod(problem.layout.inner))
    return max(1, min(_BLOCK_ENTRIES // (n_k * heads), max(_LEAST_ROWS, -(-n_q // _AT_ONCE))))


def forward(problem: DenseProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the output, and of every row the largest allowed logit and the sum of the exponentials less it."""
    layout, n_q = problem.layout, problem.q.shape[-2]
    queries, keys, values = layout.expand(problem.q, problem.k, problem.v)
    out = np.empty((*layout.inner, n_q, values.shape[-1]), values.dtype)
    row_max = np.empty((*layout.inner, n_q), values.dtype)
    row_sum = np.empty_like(row_max)

    def attend(rows: slice) -> None:
        with overflow_judged():
            weights, _, largest, total = _softmax(queries, keys, rows, problem)
            average(weights, values, out[..., rows, :])
            row_max[..., rows], row_sum[..., rows] = largest[..., 0], total[..., 0]

    with one_blas_thread():
        for_each(attend, _row_blocks(n_q, rows_of_a_block(problem)))
    return out, row_max, row_sum


def backward(dout: FloatArray, problem: DenseProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k and v, one entry per query head; not judged."""
    scale = problem.scale
    q, k, v = problem.layout.expand(problem.q, problem.k, problem.v)
    dq = np.empty(q.shape, q.dtype)
    dk = np.zeros(k.shape, k.dtype)
    dv = np.zeros(v.shape, v.dtype)

    def pull_back(rows: slice) -> tuple[FloatArray, FloatArray]:
        with overflow_judged():
            # forward: weights = softmax(logits)
            weights, slope, _, _ = _softmax(q, k, rows, problem)
            dq_part = dq[..., rows, :]
            parts = through_softmax(rows, weights, slope, dout, q, k, v, dq_part)
            if not all_finite(dq_part, *parts):
                arrays = wider(weights, np.ones_like(weights) if slope is None else slope, dout, q, k, v, dq_part)
                again = through_softmax(rows, *arrays)
                for part, better in zip((dq_part, *parts), (arrays[-1], *again), strict=True):
                    replace_what_is_not_finite(part, better)
            return parts

    def through_softmax(
        rows: slice, weights: FloatArray, slope: FloatArray | None, *arrays: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return what a block adds to dk and dv, and write its rows of dq, the last of the arrays."""
        upstream, q, k, v, dq_part = arrays
        g = upstream[..., rows, :]
        # forward: out = weights @ values
        dv_part = weights.swapaxes(-1, -2) @ g
        # forward: softmax of the logits
        dlogits = g @ v.swapaxes(-1, -2)
        dlogits -= (weights * dlogits).sum(axis=-1, keepdims=True)
        dlogits *= weights
        # forward: softcap · tanh(s / softcap)
        if slope is not None:
            dlogits *= slope
        # forward: scale · q kᵀ; a small scale, before the products, would take the digits of small gradients
        factor = np.asarray(scale, dlogits.dtype)
        np.matmul(dlogits, k, out=dq_part)
        np.multiply(dq_part, factor, out=dq_part)
        dk_part = dlogits.swapaxes(-1, -2) @ q[..., rows, :]
        dk_part *= factor
        return dk_part, dv_part

    blocks = list(_row_blocks(q.shape[-2], rows_of_a_block(problem)))
    with overflow_judged(), one_blas_thread():
        for first in range(0, len(blocks), _AT_ONCE):
            for dk_part, dv_part in map_each(pull_back, blocks[first : first + _AT_ONCE]):
                dk += dk_part
                dv += dv_part
    return dq, dk, dv


def _row_blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _softmax(
    q: FloatArray, k: FloatArray, rows: slice, problem: DenseProblem
) -> tuple[FloatArray, FloatArray | None, FloatArray, FloatArray]:
    """Return the weights of a block of rows, the derivative of the cap, largest logits and sums of exponentials."""
    logits, slope = _masked_logits(q, k, rows, problem.mask, problem.scale, problem.softcap)
    largest = logits.max(axis=-1, keepdims=True)
    np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed: exp(−inf − 0) = 0
    weights = np.exp(np.subtract(logits, largest, out=logits), out=logits)
    total = weights.sum(axis=-1, keepdims=True)
    np.divide(weights, total, out=weights, where=total > 0)  # before any product, which is an average then
    return weights, slope, largest, total


def _masked_logits(
    q: FloatArray, k: FloatArray, rows: slice, mask: RowMask, scale: float, softcap: float | None
) -> tuple[FloatArray, FloatArray | None]:
    """Return the logits of a block of rows, −inf where masked, and the derivative of the cap if there is one."""
    logits = q[..., rows, :] @ k.swapaxes(-1, -2)
    logits *= np.asarray(scale, logits.dtype)
    allowed = mask.allowed(rows)
    if not all_finite(logits):
        if (~np.isfinite(logits) & allowed).any():  # perhaps before the scale only
            wide_q, wide_k = wider(q[..., rows, :], k)
            replace_what_is_not_finite(logits, wide_q @ wide_k.swapaxes(-1, -2) * scale)
            _require_no_overflow("q, k", logits, allowed, rows)
        np.copyto(logits, 0, where=~np.isfinite(logits))  # hidden: nothing of them may reach the slope
    slope = None
    if softcap is not None:
        np.divide(logits, softcap, out=logits)
        slope = np.square(1 / np.cosh(logits))  # 1 − tanh² would cancel
        np.tanh(logits, out=logits)
        logits *= np.asarray(softcap, logits.dtype)
    for addend in mask.addends(rows, logits.dtype):
        logits += addend
        _require_no_overflow("mask", logits, allowed, rows)
    np.copyto(logits, -np.inf, where=~allowed)
    return logits, slope


def _require_no_overflow(name: str, logits: FloatArray, allowed: np.ndarray, rows: slice) -> None:
    if all_finite(logits):
        return
    bad = ~np.isfinite(logits) & allowed
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        *_, row, key = index
        raise overflow(name, rows.start + row, key, logits[index])
