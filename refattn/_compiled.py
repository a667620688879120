"""How loops are compiled: with Numba, at the first call, once for every dtype.

Compiled functions take plain scalars and arrays, write to out-arguments, release the interpreter's lock and round as
IEEE asks (no fastmath), so that NaN and infinity stay visible. With ``NUMBA_DISABLE_JIT=1`` the same functions run as
Python. Numba is imported here and nowhere at the package's import.

Numba compiles under one lock; a fork waits for it, or a child forked while another thread compiles would wait forever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from refattn._validation import FloatArray

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call, without the interpreter's lock; the type is kept."""
    if numba.config.DISABLE_JIT:
        return _silent(function)
    return cast(Function, numba.njit(nogil=True)(function))


def _silent(function: Function) -> Function:
    """Let NumPy's scalars overflow without a warning, in whatever thread, as compiled ones do."""

    @wraps(function)
    def without_warnings(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return cast(Function, without_warnings)


def as_input(array: FloatArray) -> FloatArray:
    """Return a contiguous, read-only view (or copy): one compiled signature for every input of a dtype."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
