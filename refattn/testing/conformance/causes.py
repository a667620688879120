"""A guess at the cause: which deliberately wrong reference gives what the function gave (ours).

Every known mistake is put into the plain implementation. Where what has to be explained agrees with what one mistake
gives, by the same rule that judged it, the mistake is a candidate. The one that explains the most failing cases is
named; among equals, the one whose other results agree too. To be explained is the output where it failed, since wrong
gradients may follow from it in more ways than one, and otherwise every gradient that failed.

Then come patterns that need no reference: results off by a constant factor, rows shifted by one, and errors that
would be excused in a coarser precision; and, where none fits, the row from which on every result is wrong.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.judge import allowances, judge, row_error, rows_of
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.report import Cause
from refattn.testing.conformance.rounding import FLOOR
from refattn.testing.conformance.trial import Subject, Trial

TRIALS = 7
"""Failing cases looked at, evenly spaced among them."""

MANY, FEW, ALIKE = 64, 0.02, 0.5
"""Of more than so many rows, or entries: the share that a coarser precision spoils at least, and how far its errors lie
along the truth at most, as a cosine."""

STEP = 2.0**-12
"""Of the scale, to take the derivative by it."""

OF_FLOAT16 = ("products overflow before the scale",)
"""Mistakes that only this precision can make."""

_NEARER = 0.25
"""A wrong reference explains a result that is at least four times nearer to it than to the truth."""


def guess_causes(subject: Subject, failed: list[Trial]) -> tuple[Cause, ...]:
    """Return the mistakes that explain at least half of the trials, all of which failed; the likeliest first."""
    failed = [trial for trial in failed if trial.problem.sample is None] or failed[:1]  # of a sample, all is dear
    trials = failed[:: -(-len(failed) // TRIALS)] if failed else []
    found: list[tuple[int, int, Cause]] = []
    for name, sentence in subject.operation.faults.items():
        if name in OF_FLOAT16 and subject.precision.name != "float16":
            continue
        explained = _explained(subject, trials, name)
        if explained:
            found.append((-len(explained), sum(explained), Cause(name, sentence, len(explained), len(trials))))
    if found:
        return tuple(cause for _, _, cause in sorted(found, key=lambda x: x[:2]))[:3]
    patterns = (
        (_constant_factor, _shifted_rows, _scale_off, _stored_sums, _coarser_precision, _from_a_row_on)
        if trials
        else ()
    )
    return tuple(cause for pattern in patterns for cause in pattern(subject, trials))[:1]


def _explained(subject: Subject, trials: list[Trial], fault: str) -> list[int]:
    """The contradictions of every trial that a mistake explains, or none if it explains less than half of them."""
    explained = []
    small_first = sorted(trials, key=lambda trial: sum(array.size for array in trial.problem.arrays.values()))
    for place, trial in enumerate(small_first):
        contradictions = _explains(subject, trial, fault)
        if contradictions is not None:
            explained.append(contradictions)
        elif 2 * (place + 1 - len(explained)) > len(trials):
            return []
    return explained


def _failed(trial: Trial) -> list[str]:
    """The results to be explained."""
    failed = [judgement.result for judgement in trial.judgements if not judgement.passed]
    return ["out"] if "out" in failed else failed


def _explains(subject: Subject, trial: Trial, fault: str) -> int | None:
    """Return None unless the mistake explains the trial; else the number of other results it would make different."""
    operation = subject.operation
    if not operation.can_make(trial.problem, fault):
        return None
    failed = _failed(trial)
    upstream = trial.upstream if failed != ["out"] else None
    wrong = operation.plain(trial.problem, upstream, PRECISIONS["float64"], fault)
    if any(_far(trial.got[name], wrong[name], trial.truth[name]) for name in failed):
        return None
    if upstream is not trial.upstream:
        wrong = operation.plain(trial.problem, trial.upstream, PRECISIONS["float64"], fault)
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


def _scale_off(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Errors along the derivative by the scale: by the same share of it in every case, or by one of a precision."""
    shares = []
    for trial in trials:
        if "scale" not in trial.problem.options or trial.problem.sample is not None:
            return []
        problem, scale = trial.problem, float(trial.problem.options["scale"])
        upstream = trial.upstream if _failed(trial) != ["out"] else None
        moved = replace(problem, options={**problem.options, "scale": scale * (1 + STEP)})
        exact = PRECISIONS["float64"]
        there, here = (subject.operation.plain(x, upstream, exact) for x in (moved, problem))
        for name in _failed(trial):
            slope = (there[name] - here[name]) / STEP
            error, square = trial.got[name] - trial.truth[name], float((slope * slope).sum())
            if not np.isfinite(error).all() or not square:
                return []
            along = float((error * slope).sum())
            if error.size > MANY:
                if abs(along) < ALIKE * np.sqrt(square) * np.linalg.norm(error):
                    return []
                shares.append(along / square)
    if not shares:
        return []
    most = max(map(abs, shares))
    for coarser in PRECISIONS.values():
        if coarser.unit > subject.precision.unit and most <= 2 * coarser.unit:
            sentence = f"the scale, or its root, is kept in {coarser.name}: it is off by up to {most:.0e}"
            return [Cause("scale in a coarser precision", sentence, len(trials), len(trials))]
    if most > 2 * min(map(abs, shares)) or min(shares) * max(shares) <= 0:
        return []
    sentence = (
        f"the logits are too {'large' if shares[0] > 0 else 'small'} by about {abs(float(np.median(shares))):.1%}"
    )
    return [Cause("scale off", sentence, len(trials), len(trials))]


def _stored_sums(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Errors that keeping gradients, or every intermediate, in the dtype would excuse in every case."""
    if subject.precision.accumulate == "dtype" or subject.precision.inner == subject.precision.unit:
        return []
    name = subject.precision.name
    kept = {
        "tiles": ("gradients added up in half precision", f"gradients rounded to {name} after every tile"),
        "dtype": ("intermediates in half precision", f"sums or logits kept in {name}"),
    }
    for accumulate, (cause, what) in kept.items():
        if accumulate == subject.precision.accumulate:
            continue
        if _excused(subject, trials, replace(subject.precision, accumulate=accumulate), 0.0):
            sentence = f"errors are those of {what}; accumulate={accumulate!r} excuses them"
            return [Cause(cause, sentence, len(trials), len(trials))]
    return []


def _excused(subject: Subject, trials: list[Trial], precision: Precision, few: float) -> bool:
    """Whether every trial passes in a precision, with at least a few of the rows off, and no error along the truth."""
    operation = subject.operation
    for trial in trials:
        allowed = allowances(operation, trial.problem, trial.upstream, trial.truth, precision, subject.factor)
        if not all(j.passed for j in judge(operation, trial.got, trial.truth, allowed, precision)):
            return False
        for name in _failed(trial):  # the errors of a precision are spread over the rows, and over both signs
            error = trial.got[name].astype(np.float64) - trial.truth[name]
            of_rows = np.abs(error).max(axis=-1) if rows_of(operation, name) else np.abs(error)
            beyond = of_rows > trial.allowed[name].rows
            if of_rows.size > MANY and beyond.mean() < few:
                return False
            along = float((error * trial.truth[name]).sum())
            length = float(np.linalg.norm(error) * np.linalg.norm(trial.truth[name]))
            if error.size > MANY and abs(along) > ALIKE * length:
                return False
    return True


def _coarser_precision(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Errors that a coarser precision would excuse in every case."""
    for coarser in PRECISIONS.values():
        if coarser.unit <= subject.precision.unit:
            continue
        if _excused(subject, trials, replace(coarser, accumulate="dtype"), FEW):
            sentence = f"errors are those of {coarser.name}: something is kept or added up in it"
            return [Cause("wrong dtype", sentence, len(trials), len(trials))]
    return []


def _from_a_row_on(subject: Subject, trials: list[Trial]) -> list[Cause]:
    """Results right up to a row, the same in every case, that a tile may end at."""
    firsts, zero = set(), True
    for trial in trials:
        rows = [_rows_beyond(subject, trial, name) for name in _failed(trial)]
        found = [x for x, _ in rows if x.size]
        if not found:
            return []
        firsts.add(int(min(x[0] for x in found)))
        zero = zero and all(nothing for _, nothing in rows)
    first = min(firsts)
    if first < 16 or first % 16 or max(firsts) >= 2 * first:
        return []
    if zero:
        return [Cause("rows lost", f"rows from {first} on are zero", len(trials), len(trials))]
    sentence = f"rows before {first} are right: the mistake is made at the end of a tile, or of a tile of tiles"
    return [Cause("wrong from a tile on", sentence, len(trials), len(trials))]


def _rows_beyond(subject: Subject, trial: Trial, name: str) -> tuple[NDArray[np.int64], bool]:
    """The rows, as the whole result counts them, that are off by more than is allowed; whether they are zero."""
    error = row_error(trial.got[name], trial.truth[name], rows_of(subject.operation, name), subject.precision.end)
    wrong = error > trial.allowed[name].rows
    rows = np.flatnonzero(wrong.any(axis=tuple(range(wrong.ndim - 1))))
    nothing = not trial.got[name][wrong].any()
    return (rows if trial.problem.sample is None else trial.problem.sample.rows(name)[rows]), nothing
