"""The rule of judgement: how much error a precision excuses (ours).

Row i of a result may differ from the truth, which is computed in float64, by

    factor · max(plain_i, mean of plain)  +  8 · unit · size

where ``plain_i`` is the largest error of row i over four runs of a plain implementation in the same precision: on the
inputs, and on inputs changed by a unit of rounding, so that a row is not held to the luck of one rounding; ``unit`` is
the unit of rounding; and ``size`` is the natural size of the result (``‖V‖_∞`` for an output). A result without a last
axis of width D is judged entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.operation import Arrays, Operation, Problem
from refattn.testing.conformance.precision import Precision

FACTOR = 4.0
"""Default of the rule's factor."""

DRAWS = 4
FLOOR = 8.0


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


def row_error(got: NDArray[Any], reference: NDArray[Any], by_row: bool) -> FloatArray:
    """Absolute error of every row, infinite where one side is not finite and the other differs."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - reference)
    error = np.where(got == reference, 0.0, np.where(np.isfinite(error), error, np.inf))
    return np.asarray(error.max(axis=-1, initial=0.0) if by_row else error)


def rows_of(operation: Operation, result: str) -> bool:
    """Whether a result has rows, its last axis being D."""
    return operation.axes[result if result == "out" else result[1:]].endswith("D")


def allowances(
    operation: Operation,
    problem: Problem,
    upstream: FloatArray | None,
    truth: Arrays,
    precision: Precision,
    factor: float,
) -> dict[str, Allowance]:
    """Return what every result is allowed on a problem."""
    draws: list[Arrays] = []
    for draw in range(DRAWS):
        unit = precision.unit if draw else 0.0
        moved = problem.perturbed(operation.perturbed, unit, draw) if draw else problem
        draws.append(operation.plain(moved, upstream, precision))
    sizes = operation.sizes(problem, upstream)
    allowed = {}
    for name, right in truth.items():
        errors = [row_error(draw[name], right, rows_of(operation, name)) for draw in draws]
        largest = np.max(errors, axis=0)
        typical = largest.mean() if largest.size else 0.0
        allowed[name] = Allowance(
            factor * np.maximum(largest, typical) + FLOOR * precision.unit * sizes[name], errors[0]
        )
    return allowed


def judge(operation: Operation, got: Arrays, truth: Arrays, allowed: dict[str, Allowance]) -> tuple[Judgement, ...]:
    """Return the judgement of every result."""
    judgements = []
    for name, right in truth.items():
        by_row = rows_of(operation, name)
        error = row_error(got[name], right, by_row)
        excess = error - allowed[name].rows
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(excess > 0, error / allowed[name].rows, error / np.maximum(allowed[name].rows, 1e-300))
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
