"""One case run and judged, with all that a search for the cause needs of it (ours)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.adapters import Caller, UnavailableError, WrongResultError, accepted_options
from refattn.testing.conformance.isolation import Ended, Isolated, Raised
from refattn.testing.conformance.judge import Allowance, Judgement, allowances, judge
from refattn.testing.conformance.operation import Arrays, Case, Operation, Problem
from refattn.testing.conformance.power import powers
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.report import FAIL, NOT_RUN, PASS, REFUSED, TAKES_NO, CaseResult
from refattn.testing.conformance.sampling import is_sampled, said, sample_of

CLAIMS = ("deterministic", "batch-invariant", "prefix-invariant", "nan-safe")
EMPTY_ROWS = ("zeros", "mean", "nan", "skip")


@dataclass(frozen=True)
class Subject:
    """What is checked: a function, its backward if it has one, and how they are called and judged."""

    function: Callable[..., Any]
    backward: Callable[..., Any] | None
    operation: Operation
    call: Caller | Isolated
    dtype: Precision
    precision: Precision
    factor: float
    empty_rows: str = "zeros"
    strict: bool = False
    claims: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)

    def options(self, function: Callable[..., Any], problem: Problem) -> dict[str, Any]:
        """Return what a function is given by keyword, or raise ``NotImplementedError``."""
        given = problem.options
        if function is not self.backward:
            given = {x: value for x, value in given.items() if x not in self.operation.of_backward}
        return accepted_options(
            function, given, self.operation.defaults(problem), self.names, self.operation.more_options
        )

    def results_of_backward(self, problem: Problem) -> tuple[str, ...]:
        """Return the names of what a backward may return: of every input, and of some options, the gradient."""
        more = (x for x in self.operation.with_gradient if x in problem.options)
        return tuple(f"d{x}" for x in (*self.operation.differentiable, *more))

    def takes_parameter(self, name: str) -> bool:
        """Whether the function has a parameter of a name."""
        try:
            return name in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # compiled, with no signature to ask for
            return False


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
    exact = case.build(n, seed)
    problem = replace(exact.rounded(subject.dtype), lse="lse" in subject.call.returns)
    blank = blank_result(case, problem, n, seed)
    for name, array in problem.arrays.items():
        if (np.isinf(array) & np.isfinite(exact.arrays[name])).any():
            reason = f"{name} has numbers beyond the largest of {subject.dtype.name}"
            return replace(blank, verdict=NOT_RUN, reason=reason), None
    empty = np.zeros(0, np.bool_)
    if operation.empty_rows is not None and "empty-rows" in case.tags:
        empty = operation.empty_rows(problem)
    backward = subject.backward if problem.smooth and case.gradients else None
    if any(x in problem.options for x in operation.of_backward) and subject.backward is None:
        return replace(blank, verdict=NOT_RUN, reason=f"{TAKES_NO}dlse: there is no backward"), None
    if empty.any() and subject.empty_rows in ("nan", "skip"):
        backward = None  # what such a row passes on is nobody's convention
    try:
        options = subject.options(subject.function, problem)
        backward_options = {} if backward is None else subject.options(backward, problem)
    except NotImplementedError as lacking:
        return replace(blank, verdict=NOT_RUN, reason=str(lacking)), None

    upstream = None if backward is None else problem.upstream(subject.dtype)
    if upstream is not None and empty.any() and subject.empty_rows == "mean":
        upstream = np.where(empty[..., None], 0, upstream)
    try:
        found = subject.call(subject.function, problem.arrays, options, subject.call.returns, case.memory)
    except Exception as error:  # whatever the function under check raises is a finding
        return ended(subject, blank, error), None
    reason, notes = written(subject), ""
    if backward is not None and upstream is not None:
        arrays = {"dout": upstream, **problem.arrays}
        try:
            names = subject.results_of_backward(problem)
            found += subject.call(backward, arrays, backward_options, names, case.memory)
            reason = reason or written(subject)
        except Exception as error:
            notes = _raised(subject, error, operation.backward_signature)
            upstream = None
            if _is_failure(subject, error):
                reason = reason or f"backward {notes}"
    blank = replace(blank, gradients_refused=notes)
    if reason:
        return replace(blank, verdict=FAIL, reason=reason), None

    wanted = {"out": problem.output_shape} | {f"d{x}": problem.arrays[x].shape for x in operation.differentiable}
    wanted |= {"lse": problem.output_shape[:-1]}
    wanted |= {f"d{x}": problem.options[x].shape for x in operation.with_gradient if x in problem.options}
    for name, array, _ in found:
        if name in wanted and array.shape != wanted[name]:
            reason = f"{name}: shape {array.shape} came, {wanted[name]} was wanted"
            return replace(blank, verdict=FAIL, reason=reason), None

    got = {name: array for name, array, _ in found}
    if is_sampled(operation, problem):
        assert operation.whole is not None
        whole = operation.whole(problem, upstream)
        sample = sample_of(problem, {name: got[name] for name in whole}, whole)
        problem = replace(problem, sample=sample)
        got = sample.of(got)
        blank = replace(blank, sampled=said(sample, problem))
    truth = operation.truth(problem, upstream)
    got = {name: got[name] for name in truth if name in got}
    truth = {name: truth[name] for name in got}
    allowed = allowances(operation, problem, upstream, truth, subject.precision, subject.factor)
    if "lse" in truth:  # of a row that sees nothing it is −∞, +∞ or a number: nobody's convention
        got["lse"] = np.where(np.isneginf(truth["lse"]), truth["lse"], got["lse"])
    if empty.any():
        truth["out"], got["out"] = _by_convention(subject.empty_rows, problem, empty, truth["out"], got["out"])
        allowed["out"] = _as_the_others(allowed["out"], empty)
    judgements = judge(operation, got, truth, allowed, subject.precision)
    blank = replace(blank, power=powers(operation, problem, upstream, truth, allowed, subject.precision))
    trial = Trial(problem, upstream, truth, got, allowed, judgements)
    judgements = tuple(_placed(problem, j) for j in judgements)
    for name, _, dtype in found:
        if name in got and dtype in PRECISIONS and PRECISIONS[dtype].unit > subject.precision.unit:
            reason = f"{name}: {dtype} came, {subject.precision.name} was wanted"
    passed = not reason and all(j.passed for j in judgements)
    return replace(blank, verdict=PASS if passed else FAIL, reason=reason, judgements=judgements), trial


def blank_result(case: Case, problem: Problem, n: int, seed: int) -> CaseResult:
    """The result of a case of which nothing bad is known yet."""
    shapes = {name: list(array.shape) for name, array in problem.arrays.items()}
    return CaseResult(case.name, case.kind, seed, n, shapes, PASS, tags=tuple(sorted(case.tags)))


def ended(subject: Subject, blank: CaseResult, error: Exception) -> CaseResult:
    """The result of a case in which the function raised, or gave nothing."""
    if _kind(error) == UnavailableError.__name__:
        return replace(blank, verdict=NOT_RUN, reason=str(error))
    raised = _raised(subject, error, subject.operation.signature)
    return replace(blank, verdict=FAIL if _is_failure(subject, error) else REFUSED, reason=raised)


def _placed(problem: Problem, judgement: Judgement) -> Judgement:
    """The judgement with its row as the whole result counts it."""
    if problem.sample is None:
        return judgement
    *lead, place = judgement.row
    return replace(judgement, row=(*lead, int(problem.sample.rows(judgement.result)[place])))


def written(subject: Subject) -> str:
    """What the last call changed and should not have, in a sentence, or nothing."""
    return f"{subject.call.written[0]} was written to" if subject.call.written else ""


def _kind(error: Exception) -> str:
    """The class of what was raised, perhaps in a child process."""
    return error.kind if isinstance(error, Raised) else type(error).__name__


def _is_failure(subject: Subject, error: Exception) -> bool:
    """Whether an exception is more than a refusal: no result because of an abort or a hang, or a wrong kind of one."""
    return subject.strict or isinstance(error, Ended) or _kind(error) == WrongResultError.__name__


def _raised(subject: Subject, error: Exception, signature: str) -> str:
    """What was raised, and what may help."""
    kind = _kind(error)
    if isinstance(error, Ended) or kind == WrongResultError.__name__:
        return str(error)
    text = f"raised {kind}: {error}"
    if kind == "TypeError":
        text += f" (wanted: {signature})"
    told = str(error).lower()
    if subject.call.arrays == "numpy" and kind in ("TypeError", "AttributeError"):
        for library, words in (("torch", ("tensor", "torch")), ("jax", ("jax", "jaxlib"))):
            if "ndarray" in told and any(word in told for word in words):
                return f"{text}; it was given NumPy arrays: pass arrays={library!r}"
    return text


def _by_convention(
    convention: str, problem: Problem, empty: NDArray[np.bool_], right: FloatArray, got: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The truth and what came, with the rows that see nothing as the convention has them."""
    at = np.broadcast_to(empty, right.shape[:-1])[..., None]
    if convention == "mean":
        v = problem.arrays["v"].astype(np.float64)
        mean = np.repeat(v.mean(axis=-2, keepdims=True), right.shape[1] // v.shape[1], axis=1)
        return np.where(at, mean, right), got
    if convention == "nan":
        as_wanted = at & np.isnan(got).all(axis=-1, keepdims=True)
        return np.where(at & ~as_wanted, np.nan, right), np.where(as_wanted, right, got)
    return right, np.where(at, right, got) if convention == "skip" else got


def _as_the_others(allowed: Allowance, empty: NDArray[np.bool_]) -> Allowance:
    """Let rows that see nothing be off by as much as the row that is allowed most of the others."""
    at = np.broadcast_to(empty, allowed.rows.shape)
    return replace(allowed, rows=np.where(at, allowed.rows[~at].max(initial=0.0), allowed.rows))
