"""Exact attention from its definition: blocks of whole rows, what the fast path and everything else are checked with.

For every head, with logits ``S = scale · Q Kᵀ`` (capped as ``softcap · tanh(S / softcap)`` if a cap is given, then
masked):

    P = softmax(S) over the allowed keys of each row        Y = P V
    dV = Pᵀ dY     dP = dY Vᵀ     dS = P ∘ (dP − rowsum(P ∘ dP))     dQ = scale · dS K     dK = scale · dSᵀ Q

The backward computes P anew, from logits to the last division: it shares no rounding with the forward. Nothing of
`refattn.dense.fast` is used here.

With the logit a of a sink, which has no value, a row's softmax has one weight more, ``P_a = exp(a − lse)``. Of dropout
with the rate p, ``Z = keep / (1 − p)``: ``Y = (P ∘ Z) V``, ``dV = (P ∘ Z)ᵀ dY``, ``dP = Z ∘ (dY Vᵀ)``. With a gradient
dL of the log-sum-exps, and a bias B among what is added to the logits after the cap,

    dS = P ∘ (dP − rowsum(P ∘ dP) + dL)     dB = dS, before the cap     da = Σ_i P_a (dL − rowsum(P ∘ dP)).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from refattn._heads import sum_to
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


Parts: TypeAlias = tuple[FloatArray, FloatArray, FloatArray | None, FloatArray | None]
"""What a block adds to the gradients of keys, values, sinks and bias."""


class Gradients(NamedTuple):
    """Gradients of q, k and v, one entry per query head; of the sinks' logits, and of the bias, if there are any."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    sinks: FloatArray | None
    bias: FloatArray | None


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
    layout, n_q, keep = problem.layout, problem.q.shape[-2], problem.keep_of_heads
    queries, keys, values = layout.expand(problem.q, problem.k, problem.v)
    out = np.empty((*layout.inner, n_q, values.shape[-1]), values.dtype)
    row_max = np.empty((*layout.inner, n_q), values.dtype)
    row_sum = np.empty_like(row_max)

    def attend(rows: slice) -> None:
        with overflow_judged():
            weights, _, largest, total = _softmax(queries, keys, rows, problem)
            if keep is not None:
                weights *= keep[..., rows, :]
            average(weights, values, out[..., rows, :])
            if keep is not None:
                out[..., rows, :] /= np.asarray(1 - problem.dropout, out.dtype)
            row_max[..., rows], row_sum[..., rows] = largest[..., 0], total[..., 0]

    with one_blas_thread():
        for_each(attend, _row_blocks(n_q, rows_of_a_block(problem)))
    return out, row_max, row_sum


def backward(dout: FloatArray, dlse: FloatArray | None, problem: DenseProblem) -> Gradients:
    """Return the gradients for upstream ones of the output and of the log-sum-exps (..., n_q, 1); not judged."""
    scale, rate, keep = problem.scale, 1 - problem.dropout, problem.keep_of_heads
    q, k, v = problem.layout.expand(problem.q, problem.k, problem.v)
    dq = np.empty(q.shape, q.dtype)
    dk = np.zeros(k.shape, k.dtype)
    dv = np.zeros(v.shape, v.dtype)
    dsinks = None if problem.sinks is None else np.zeros((*problem.layout.inner, 1, 1), q.dtype)
    dbias = None if problem.bias is None else np.zeros(_bias_of_heads(problem), q.dtype)

    def pull_back(rows: slice) -> Parts:
        with overflow_judged():
            # forward: weights = softmax(logits)
            weights, slope, largest, total = _softmax(q, k, rows, problem)
            sink = None
            if problem.sinks is not None:
                sink = np.exp(_sinks(rows, problem) - largest) / total
            dq_part = dq[..., rows, :]
            parts = through_softmax(rows, weights, slope, sink, dout, q, k, v, dq_part)
            if not all_finite(dq_part, *(part for part in parts if part is not None)):
                (wide_weights, *arrays) = wider(weights, dout, q, k, v, dq_part)
                wide_slope, wide_sink = (None if part is None else wider(part)[0] for part in (slope, sink))
                again = through_softmax(rows, wide_weights, wide_slope, wide_sink, *arrays)
                for part, better in zip((dq_part, *parts), (arrays[-1], *again), strict=True):
                    if part is not None and better is not None:
                        replace_what_is_not_finite(part, better)
            return parts

    def through_softmax(
        rows: slice, weights: FloatArray, slope: FloatArray | None, sink: FloatArray | None, *arrays: FloatArray
    ) -> Parts:
        """Return what a block adds to the other gradients, and write its rows of dq, the last of the arrays."""
        upstream, q, k, v, dq_part = arrays
        g = upstream[..., rows, :]
        # forward: out = weights @ values
        dlogits = g @ v.swapaxes(-1, -2)
        if keep is None:
            dv_part = weights.swapaxes(-1, -2) @ g
        else:  # forward: weights ∘ keep / (1 − p)
            dv_part = np.where(keep[..., rows, :], weights, 0).swapaxes(-1, -2) @ g
            dv_part /= np.asarray(rate, g.dtype)
            dlogits /= np.asarray(rate, g.dtype)
            np.copyto(dlogits, 0, where=~keep[..., rows, :])
        # forward: softmax of the logits
        flow = (weights * dlogits).sum(axis=-1, keepdims=True)
        if dlse is not None:  # forward: log-sum-exp of the logits
            flow -= dlse[..., rows, :]
        dlogits -= flow
        dlogits *= weights
        # forward: the sink's logit among them
        dsinks_part = None if sink is None else -(sink * flow).sum(axis=-2, keepdims=True)
        # forward: + bias
        dbias_part = None if dbias is None else sum_to(dlogits, _rows_of(dbias.shape, dlogits.shape[-2]))
        # forward: softcap · tanh(s / softcap)
        if slope is not None:
            dlogits *= slope
        # forward: scale · q kᵀ; a small scale, before the products, would take the digits of small gradients
        factor = np.asarray(scale, dlogits.dtype)
        np.matmul(dlogits, k, out=dq_part)
        np.multiply(dq_part, factor, out=dq_part)
        dk_part = dlogits.swapaxes(-1, -2) @ q[..., rows, :]
        dk_part *= factor
        return dk_part, dv_part, dsinks_part, dbias_part

    blocks = list(_row_blocks(q.shape[-2], rows_of_a_block(problem)))
    with overflow_judged(), one_blas_thread():
        for first in range(0, len(blocks), _AT_ONCE):
            some = blocks[first : first + _AT_ONCE]
            for rows, (dk_part, dv_part, dsinks_part, dbias_part) in zip(some, map_each(pull_back, some), strict=True):
                dk += dk_part
                dv += dv_part
                if dsinks is not None and dsinks_part is not None:
                    dsinks += dsinks_part
                if dbias is not None and dbias_part is not None:
                    dbias[..., rows if dbias.shape[-2] > 1 else slice(None), :] += dbias_part
    return Gradients(dq, dk, dv, dsinks, dbias)


def _bias_of_heads(problem: DenseProblem) -> tuple[int, ...]:
    """Return the shape of the bias with the leading axes of the computation, its broadcast axes of length 1."""
    rows, keys = (1, 1, *(problem.bias or ()))[-2:]
    lead = problem.mask.biases[-1].shape[:-2]
    return (*(1,) * (len(problem.layout.inner) - len(lead)), *lead, rows, keys)


def _rows_of(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Return the shape of a block of n rows, unless there is only one."""
    return (*shape[:-2], n if shape[-2] > 1 else 1, shape[-1])


def _row_blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _softmax(
    q: FloatArray, k: FloatArray, rows: slice, problem: DenseProblem
) -> tuple[FloatArray, FloatArray | None, FloatArray, FloatArray]:
    """Return the weights of a block of rows, the derivative of the cap, largest logits and sums of exponentials."""
    logits, slope = _masked_logits(q, k, rows, problem.mask, problem.scale, problem.softcap)
    largest = logits.max(axis=-1, keepdims=True)
    sinks = None if problem.sinks is None else _sinks(rows, problem)
    if sinks is not None:
        np.maximum(largest, sinks, out=largest)
    np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed: exp(−inf − 0) = 0
    weights = np.exp(np.subtract(logits, largest, out=logits), out=logits)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - largest)
    np.divide(weights, total, out=weights, where=total > 0)  # before any product, which is an average then
    return weights, slope, largest, total


def _sinks(rows: slice, problem: DenseProblem) -> FloatArray:
    """Return the sinks' logits, counted as those of some rows are: of shapes ``(*inner, 1, 1)`` or of those rows."""
    logits = problem.sinks_of_heads
    assert logits is not None
    return problem.mask.without_shift(logits, rows, problem.q.dtype)


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
