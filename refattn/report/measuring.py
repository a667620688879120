"""What several checks measure: times and how they grow, peak memory, errors of gradients, what changes (ours)."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from refattn._threads import threads
from refattn._timing import shortest_seconds
from refattn.testing import check_gradients

_PAGE = 1 << 14


def times(
    make: Callable[[int], Callable[[], object]],
    sizes: Iterable[int],
    *,
    runs: int = 4,
    clock: Callable[[], float] = time.process_time,
) -> dict[int, float]:
    """Return the shortest time of several runs by the size that was made, after one that only plans and compiles."""
    return {n: shortest_seconds(make(n), rounds=runs, clock=clock) for n in sizes}


def exponent(values: Mapping[int, float]) -> float:
    """Return the exponent p of the fit c nᵖ to values by n.

    Examples
    --------
    >>> round(exponent({8: 3.0, 16: 12.0, 32: 48.0}), 12)
    2.0
    """
    return float(np.polyfit(np.log([*values]), np.log([*values.values()]), 1)[0])


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy hold at once while `run` runs, beyond what they held before.

    Rounded to 16 kB, since Python's own share differs by some hundred bytes. FFTW's buffers are not counted. Where
    several threads work, the peak depends on which pieces overlap in time: a claim about it is ``timed``.
    """
    tracemalloc.start()
    try:
        run()
        return round(tracemalloc.get_traced_memory()[1] / _PAGE) * _PAGE
    finally:
        tracemalloc.stop()


def gradient_error(
    function: Callable[..., Any], backward: Callable[..., Any], cache: Any, inputs: Mapping[str, Any], **options: Any
) -> float:
    """Return the largest relative error of a backward's gradients against central differences of the function."""
    errors = check_gradients(
        function, lambda upstream: backward(upstream, cache)._asdict(), inputs, rtol=math.inf, **options
    )
    return max(errors.values())


def rows_that_see_the_future(
    attend: Callable[..., Any], inputs: Mapping[str, np.ndarray], cuts: Iterable[int], seed: int
) -> float:
    """Return how many rows change, in any bit, when everything from a later token on is drawn anew."""
    rng, before, changed = np.random.default_rng(seed), np.array(attend(**inputs)), 0
    for t in cuts:
        later = {name: array.copy() for name, array in inputs.items()}
        for array in later.values():
            array[t:] = 5 * rng.standard_normal(array[t:].shape)
        changed += int((attend(**later)[:t] != before[:t]).any(axis=-1).sum())
    return float(changed)


def entries_that_change(run: Callable[[], Sequence[np.ndarray]], counts: Sequence[int]) -> float:
    """Return how many entries differ in any bit between runs with these numbers of threads."""
    runs = []
    for count in counts:
        with threads(count):
            runs.append([np.array(result) for result in run()])  # which may be buffers that are filled again
    return float(sum(int((a != b).sum()) for other in runs[1:] for a, b in zip(other, runs[0], strict=True)))
