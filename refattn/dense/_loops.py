"""Compiled loops over a tile of logits, one row for every key and one column for every query (ours).

What is summed over keys runs down the tile, so that neighbouring queries are worked on at once without reordering a
sum. A sum is taken over 32 keys, and these sums are added.

The exponential is of a number of at most 0: with n the integer nearest to x / log 2 and r = x − n log 2, taken in two
parts of log 2,

    exp(x) = 2ⁿ (1 + r + r² p(r)),   p the polynomial that makes the largest relative error for |r| ≤ ½ log 2 least,

which is 3.1e-9 for the degree 4 of float32 and 3.7e-18 for the degree 9 of float64, so that rounding is what is left.
2ⁿ is applied as 2ⁿ⁺ˢ 2⁻ˢ: what is below the smallest normal number is rounded once, and not lost. What rounds to 0 is
multiplied by 0 instead, for that a product underflows takes a processor a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled, compiled_with_fma
from refattn._validation import FloatArray

_f4, _i4, _f8, _i8 = np.float32, np.int32, np.float64, np.int64

_LOG2_E_4, _LOG_2_4, _REST_4 = _f4(1 / np.log(2)), _f4(0.693359375), _f4(-2.12194440e-4)
_ROUND_4 = _f4(3 << 22)  # added, it leaves an integer in the last digits
_SHIFT_4, _DOWN_4, _LEAST_4 = _i4(127 + 64 - 0x4B400000), _f4(2.0**-64), _f4(-104.0)
_P4_4, _P3_4, _P2_4 = _f4(0.001381446729814213), _f4(0.008368780419243017), _f4(0.04166839420682597)
_P1_4, _P0_4, _ONE_4 = _f4(0.16666520107732057), _f4(0.4999999341251703), _f4(1)

_LOG2_E_8, _LOG_2_8, _REST_8 = _f8(1 / np.log(2)), _f8(0.693145751953125), _f8(1.42860682030941723212e-6)
_ROUND_8 = _f8(3 << 51)
_SHIFT_8, _DOWN_8, _LEAST_8 = _i8(1023 + 128 - 0x4338000000000000), _f8(2.0**-128), _f8(-745.2)
_P9_8, _P8_8, _P7_8 = _f8(2.49999648398502e-8), _f8(2.7630378715598832e-7), _f8(2.755758734442593e-6)
_P6_8, _P5_8, _P4_8 = _f8(2.480149276252254e-5), _f8(0.0001984126950476181), _f8(0.0013888888943922907)
_P3_8, _P2_8, _P1_8 = _f8(0.008333333333495626), _f8(0.04166666666652919), _f8(0.1666666666666641)
_P0_8, _ONE_8 = _f8(0.5000000000000011), _f8(1)


@compiled_with_fma
def exp_float32(x: Any) -> Any:
    """Return exp(x) of a number of at most 0, in float32: off by one unit in the last place at most."""
    down = _DOWN_4 if x > _LEAST_4 else _f4(0)  # below, and of NaN
    x = x if x > _LEAST_4 else _LEAST_4
    whole = _f4(x * _LOG2_E_4 + _ROUND_4)
    power = _i4((whole.view(_i4) + _SHIFT_4) << _i4(23)).view(_f4)
    whole = whole - _ROUND_4
    r = x - whole * _LOG_2_4
    r = r - whole * _REST_4
    p = (((_P4_4 * r + _P3_4) * r + _P2_4) * r + _P1_4) * r + _P0_4
    return ((p * r + _ONE_4) * r + _ONE_4) * power * down


@compiled_with_fma
def exp_float64(x: Any) -> Any:
    """Return exp(x) of a number of at most 0, in float64: off by one unit in the last place at most."""
    down = _DOWN_8 if x > _LEAST_8 else _f8(0)
    x = x if x > _LEAST_8 else _LEAST_8
    whole = _f8(x * _LOG2_E_8 + _ROUND_8)
    power = _i8((whole.view(_i8) + _SHIFT_8) << _i8(52)).view(_f8)
    whole = whole - _ROUND_8
    r = x - whole * _LOG_2_8
    r = r - whole * _REST_8
    p = (((_P9_8 * r + _P8_8) * r + _P7_8) * r + _P6_8) * r + _P5_8
    p = ((((p * r + _P4_8) * r + _P3_8) * r + _P2_8) * r + _P1_8) * r + _P0_8
    return ((p * r + _ONE_8) * r + _ONE_8) * power * down


def _with(exp: Callable[[Any], Any]) -> Callable[..., None]:
    @compiled_with_fma
    def exponentials(
        logits: FloatArray, largest: FloatArray, total: FloatArray, kept: FloatArray, space: FloatArray
    ) -> None:
        """Turn the logits of a tile into ``E = exp(S − m)``, m the largest of a query so far (0 where all are −inf).

        `largest` and `total`, of the tiles before (−inf and 0 at first), become those with this one; `kept` is what
        sums of the tiles before have to be multiplied by. `space`, of two rows, is workspace.
        """
        n_k, n_q = logits.shape
        part, sums = space[0], space[1]
        for i in range(n_q):
            part[i] = largest[i]
        pairs = n_k // 4 * 4
        for j in range(0, pairs, 4):
            for i in range(n_q):
                one, other = max(logits[j, i], logits[j + 1, i]), max(logits[j + 2, i], logits[j + 3, i])
                part[i] = max(part[i], max(one, other))
        for j in range(pairs, n_k):
            for i in range(n_q):
                part[i] = max(part[i], logits[j, i])
        for i in range(n_q):
            before, largest[i] = largest[i], part[i]
            part[i] = part[i] if part[i] > -np.inf else 0
            kept[i] = exp(before - part[i])
            total[i] *= kept[i]
        for first in range(0, n_k, 32):
            for i in range(n_q):
                sums[i] = 0
            for j in range(first, min(first + 32, n_k)):
                for i in range(n_q):
                    logits[j, i] = exp(logits[j, i] - part[i])
                    sums[i] += logits[j, i]
            for i in range(n_q):
                total[i] += sums[i]

    return exponentials


exponentials = {np.dtype(_f4): _with(exp_float32), np.dtype(_f8): _with(exp_float64)}
"""By the dtype of the computation."""


@compiled
def hide(seen: NDArray[np.bool_], logits: FloatArray) -> None:
    """Write −inf where a query, a row of `seen`, may not see a key."""
    for j in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            logits[j, i] = logits[j, i] if seen[i, j] else -np.inf


@compiled
def hide_out_of_sight(logits: FloatArray, key: int, position: int, window: int, sinks: int) -> None:
    """Write −inf where a pattern hides a key; the first ones are key `key` and the query at `position`."""
    for j in range(logits.shape[0]):
        sink = key + j < sinks
        for i in range(logits.shape[1]):
            lag = position + i - key - j
            seen = (lag >= 0) & (sink | (lag < window))
            logits[j, i] = logits[j, i] if seen else -np.inf


@compiled
def scale_rows(rows: FloatArray, factors: FloatArray) -> None:
    """Multiply each row by its factor."""
    for i in range(rows.shape[0]):
        for x in range(rows.shape[1]):
            rows[i, x] *= factors[i]


@compiled
def divide_rows(rows: FloatArray, total: FloatArray) -> None:
    """Divide each row by its total, unless that is 0."""
    for i in range(rows.shape[0]):
        factor = 1 / total[i] if total[i] > 0 else total[i]
        for x in range(rows.shape[1]):
            rows[i, x] *= factor


@compiled_with_fma
def through_softmax(weights: FloatArray, total: FloatArray, flow: FloatArray, space: FloatArray) -> None:
    """Divide weights by their sum, P = E / t, and write ``P ∘ (F − Σ P F)`` over the flow F.

    What nobody attends to counts for nothing, however large its flow is. `space`, of two rows, is workspace.
    """
    n_k, n_q = weights.shape
    correction, part = space[0], space[1]
    zero = weights.dtype.type(0)
    for i in range(n_q):
        total[i] = 1 / total[i] if total[i] > 0 else zero
        correction[i] = 0
    for first in range(0, n_k, 32):
        for i in range(n_q):
            part[i] = 0
        for j in range(first, min(first + 32, n_k)):
            for i in range(n_q):
                weight = weights[j, i] * total[i]
                weights[j, i] = weight
                part[i] += weight * flow[j, i] if weight > 0 else zero
        for i in range(n_q):
            correction[i] += part[i]
    for j in range(n_k):
        for i in range(n_q):
            weight = weights[j, i]
            flow[j, i] = weight * (flow[j, i] - correction[i]) if weight > 0 else zero


@compiled
def largest_of_rows(bits: NDArray[Any], but_sign: Any, out: NDArray[Any]) -> None:
    """Write of each row of numbers the bits of the largest in size, or of a NaN: without signs they are in order."""
    for i in range(bits.shape[0]):
        most = out.dtype.type(0)
        for x in range(bits.shape[1]):
            size = out.dtype.type(bits[i, x] & but_sign)  # else a wider integer
            most = size if size > most else most
        out[i] = most
