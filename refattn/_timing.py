"""How long a call takes: the shortest of several, since whatever else the machine does only makes it longer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


def shortest_seconds(
    call: Callable[[], object],
    *,
    rounds: int = 1000,
    least: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the shortest time of `rounds` calls, or of those that `least` seconds hold, after one not counted.

    By `time.process_time`, other programs do not count.
    """
    call()
    best, begun = math.inf, clock()
    for _ in range(rounds):
        start = clock()
        call()
        now = clock()
        best = min(best, now - start)
        if now - begun >= least:
            break
    return best
