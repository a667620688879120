"""How long a call takes: the shortest of several, since whatever else the machine does only makes it longer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


def shortest_seconds(call: Callable[[], object], *, rounds: int = 1000, least: float = math.inf) -> float:
    """Return the shortest time of `rounds` calls, or of those that `least` seconds hold, after one not counted."""
    call()
    best, begun = math.inf, time.perf_counter()
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun >= least:
            break
    return best
