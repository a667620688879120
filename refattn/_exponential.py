"""Exponentials inside compiled loops, several at once: the C library's stay one by one (ours).

Of a number of at most 0: with n the integer nearest to x / log 2 and r = x − n log 2, taken in two parts of log 2,

    exp(x) = 2ⁿ (1 + r + r² p(r)),   p the polynomial that makes the largest relative error for |r| ≤ ½ log 2 least,

which is 3.1e-9 for the degree 4 of float32 and 3.7e-18 for the degree 9 of float64, so that rounding is what is left.
2ⁿ is applied as 2ⁿ⁺ˢ 2⁻ˢ: what is below the smallest normal number is rounded once, and not lost. What rounds to 0 is
multiplied by 0 instead, for that a product underflows takes a processor a hundred times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._compiled import compiled_with_fma

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
