"""The rule of judgement: how much error a precision excuses (ours).

Row i of a result may differ from the truth, which is computed in float64, by

    max( factor · plain_i,  6 · deviation_i + last_i )

``plain_i`` is the largest error of row i over four runs of a plain implementation in the arithmetic of kernels
(`precision`): on the inputs, and on inputs changed by a unit of rounding, of the type for queries, which a kernel may
scale and round, and of its sums for keys and values. It sees errors that are the same along a row, and what a precision
does beyond its first order. Of a problem that is sampled there is one run.

``deviation_i`` is the standard deviation of the error of independent roundings, derived stage by stage from the terms
of row i itself (`rounding`), with every place where right kernels round; ``last_i`` bounds the rounding of the result.
A normal error beyond six deviations comes once in 5·10⁸ entries, and sums of rounding errors, which are bounded, less
often. So a row is not held to the luck of four runs, and no row is judged by the size of another. The two explain the
same error, hence the larger and not the sum.

In float64 the truth is off by as much itself, and twice the second is allowed. Where the truth is beyond the largest
number of the precision, that number and infinity, of its sign, are right. A row on which the plain implementation gives
no number is not judged; the others are. A result without a last axis of width D is judged entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.operation import Arrays, Operation, Problem
from refattn.testing.conformance.precision import PRECISIONS, Precision

FACTOR = 4.0
"""Default of the rule's factor."""

DRAWS = 4
LUCK = 6.0
"""Standard deviations of rounding that are excused."""


@dataclass(frozen=True)
class Allowance:
    """What the rule allows for one result: the largest error, and the plain implementation's own, by row."""

    rows: FloatArray
    plain: FloatArray


@dataclass(frozen=True)
class Judgement:
    """One result of one case against the truth, by its worst row: the largest multiple of what is allowed."""

    result: str  # ``out``, or ``dx`` for the gradient of x
    passed: bool  # every row is within what is allowed
    row: tuple[int, ...]
    error: float
    allowed: float
    plain: float  # the error of the plain implementation
    expected: list[float]  # of that row, at most its first eight entries
    got: list[float]  # the same of what came


def row_error(got: NDArray[Any], reference: NDArray[Any], by_row: bool, largest: float = np.inf) -> FloatArray:
    """Absolute error of every row, infinite where one side is not finite and the other differs.

    Numbers beyond the largest of a precision count as that.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        came, right = (np.clip(x.astype(np.float64), -largest, largest) for x in (got, reference))
        error = np.abs(came - right)
    error = np.where(np.isfinite(reference) & np.isfinite(error), error, np.inf)
    error = np.where(got == reference, 0.0, error)
    return np.asarray(error.max(axis=-1, initial=0.0) if by_row else error)


def rows_of(operation: Operation, result: str) -> bool:
    """Whether a result has rows: its last axis is D, or that of the keys of a bias."""
    of = result if result == "out" else result[1:]
    return of == "bias" or operation.axes.get(of, "").endswith("D")


def allowances(
    operation: Operation,
    problem: Problem,
    upstream: FloatArray | None,
    truth: Arrays,
    precision: Precision,
    factor: float,
) -> dict[str, Allowance]:
    """Return what every result is allowed on a problem."""
    units = {x: precision.inner if x in ("k", "v") else precision.unit for x in operation.perturbed}
    draws: list[Arrays] = []
    for draw in range(DRAWS if problem.sample is None else 1):
        moved = problem.perturbed(units, draw) if draw else problem
        draws.append(operation.plain(moved, upstream, precision))
    spreads = operation.spread(problem, upstream, precision)
    own = 2.0 if precision.unit <= PRECISIONS["float64"].unit else 1.0  # the truth's errors beside the function's
    allowed = {}
    for name, right in truth.items():
        by_row = rows_of(operation, name)
        errors = [row_error(draw[name], right, by_row, precision.end) for draw in draws]
        rounding = own * spreads[name].allows(LUCK, by_row)
        allowed[name] = Allowance(np.maximum(factor * np.max(errors, axis=0), rounding), errors[0])
    return allowed


def judge(
    operation: Operation, got: Arrays, truth: Arrays, allowed: dict[str, Allowance], precision: Precision
) -> tuple[Judgement, ...]:
    """Return the judgement of every result."""
    judgements = []
    for name, right in truth.items():
        by_row = rows_of(operation, name)
        error = row_error(got[name], right, by_row, precision.end)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = error - allowed[name].rows
            ratio = np.where(excess > 0, error / allowed[name].rows, error / np.maximum(allowed[name].rows, 1e-300))
        ratio = np.where(np.isinf(allowed[name].rows), 0, ratio)
        row = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
        judgements.append(
            Judgement(
                name,
                not bool((~(error <= allowed[name].rows)).any()),
                row,
                float(error[row]),
                float(allowed[name].rows[row]),
                float(allowed[name].plain[row]),
                [float(x) for x in np.atleast_1d(right[row])[:8]],
                [float(x) for x in np.atleast_1d(got[name][row])[:8]],
            )
        )
    return tuple(judgements)
