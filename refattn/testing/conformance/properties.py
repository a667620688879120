"""What is asked of a function beyond its values: the same bits again, rows by themselves, bounds kept (ours).

A property compares what the function gives with what it gives in another setting. Where a function *claims* one, the
two have to be the same bit for bit; otherwise both are excused as its values are, and a difference is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.adapters import Result
from refattn.testing.conformance.judge import allowances, row_error, rows_of
from refattn.testing.conformance.operation import Case, Problem, Shape
from refattn.testing.conformance.report import FAIL, NOT_RUN, PASS, CaseResult
from refattn.testing.conformance.trial import Subject, blank_result, ended, written

BUFFER = "out"
"""The parameter by which a function that fills its own output is given it."""


@dataclass(frozen=True)
class Comparison:
    """The rows that should be the same: by name, as they are and in the other setting."""

    one: dict[str, FloatArray]
    other: dict[str, FloatArray]
    rows: int | None = None  # how many of the problem's are compared, the first ones; all where None


Compare = Callable[[Subject, Case, Problem], Comparison]


@dataclass(frozen=True)
class Property:
    """A property: the claim that makes it one of bits, what is said if it fails, and how the two results come about."""

    claim: str
    failure: str
    compare: Compare
    convention: bool = False  # not all keep it, and it is asked for only where it is claimed


def try_property(subject: Subject, case: Case, n: int, seed: int) -> CaseResult:
    """Build the case, run it in the two settings, and compare."""
    problem = case.build(n, seed).rounded(subject.dtype)
    blank = blank_result(case, problem, n, seed)
    asked = PROPERTIES[case.asks]
    if asked.convention and asked.claim not in subject.claims:
        return replace(blank, verdict=NOT_RUN, reason=f"a convention: claims={asked.claim!r} asks for it")
    if case.asks == "buffer" and not subject.takes_parameter(BUFFER):
        return replace(blank, verdict=NOT_RUN, reason=f"the function takes no {BUFFER}")
    try:
        found = asked.compare(subject, case, problem)
    except NotImplementedError as lacking:
        return replace(blank, verdict=NOT_RUN, reason=str(lacking))
    except _WrittenError as changed:
        return replace(blank, verdict=FAIL, reason=str(changed))
    except Exception as raised:  # whatever the function under check raises is a finding
        return ended(subject, blank, raised)
    names = list(found.one)
    if any(found.one[x].shape != found.other[x].shape for x in names):
        return replace(blank, verdict=FAIL, reason=f"{asked.failure}: the shapes differ")
    if all(np.array_equal(found.one[x], found.other[x], equal_nan=True) for x in names):
        return blank
    upstream = problem.upstream(subject.dtype) if len(names) > 1 else None
    truth = subject.operation.truth(problem, upstream)
    allowed = allowances(subject.operation, problem, upstream, truth, subject.precision, subject.factor)
    for name in names:
        by_row = rows_of(subject.operation, name)
        error = row_error(found.one[name], found.other[name].astype(np.float64), by_row)
        most = 2 * allowed[name].rows[..., : found.rows]
        if (error > most).any():
            at = np.unravel_index(int(np.argmax(error - most)), error.shape)
            row = ", ".join(str(int(i)) for i in at)
            reason = f"{asked.failure}: {name} row ({row}) differs by {error[at]:.3g}, allowed {most[at]:.3g}"
            return replace(blank, verdict=FAIL, reason=reason)
    if asked.claim in subject.claims:
        return replace(blank, verdict=FAIL, reason=f"{asked.failure}: not the same bits, as claimed")
    return replace(blank, verdict=PASS, notes=(f"not the same bits, which {asked.claim!r} would claim",))


class _WrittenError(Exception):
    """The function changed what it may not."""


def _results(subject: Subject, case: Case, problem: Problem, upstream: FloatArray | None = None) -> dict[str, Any]:
    options = subject.options(subject.function, problem)
    call = subject.call
    found: list[Result] = call(subject.function, problem.arrays, options, call.returns, case.memory)
    _check_written(subject)
    if subject.backward is not None and upstream is not None:
        names = subject.results_of_backward(problem)
        given = subject.options(subject.backward, problem)
        found += call(subject.backward, {"dout": upstream, **problem.arrays}, given, names, case.memory)
        _check_written(subject)
    return {name: array for name, array, _ in found if name in ("out", *(f"d{x}" for x in problem.arrays))}


def _check_written(subject: Subject) -> None:
    if written(subject):
        raise _WrittenError(written(subject))


def _again(subject: Subject, case: Case, problem: Problem) -> Comparison:
    upstream = problem.upstream(subject.dtype) if problem.smooth and subject.backward is not None else None
    one, other = (_results(subject, case, problem, upstream) for _ in range(2))
    return Comparison(one, other)


def _alone(subject: Subject, case: Case, problem: Problem) -> Comparison:
    """Every entry of the batch by itself."""
    together = _results(subject, case, problem)
    parts = []
    for b in range(case.shape.batch):
        arrays = {x: a[b : b + 1] for x, a in problem.arrays.items()}
        parts.append(_results(subject, case, replace(problem, arrays=arrays))["out"])
    return Comparison({"out": together["out"]}, {"out": np.concatenate(parts)})


def _before(subject: Subject, case: Case, problem: Problem) -> Comparison:
    """The first rows of a sequence, with and without those that follow."""
    axes, n = subject.operation.axes, problem.arrays["q"].shape[-2]
    rows = n // 2 + 1
    whole = _results(subject, case, problem)["out"]
    arrays = {x: a[..., :rows, :] if axes[x].endswith("D") else a[..., :rows] for x, a in problem.arrays.items()}
    part = _results(subject, case, replace(problem, arrays=arrays))["out"]
    return Comparison({"out": whole[..., :rows, :]}, {"out": part}, rows)


def _hidden_nan(subject: Subject, case: Case, problem: Problem) -> Comparison:
    """Keys that the mask hides from all queries, as zeros and as NaN."""
    hidden = ~problem.options["mask"].any(axis=-2)[..., None]
    filled = [
        replace(problem, arrays={x: np.where(hidden, fill, a) if x in "kv" else a for x, a in problem.arrays.items()})
        for fill in (0.0, np.nan)
    ]
    one, other = (_results(subject, case, x)["out"] for x in filled)
    return Comparison({"out": one}, {"out": other})


def _buffer(subject: Subject, case: Case, problem: Problem) -> Comparison:
    """An output given as part of an array whose other entries have to stay as they are."""
    options = subject.options(subject.function, problem)
    call = subject.call
    found = call(subject.function, problem.arrays, options, ("out",), case.memory, BUFFER)
    _check_written(subject)
    return Comparison(_results(subject, case, problem), {"out": found[0][1]})


PROPERTIES = {
    "again": Property("deterministic", "the same call gives another result", _again),
    "alone": Property("batch-invariant", "a row depends on what else is in its batch", _alone),
    "before": Property("prefix-invariant", "a row depends on what follows it", _before),
    "hidden": Property("nan-safe", "NaN in a hidden key reaches the output", _hidden_nan, convention=True),
    "buffer": Property("deterministic", "the array given for the output does not hold it", _buffer),
}


def property_case(name: str, asks: str, shape: Shape, content: Callable[[Shape, int], Problem], profile: str) -> Case:
    """Return a case that asks for a property."""
    tags = frozenset({asks, *([PROPERTIES[asks].claim] if PROPERTIES[asks].claim else [])})
    return Case(name, "property", shape, content, tags, profile, asks=asks)
