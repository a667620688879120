"""What a case would have noticed: its results replaced by wrong ones, and the smallest error it is caught at (ours).

Every result is replaced by noise of its size, by zeros, and by itself with its rows one place later; where the
operation can make these mistakes, also by what a skipped tile of keys and one key too many give. A case that takes one
of these for the truth is blind to it. The smallest error of a row that is noticed is what the row is allowed, relative
to its largest entry: 0.01 there means that a factor of 1.01 is caught. Rows whose truth is zero have no relative error
and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.judge import LUCK, Allowance, row_error, rows_of
from refattn.testing.conformance.operation import Arrays, Operation, Problem
from refattn.testing.conformance.precision import PRECISIONS, Precision

WANTED = {"float64": 1e-10, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
"""Relative errors that half of the rows of every result should notice; a result that does not says why."""

MOST = 2**17
"""Pairs of queries and keys up to which the mistakes of an operation are tried."""

GARBAGE = ("noise", "zeros", "rows one place later")
"""Replacements that a case must tell from the truth, where its results are not said to be lost in rounding."""

SAME = 1e-9
"""A replacement that differs from the truth by less, relatively, is no mistake here."""


@dataclass(frozen=True)
class Power:
    """What one result of one case would have noticed.

    Attributes
    ----------
    result : str
        ``out``, or ``dx`` for the gradient of x.
    smallest, half : float
        The smallest relative error of a row that is noticed: in the best of the rows, and in half of them. Infinite
        where every row of the truth is zero.
    blind : tuple of str
        Replacements of the whole result that would have passed.
    why : str
        Why half of the rows do not notice what is wanted of the precision; empty where they do.

    Examples
    --------
    >>> from refattn.testing.conformance.power import Power
    >>> Power("out", 1e-7, 2e-6).blind
    ()
    """

    result: str
    smallest: float
    half: float
    blind: tuple[str, ...] = ()
    why: str = ""


def powers(
    operation: Operation,
    problem: Problem,
    upstream: FloatArray | None,
    truth: Arrays,
    allowed: dict[str, Allowance],
    precision: Precision,
) -> tuple[Power, ...]:
    """Return what every result would have noticed; O(n² d) for mistakes of a problem that is not sampled."""
    mistakes = {}
    if problem.sample is None and _pairs(problem) <= MOST:
        for name in operation.mistakes:
            mistakes[name] = operation.plain(problem, upstream, PRECISIONS["float64"], name)
    rng = np.random.default_rng([problem.seed, 10])
    found = []
    for name, right in truth.items():
        by_row = rows_of(operation, name)
        finite = np.where(np.isfinite(right), right, 0)
        replaced = {
            "noise": rng.standard_normal(right.shape) * np.sqrt(np.mean(finite**2)),
            "zeros": np.zeros_like(right),
            "rows one place later": np.roll(right, 1, axis=-2 if by_row else -1),
            **{mistake: results[name] for mistake, results in mistakes.items()},
        }
        rows = allowed[name].rows
        size = np.abs(finite).max(axis=-1, initial=0.0) if by_row else np.abs(finite)
        there = size > rows * (PRECISIONS["float64"].unit / precision.unit)  # else it is zero, but for its own rounding
        blind: tuple[str, ...] = ()
        if there.any():
            blind = tuple(x for x, wrong in replaced.items() if _passes(wrong, right, rows, by_row, precision))
        with np.errstate(over="ignore"):
            relative = rows[there] / size[there] if there.any() else np.array([np.inf])
        half = float(np.median(relative))
        why = "" if half <= _wanted(precision) else _why(problem, rows[there], size[there], precision)
        found.append(Power(name, float(relative.min()), half, blind, why))
    return tuple(found)


def _pairs(problem: Problem) -> int:
    """Pairs of queries and keys, over batches and heads."""
    if "q" not in problem.arrays:
        return 0
    (batch, n_heads, n_q, _), n_k = problem.arrays["q"].shape, problem.arrays["k"].shape[-2]
    return int(batch * n_heads * n_q * n_k)


def _passes(wrong: FloatArray, right: FloatArray, rows: FloatArray, by_row: bool, precision: Precision) -> bool:
    """Whether something else than the truth would have passed for it."""
    error = row_error(wrong, right, by_row, precision.end)
    finite = right[np.isfinite(right)]
    if error.max(initial=0.0) <= SAME * np.abs(finite).max(initial=0.0):
        return False
    return bool((error <= rows).all())


def _wanted(precision: Precision) -> float:
    return WANTED.get(precision.name, 16 * precision.unit)


def _why(problem: Problem, rows: FloatArray, size: FloatArray, precision: Precision) -> str:
    """The reason in a sentence: rows of zeros, an overflow, large logits, or sums that cancel."""
    if not size.size:
        return "the truth is zero"
    if np.median(rows) == np.inf:
        return f"the plain implementation gives no number in {precision.name}"
    largest = _largest_logit(problem)
    if LUCK * precision.unit * largest > _wanted(precision):
        moved = min(precision.unit * largest, 1.0)
        return f"logits reach {largest:.2g}: rounding what they are made of moves a weight by {moved:.1g} of itself"
    left = np.median(size) * LUCK * precision.unit / np.median(rows)
    return f"half of the rows are sums that cancel, to {left:.1g} of the size of their terms or less"


def _largest_logit(problem: Problem) -> float:
    """A bound, by the lengths of queries and keys, of the logits."""
    if "q" not in problem.arrays:
        return 0.0
    q, k = (float(np.sqrt(np.square(problem.arrays[x].astype(np.float64)).sum(axis=-1).max())) for x in ("q", "k"))
    return abs(float(problem.options["scale"])) * q * k


def summary(found: list[tuple[str, Power]], precision: Precision) -> list[str]:
    """Return in a few lines what the cases, given by name, would have noticed."""
    told = [(case, power) for case, power in found if np.isfinite(power.half)]
    if not told:
        return []
    middle = float(np.median([power.half for _, power in told]))
    judged = [(case, power) for case, power in told if not power.why]
    line = (
        f"power: half of the rows of a result notice a relative error of {middle:.1e} (median of {len(told)} results)"
    )
    if judged:
        case, power = max(judged, key=lambda one: one[1].half)
        line += f"; the weakest, {power.result} of {case!r}, {power.half:.1e}"
    unable = len(found) - len(judged)
    if unable:
        line += f"; {unable} cannot notice {_wanted(precision):.0e}, for the reasons in the report's data"
    missed = sum(bool(set(power.blind) - set(GARBAGE)) for _, power in judged)
    if missed:
        line += f"; {missed} would miss a lost tile of keys, or a key too many"
    blind = [f"{power.result} of {case!r}" for case, power in judged if set(power.blind) & set(GARBAGE)]
    return [line] + ([f"cannot tell garbage from the truth: {', '.join(blind)}"] if blind else [])
