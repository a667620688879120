"""Compiled loops over the pairs of a query (ours).

A list ascends, with −1 first where it is short. Four pairs are worked on at once, each with a sum of its own, so that
no sum is reordered. Workspaces `logits` and `flow` are as long as a list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled, compiled_with_fma
from refattn._exponential import exp_float32, exp_float64
from refattn._validation import FloatArray

Index = NDArray[np.int64]


@compiled
def first_of(places: Index) -> int:
    """Return where the positions of a list begin."""
    first = 0
    while first < places.size and places[first] < 0:
        first += 1
    return first


@compiled_with_fma
def dots(row: FloatArray, others: FloatArray, places: Index, first: int, out: FloatArray) -> None:
    """``out_c = row · others[places_c]``, from `first` on."""
    zero = row.dtype.type(0)
    last = first + (places.size - first) // 4 * 4
    for c in range(first, last, 4):
        one, two, three, four = others[places[c]], others[places[c + 1]], others[places[c + 2]], others[places[c + 3]]
        a, b, e, f = zero, zero, zero, zero
        for x in range(row.size):
            a += row[x] * one[x]
            b += row[x] * two[x]
            e += row[x] * three[x]
            f += row[x] * four[x]
        out[c], out[c + 1], out[c + 2], out[c + 3] = a, b, e, f
    for c in range(last, places.size):
        other, a = others[places[c]], zero
        for x in range(row.size):
            a += row[x] * other[x]
        out[c] = a


@compiled_with_fma
def combine(weights: FloatArray, others: FloatArray, places: Index, first: int, out: FloatArray) -> None:
    """``out = Σ_c weights_c · others[places_c]``, from `first` on."""
    for x in range(out.size):
        out[x] = 0
    last = first + (places.size - first) // 4 * 4
    for c in range(first, last, 4):
        one, two, three, four = others[places[c]], others[places[c + 1]], others[places[c + 2]], others[places[c + 3]]
        a, b, e, f = weights[c], weights[c + 1], weights[c + 2], weights[c + 3]
        for x in range(out.size):
            out[x] += (a * one[x] + b * two[x]) + (e * three[x] + f * four[x])
    for c in range(last, places.size):
        other, a = others[places[c]], weights[c]
        for x in range(out.size):
            out[x] += a * other[x]


@compiled_with_fma
def spread(weights: FloatArray, row: FloatArray, places: Index, first: int, others: FloatArray) -> None:
    """``others[places_c] += weights_c · row``, from `first` on."""
    for c in range(first, places.size):
        to, weight = others[places[c]], weights[c]
        for x in range(row.size):
            to[x] += weight * row[x]


def _with(exp: Callable[[Any], Any]) -> tuple[Callable[..., Any], Callable[..., bool], Callable[..., bool]]:
    @compiled_with_fma
    def soften(logits: FloatArray, first: int, scale: Any) -> tuple[bool, Any]:
        """Turn products into ``exp(S − largest)``, S scaled; return whether every S is finite, and 1 over the sum."""
        finite, largest, total = True, logits.dtype.type(-np.inf), logits.dtype.type(0)
        for c in range(first, logits.size):
            logits[c] *= scale
            finite &= np.isfinite(logits[c])
            largest = max(largest, logits[c])
        for c in range(first, logits.size):
            logits[c] = exp(logits[c] - largest)
        for c in range(first, logits.size):
            total += logits[c]
        return finite, 1 / total if total > 0 else total  # 0 only where nothing is on the list, or not finite

    @compiled_with_fma
    def attend(
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        indices: Index,
        scale: Any,
        logits: FloatArray,
        out: FloatArray,
    ) -> bool:
        """Write the output of some queries; return whether every logit was finite."""
        fine = True
        for i in range(q.shape[0]):
            places = indices[i]
            first = first_of(places)
            dots(q[i], k, places, first, logits)
            finite, inverse = soften(logits, first, scale)
            fine &= finite
            combine(logits, v, places, first, out[i])
            for x in range(out.shape[1]):
                out[i, x] *= inverse
        return fine

    @compiled_with_fma
    def pull_back(
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        indices: Index,
        scale: Any,
        dout: FloatArray,
        space: FloatArray,
        dq: FloatArray,
        dk: FloatArray,
        dv: FloatArray,
    ) -> bool:
        """Write what becomes dq, and add to dk and dv, all but for the scale; return whether every logit was finite."""
        fine, weights, flow = True, space[0], space[1]
        for i in range(q.shape[0]):
            places = indices[i]
            first = first_of(places)
            # forward: P = softmax(scale · q kᵀ)
            dots(q[i], k, places, first, weights)
            finite, inverse = soften(weights, first, scale)
            fine &= finite
            for c in range(first, places.size):
                weights[c] *= inverse
            # forward: out = P v
            spread(weights, dout[i], places, first, dv)
            dots(dout[i], v, places, first, flow)
            # forward: P = softmax(S)
            mean = weights.dtype.type(0)
            for c in range(first, places.size):
                mean += weights[c] * flow[c]
            for c in range(first, places.size):
                flow[c] = weights[c] * (flow[c] - mean)
            # forward: S = scale · q kᵀ
            combine(flow, k, places, first, dq[i])
            spread(flow, q[i], places, first, dk)
        return fine

    return soften, attend, pull_back


_FLOAT32, _FLOAT64 = _with(exp_float32), _with(exp_float64)
soften = {np.dtype(np.float32): _FLOAT32[0], np.dtype(np.float64): _FLOAT64[0]}
"""By the dtype of the computation,"""
attend = {np.dtype(np.float32): _FLOAT32[1], np.dtype(np.float64): _FLOAT64[1]}
"""an attention made of it, and"""
pull_back = {np.dtype(np.float32): _FLOAT32[2], np.dtype(np.float64): _FLOAT64[2]}
"""its backward."""
