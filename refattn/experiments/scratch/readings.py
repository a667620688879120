"""What the records of a study say of its methods, each at its best rate, with intervals over seeds (ours).

An interval is Student's, of three seeds: wide, as three seeds deserve.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from refattn.experiments.scratch.chosen import best_rates

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over seeds, and its interval."""

    value: float
    low: float
    high: float


class Gain(NamedTuple):
    """The best of some other methods by its mean, and by how much a method is better, seed by seed."""

    best: str
    interval: Interval


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of at least two values with its 95 % interval.

    >>> [round(x, 2) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        raise ValueError(f"values: {count} came, at least 2 were wanted for an interval")
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def at_best_rates(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of the trainings at each method's best rate."""
    rows = list(rows)
    rates = best_rates(rows)
    return [row for row in rows if rates.get(row["task"], {}).get(row["method"]) == row["rate"]]


def scores(
    rows: Iterable[dict[str, Any]], field: str, times: int, distance: int | None = None
) -> dict[str, dict[int, float]]:
    """Return by method and seed what was measured at a length, of all targets or of those at a distance."""
    found: dict[str, dict[int, float]] = {}
    for row in at_best_rates(rows):
        if row.get("times") == times and row["distance"] == distance:
            found.setdefault(row["method"], {})[row["seed"]] = row[field]
    return found


def gain(rows: Iterable[dict[str, Any]], method: str, others: Collection[str], field: str, times: int) -> Gain:
    """Return by how much a method is better than the best of the others: more `accuracy`, or less `loss`."""
    found, sign = scores(rows, field, times), -1.0 if field == "loss" else 1.0
    best = max(others, key=lambda other: sign * float(np.mean(list(found[other].values()))))
    own, theirs = found[method], found[best]
    return Gain(best, interval([sign * (own[seed] - theirs[seed]) for seed in sorted(own)]))
