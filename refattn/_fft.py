"""Real FFTs along the last axis: the only place that knows FFTW, and scipy.fft, its fallback.

`REFATTN_FFT=scipy` in the environment chooses the fallback; without pyFFTW it is used as well.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_option

ComplexArray = NDArray[np.complexfloating[Any, Any]]


@cache
def _pyfftw() -> Any:
    """Return the module ``pyfftw``, or None where it is not installed."""
    try:
        import pyfftw
    except ImportError:
        return None
    return pyfftw


def backend() -> str:
    """Return ``"pyfftw"`` or ``"scipy"``, whichever transforms are done with."""
    asked = as_option("REFATTN_FFT", os.environ.get("REFATTN_FFT", "pyfftw"), ("pyfftw", "scipy"))
    return "scipy" if asked == "scipy" or _pyfftw() is None else "pyfftw"


def fast_length(least: int) -> int:
    """Return the smallest length of at least `least` that real transforms are fast for."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(least, real=True))


def rfft(x: FloatArray, length: int) -> ComplexArray:
    """Transform of `x`, zero-padded to `length`, along its last axis; shape ``(…, length//2 + 1)``."""
    if backend() == "scipy":
        from scipy import fft

        return np.asarray(fft.rfft(x, length))
    return np.asarray(_pyfftw().builders.rfft(x, length, planner_effort="FFTW_ESTIMATE")())


def irfft(x_hat: ComplexArray, length: int) -> FloatArray:
    """Inverse of `rfft`: the real array of the given `length`."""
    if backend() == "scipy":
        from scipy import fft

        return np.asarray(fft.irfft(x_hat, length))
    return np.asarray(_pyfftw().builders.irfft(x_hat, length, planner_effort="FFTW_ESTIMATE")())
