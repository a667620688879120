"""A guess at the cause: which deliberately wrong reference gives what the function gave (ours).

Every known mistake is put into the plain implementation. Where what has to be explained agrees with what one mistake
gives, by the same rule that judged it, the mistake is a candidate. The one that explains the most failing cases is
named; among equals, the one whose other results agree too. To be explained is the output where it failed, since wrong
gradients may follow from it in more ways than one, and otherwise every gradient that failed.

Then come three patterns that need no reference: results off by a constant factor, rows shifted by one, and errors that
would be excused in a coarser precision.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.judge import allowances, judge, row_error, rows_of
from refattn.testing.conformance.precision import PRECISIONS
from refattn.testing.conformance.report import Cause
from refattn.testing.conformance.rounding import FLOOR
from refattn.testing.conformance.trial import Subject, Trial

TRIALS = 7
"""Failing cases looked at, evenly spaced among them."""

_NEARER = 0.25
"""A wrong reference explains a result that is at least four times nearer to it than to the truth."""


def guess_causes(subject: Subject, failed: list[Trial]) -> tuple[Cause, ...]:
    """Return the mistakes that explain at least half of the trials, all of which failed; the likeliest first."""
    trials = failed[:: -(-len(failed) // TRIALS)] if failed else []
    found: list[tuple[int, int, Cause]] = []
    for name, sentence in subject.operation.faults.items():
        verdicts = [_explains(subject, trial, name) for trial in trials]
        explained = [contradictions for contradictions in verdicts if contradictions is not None]
        if explained and 2 * len(explained) >= len(trials):
            found.append((-len(explained), sum(explained), Cause(name, sentence, len(explained), len(trials))))
    if found:
        return tuple(cause for _, _, cause in sorted(found, key=lambda x: x[:2]))[:3]
    patterns = (_constant_factor, _shifted_rows, _coarser_precision) if trials else ()
    return tuple(cause for pattern in patterns for cause in pattern(subject, trials))[:1]


def _failed(trial: Trial) -> list[str]:
    """The results to be explained."""
    failed = [judgement.result for judgement in trial.judgements if not judgement.passed]
    return ["out"] if "out" in failed else failed


def _explains(subject: Subject, trial: Trial, fault: str) -> int | None:
    """Return None unless the mistake explains the trial; else the number of other results it would make different."""
    operation = subject.operation
    failed = _failed(trial)
    wrong = operation.plain(trial.problem, trial.upstream, PRECISIONS["float64"], fault)
    if any(_far(trial.got[name], wrong[name], trial.truth[name]) for name in failed):
        return None
    rounded = operation.plain(trial.problem, trial.upstream, subject.precision, fault)
    if not all(_agrees(subject, trial, name, wrong[name], rounded[name]) for name in failed):
        return None
    contradictions = 0
    for judgement in trial.judgements:
        name = judgement.result
        if judgement.passed:
            predicted = row_error(rounded[name], trial.truth[name], rows_of(operation, name))
            contradictions += bool((predicted > 4 * trial.allowed[name].rows).any())
        elif name not in failed:
            contradictions += not _agrees(subject, trial, name, wrong[name], rounded[name])
    return contradictions


def _far(got: FloatArray, wrong: FloatArray, right: FloatArray) -> bool:
    """Whether a result, all of it finite, is not much nearer to a mistake's than to the truth."""
    if not np.isfinite(got).all():
        return False
    return not bool(np.abs(got - wrong).max() <= _NEARER * np.abs(got - right).max())


def _agrees(subject: Subject, trial: Trial, name: str, wrong: FloatArray, rounded: FloatArray) -> bool:
    """Whether a result is that of a mistake, computed in float64 and in the precision judged by."""
    by_row, unit = rows_of(subject.operation, name), subject.precision.unit
    got = trial.got[name]
    lost = ~np.isfinite(rounded)  # where the mistake gives no number, the function may have been lucky
    if (~np.isfinite(got) & ~lost).any() or (lost.any() and np.isfinite(got).all()):
        return False
    compared = ~lost & np.isfinite(got) & np.isfinite(wrong)
    came, expected, kept, right = (np.where(compared, x, 0) for x in (got, wrong, rounded, trial.truth[name]))
    own = row_error(kept, expected, by_row)
    own = np.maximum(own, own.mean() if own.size else 0)
    size = np.abs(expected).max(axis=-1) if by_row else np.abs(expected)
    error = row_error(came, expected, by_row)
    if (error > trial.allowed[name].rows + subject.factor * own + FLOOR * unit * size).any():
        return False
    return bool(lost.any() or error.max() <= _NEARER * row_error(came, right, by_row).max())


def _constant_factor(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Results that are the right ones times a number."""
    factors: dict[str, list[float]] = {}
    explained = 0
    for trial in trials:
        here = {}
        for name in _failed(trial):
            got, right = trial.got[name].astype(np.float64), trial.truth[name]
            if not np.isfinite(got).all():
                break
            square = float((right * right).sum())
            factor = float((got * right).sum()) / square if square else np.nan
            error = row_error(got, factor * right, rows_of(subject.operation, name))
            same = abs(factor - 1) <= 100 * subject.precision.unit  # then it is not the factor that is wrong
            if same or not (error <= 2 * max(abs(factor), 1) * trial.allowed[name].rows).all():
                break
            here[name] = factor
        else:
            explained += 1
            for name, factor in here.items():
                factors.setdefault(name, []).append(factor)
    if 2 * explained < len(trials) or not factors:
        return []
    said = ", ".join(f"{name} by {_number(values)}" for name, values in sorted(factors.items()))
    return [Cause("constant factor", f"off by a factor that is the same everywhere: {said}", explained, len(trials))]


def _number(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.6g}" if high - low <= 1e-3 * abs(high) else f"{low:.4g} to {high:.4g}, depending on the case"


def _shifted_rows(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Results whose rows are the right ones, one place earlier or later."""
    for step, word in ((1, "later"), (-1, "earlier")):
        count = sum(_rows_moved(subject, trial, step) for trial in trials)
        if 2 * count >= len(trials):
            return [
                Cause("rows shifted by one", f"every row stands one place {word} than it should", count, len(trials))
            ]
    return []


def _rows_moved(subject: Subject, trial: Trial, step: int) -> bool:
    """Whether row i + step of every result that failed is row i of the truth."""
    for name in _failed(trial):
        by_row = rows_of(subject.operation, name)
        axis = -2 if by_row else -1
        n = trial.truth[name].shape[axis]
        rows = np.arange(max(0, -step), n - max(0, step))
        got = np.take(trial.got[name], rows + step, axis=axis)
        error = row_error(got, np.take(trial.truth[name], rows, axis=axis), by_row)
        if rows.size < 2 or (error > 2 * trial.allowed[name].rows.max()).any():
            return False
    return True


def _coarser_precision(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Errors that a coarser precision would excuse in every case."""
    for coarser in PRECISIONS.values():
        if coarser.unit <= subject.precision.unit:
            continue
        for trial in trials:
            allowed = allowances(subject.operation, trial.problem, trial.upstream, trial.truth, coarser, subject.factor)
            if not all(j.passed for j in judge(subject.operation, trial.got, trial.truth, allowed, coarser)):
                break
        else:
            sentence = f"errors are those of {coarser.name}: something is kept or added up in it"
            return [Cause("wrong dtype", sentence, len(trials), len(trials))]
    return []
