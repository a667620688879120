"""Memory: what would not fit is refused before anything is computed; one workspace is kept for the next call.

Fresh memory costs as much as filling it, because the system clears every page. `take_workspace` hands out the last one
given back where it is large enough; at most one is idle, and none above `KEPT_BYTES`.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_UNCHECKED = 64 << 20
"""Below this many bytes nobody asks."""


KEPT_BYTES = 64 << 20
"""Most bytes of an idle workspace."""

_idle: deque[NDArray[np.uint8]] = deque(maxlen=1)  # its operations are atomic: no lock that a fork could leave held


def take_workspace(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array that nobody else has, with arbitrary content."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        buffer = _idle.pop()
    except IndexError:
        buffer = np.empty(nbytes, np.uint8)
    if buffer.size < nbytes:
        buffer = np.empty(nbytes, np.uint8)
    return buffer[:nbytes].view(dtype).reshape(shape)


def give_back(workspace: NDArray[Any]) -> None:
    """Let the next caller have what `take_workspace` gave; the giver uses it no more."""
    buffer = workspace
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    if buffer.nbytes <= KEPT_BYTES:
        _idle.append(buffer)


def require_memory(what: str, nbytes: int) -> None:
    """Raise ``MemoryError`` if `nbytes` more bytes than this process may have are wanted; `what` begins the message."""
    if nbytes <= _UNCHECKED:
        return
    available = available_bytes()
    if nbytes > available:
        raise MemoryError(
            f"{what}: about {_readable(nbytes)} of memory would be needed, {_readable(available)} are available"
        )


def available_bytes() -> float:
    """Return the memory available to this process as far as the system says, else infinity."""
    available = math.inf
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    available = int(line.split()[1]) * 1024.0
    except OSError:
        pass
    if sys.platform == "win32":
        return available
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return available
    try:
        with open("/proc/self/statm", encoding="ascii") as line_of_pages:
            used = int(line_of_pages.read().split()[0]) * resource.getpagesize()
    except OSError:
        used = 0
    return min(available, max(limit - used, 0))


def _readable(nbytes: float) -> str:
    return f"{nbytes / 2**30:.3g} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MiB"
