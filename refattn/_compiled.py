"""How loops are compiled: with Numba, at the first call, once for every dtype.

Compiled functions take plain scalars and arrays, write to out-arguments, release the interpreter's lock and round as
IEEE asks (no fastmath), so that NaN and infinity stay visible. With ``NUMBA_DISABLE_JIT=1`` the same functions run as
Python. Numba is imported here and nowhere at the package's import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from refattn._validation import FloatArray

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call, without the interpreter's lock; the type is kept."""
    return cast(Function, numba.njit(nogil=True)(function))


def as_input(array: FloatArray) -> FloatArray:
    """Return a contiguous, read-only view (or copy): one compiled signature for every input of a dtype."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
