"""A case run, and one that fails made smaller (ours)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from refattn.testing.conformance.causes import guess_causes
from refattn.testing.conformance.operation import Case
from refattn.testing.conformance.properties import try_property
from refattn.testing.conformance.report import FAIL, NOT_RUN, CaseResult, ConformanceReport
from refattn.testing.conformance.selection import Selection
from refattn.testing.conformance.takes import Takes
from refattn.testing.conformance.trial import Subject, Trial, try_case


def run(subject: Subject, case: Case, seed: int) -> tuple[CaseResult, Trial | None]:
    """Run and judge a case; there is no trial where nothing came that can be judged by its values."""
    begun = time.perf_counter()
    found = (try_property(subject, case, case.n, seed), None) if case.asks else try_case(subject, case, case.n, seed)
    return replace(found[0], seconds=time.perf_counter() - begun), found[1]


def shrunk(subject: Subject, case: Case, seed: int, takes: Takes) -> CaseResult:
    """Return the case at the smallest n, of those tried and taken, at which it fails."""
    passed = 0
    for n in _sizes(case.n):
        found = _failing(subject, case, n, seed, takes)
        if found is None:
            passed = n
            continue
        least = n
        while least - passed > 1:  # the smallest between a size that passes and one that fails
            middle = (passed + least) // 2
            smaller = _failing(subject, case, middle, seed, takes)
            found, least, passed = (found, least, middle) if smaller is None else (smaller, middle, passed)
        return found
    return run(subject, case, seed)[0]


def _failing(subject: Subject, case: Case, n: int, seed: int, takes: Takes) -> CaseResult | None:
    """The result at size n, if that size is taken and the result is wrong."""
    if n < case.n and takes.nearest(case.shape.at(n)) != case.shape.at(n):
        return None
    result, trial = try_case(subject, case, n, seed)
    return result if result.verdict == FAIL and trial is not None else None


def _sizes(n: int) -> Iterator[int]:
    """Sizes to try, ascending: all up to 20, then in steps of a twentieth, beyond 400 of a quarter; n last."""
    size = 1
    while size < n:
        yield size
        size += max(1, size // 20 if size < 400 else size // 4)
    yield n


def checked(subject: Subject, chosen: Selection, seeds: Iterable[int], takes: Takes, profile: str) -> ConformanceReport:
    """Return what comes of the cases chosen, each with every seed."""
    results, trials = [], []
    first: tuple[Case, int] | None = None
    for seed in seeds:
        for case in chosen.cases:
            result, trial = run(subject, case, seed)
            results.append(result)
            if result.verdict == FAIL and trial is not None:
                trials.append(trial)
                first = first or (case, seed)  # a wrong result can be made smaller, none cannot
        results += [
            CaseResult(case.name, case.kind, seed, case.n, {}, NOT_RUN, reason, tags=tuple(sorted(case.tags)))
            for case, reason in chosen.left_out
        ]
    smallest = None if first is None else shrunk(subject, *first, takes)
    return report_of(subject, results, trials, smallest, profile, chosen.notes)


def report_of(
    subject: Subject,
    results: list[CaseResult],
    trials: list[Trial],
    smallest: CaseResult | None,
    profile: str,
    notes: Iterable[str] = (),
) -> ConformanceReport:
    """Return the report of what was found, with a guess at the cause of the trials, which failed."""
    return ConformanceReport(
        subject.operation.name,
        getattr(subject.function, "__qualname__", repr(subject.function)),
        subject.dtype.name,
        subject.precision.name,
        subject.factor,
        subject.backward is not None,
        tuple(results),
        smallest,
        guess_causes(subject, trials),
        profile,
        tuple(notes),
    )
