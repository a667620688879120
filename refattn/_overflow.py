"""What overflows only on the way: averages taken at half size, and the next wider format for what is not finite.

Finite input whose result can be held should give that result, also where a factor cannot be held: the dot product of an
upstream gradient and a value that nobody attends to, the logit before its gate. Nothing is paid for that as long as
everything is finite. What is not finite is computed again in a wider format, and only it is replaced: float64 for
float32, the extended precision of x86 for float64. Where a machine has no wider format than float64 it is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray


def overflow_judged() -> np.errstate:
    """Silence NumPy where overflow is looked for, and refused, by the caller; underflow to zero is meant.

    Worker threads do not inherit it: a function that runs on one enters it itself.
    """
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def all_finite(*arrays: FloatArray) -> bool:
    """Whether every entry is finite: a sum is, unless it overflows, and then the entries are looked at."""
    return all(bool(np.isfinite(array.sum()) or np.isfinite(array).all()) for array in arrays)


def wider(*arrays: FloatArray) -> tuple[NDArray[Any], ...]:
    """Return the arrays in the next wider format: float32 in float64, float64 in the widest that there is."""
    return tuple(array.astype(np.float64 if array.dtype == np.float32 else np.longdouble) for array in arrays)


def replace_what_is_not_finite(array: FloatArray, better: NDArray[Any]) -> None:
    """Write the entries of `better` where those of `array` are NaN or infinite, rounded to its format."""
    np.copyto(array, better, where=~np.isfinite(array), casting="same_kind")


def average(weights: FloatArray, values: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return ``weights @ values``, for weights of at least zero with sums of at most one in a row.

    An average lies between the values, so finite ones give a finite one. The weights' sum is one but for rounding,
    which takes values near the largest number beyond it: those rows are averaged at half size.
    """
    out = np.matmul(weights, values, out=out)
    if not all_finite(out):
        most = np.finfo(out.dtype).max / 2
        for one in np.ndindex(out.shape[:-2]):
            if np.isfinite(values[one]).all():
                replace_what_is_not_finite(out[one], 2 * np.clip(weights[one] @ (values[one] / 2), -most, most))
    return out


def require_scale_held(scale: float, dtype: Any) -> None:
    """Raise where the logits' scale has fewer digits in `dtype` than its other numbers: so small that it may be 0."""
    least = float(np.finfo(dtype).tiny)
    if 0 < abs(scale) < least:
        raise ValueError(
            f"scale: {scale:.6g} came, 0 or at least {least:.3g} in size was wanted in {np.dtype(dtype)}, or float64"
        )
