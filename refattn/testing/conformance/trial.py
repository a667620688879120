"""One case run and judged, with all that a search for the cause needs of it (ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.adapters import Caller, accepted_options
from refattn.testing.conformance.judge import Allowance, Judgement, allowances, judge
from refattn.testing.conformance.operation import Arrays, Case, Operation, Problem
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.report import FAIL, NOT_RUN, PASS, CaseResult


@dataclass(frozen=True)
class Subject:
    """What is checked: a function, its backward if it has one, and how they are called and judged."""

    function: Callable[..., Any]
    backward: Callable[..., Any] | None
    operation: Operation
    call: Caller
    dtype: Precision
    precision: Precision
    factor: float


@dataclass(frozen=True)
class Trial:
    """A case that ran: the problem, the truth, what came, what was allowed, and the judgements."""

    problem: Problem
    upstream: FloatArray | None
    truth: Arrays
    got: Arrays
    allowed: dict[str, Allowance]
    judgements: tuple[Judgement, ...]


def try_case(subject: Subject, case: Case, n: int, seed: int) -> tuple[CaseResult, Trial | None]:
    """Build the case at size n, run it, and judge it; there is no trial where nothing came that can be judged."""
    operation = subject.operation
    problem = case.build(n, seed).rounded(subject.dtype)
    shapes = {name: list(array.shape) for name, array in problem.arrays.items()}

    def result(verdict: str, reason: str = "", judgements: tuple[Judgement, ...] = ()) -> CaseResult:
        return CaseResult(case.name, case.kind, seed, n, shapes, verdict, reason, judgements)

    defaults = operation.defaults(problem)
    try:
        options = accepted_options(subject.function, problem.options, defaults)
        backward = subject.backward if problem.smooth else None
        backward_options = {} if backward is None else accepted_options(backward, problem.options, defaults)
    except NotImplementedError as reason:
        return result(NOT_RUN, str(reason)), None

    upstream = None if backward is None else problem.upstream(subject.dtype)
    truth = operation.truth(problem, upstream)
    given = problem.arrays | {name: x for name, x in problem.options.items() if isinstance(x, np.ndarray)}
    given |= {} if upstream is None else {"dout": upstream}
    before = {name: array.copy() for name, array in given.items()}
    try:
        ((out, out_dtype),) = subject.call(subject.function, problem.arrays, options, ("out",))
        found = [("out", out, out_dtype)]
        if backward is not None and upstream is not None:
            arrays = {"dout": upstream, **problem.arrays}
            gradients = subject.call(backward, arrays, backward_options, operation.differentiable)
            found += [(f"d{x}", *one) for x, one in zip(operation.differentiable, gradients, strict=True)]
    except Exception as error:  # whatever the function under check raises is a finding
        signatures = f": {operation.signature}" + (f"; {operation.backward_signature}" if backward else "")
        wanted = f" (wanted{signatures})" if isinstance(error, TypeError) else ""
        return result(FAIL, f"raised {type(error).__name__}: {error}{wanted}"), None
    for name, array in given.items():
        if not np.array_equal(array, before[name], equal_nan=True):
            return result(FAIL, f"the input {name} was written to"), None
    for name, array, _ in found:
        if array.shape != truth[name].shape:
            return result(FAIL, f"{name}: shape {array.shape} came, {truth[name].shape} was wanted"), None

    got = {name: array for name, array, _ in found}
    allowed = allowances(operation, problem, upstream, truth, subject.precision, subject.factor)
    judgements = judge(operation, got, truth, allowed, subject.precision)
    trial = Trial(problem, upstream, truth, got, allowed, judgements)
    for name, _, dtype in found:
        if dtype in PRECISIONS and PRECISIONS[dtype].unit > subject.precision.unit:
            return result(FAIL, f"{name}: {dtype} came, {subject.precision.name} was wanted", judgements), trial
    passed = all(j.passed for j in judgements)
    return result(PASS if passed else FAIL, judgements=judgements), trial
