"""How much resident memory a call takes at its peak, whatever allocated it (Linux; unknown elsewhere)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def peak_resident_megabytes(call: Callable[[], object]) -> float | None:
    """Return by how many megabytes resident memory rose during a call, at most; None where that is not known."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what it keeps to give out again is no memory of the call
        before = _read("VmRSS")
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the peak begins again
    except (OSError, KeyError, AttributeError):
        call()
        return None
    call()
    return max(_read("VmHWM") - before, 0) / 1e3


def _read(name: str) -> int:
    """Return a line of the process's status, in kilobytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[name].split()[0])
