"""Times of functions, where asv's own timing does not do: one number, or several functions in one run."""

import time

import numpy as np


def seconds(function, repeat, clock=time.perf_counter):
    """Best time of `repeat` calls, after one that is not counted."""
    function()
    return in_turns([function], repeat, clock).min()


def in_turns(functions, rounds, clock=time.perf_counter):
    """Seconds of every function in every round, one after the other, shape (rounds, functions)."""
    times = np.empty((rounds, len(functions)))
    for row in times:
        for place, function in enumerate(functions):
            begun = clock()
            function()
            row[place] = clock() - begun
    return times
