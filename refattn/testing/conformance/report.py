"""What a conformance check found, as data and as text (ours)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from refattn.testing.conformance.judge import Judgement
from refattn.testing.conformance.power import Power, summary
from refattn.testing.conformance.precision import precision

SCHEMA = "refattn-conformance/1"
SHOWN = 4
"""Failing cases shown in full as text; the others by name."""

PASS, FAIL, REFUSED, NOT_RUN = "pass", "fail", "refused", "not run"
TAKES_NO = "the function takes no "


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes
    ----------
    case, kind : str
        Its name and heading.
    seed, n : int
        What it was built with.
    shapes : dict of str to list of int
        Of the inputs, with the axes (B, H, N, D).
    verdict : {"pass", "fail", "refused", "not run"}
        Refused: the function raised, and gave no result to judge. The last two are never a pass.
    reason : str
        Why it was refused or not run, or failed other than by its numbers.
    judgements : tuple of Judgement
        One for every result.
    tags : tuple of str
        Features it needs, by which `check_attention` chooses and leaves out.
    sampled : str
        Which rows were judged, where not all were.
    gradients_refused : str
        What the backward raised, where only the output could be judged.
    notes : tuple of str
        What else is worth knowing about a case that passed.
    power : tuple of Power
        For every result, the smallest error of a row that would have been noticed, and what wrong results would not.
    seconds : float
        That it took, with the judging.

    Examples
    --------
    >>> from refattn.testing.conformance import CaseResult
    >>> CaseResult("ordinary", "dense", seed=0, n=8, shapes={}, verdict="not run", reason="no mask").worst is None
    True
    """

    case: str
    kind: str
    seed: int
    n: int
    shapes: dict[str, list[int]]
    verdict: str
    reason: str = ""
    judgements: tuple[Judgement, ...] = ()
    tags: tuple[str, ...] = ()
    sampled: str = ""
    gradients_refused: str = ""
    notes: tuple[str, ...] = ()
    power: tuple[Power, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def worst(self) -> Judgement | None:
        """The judgement with the largest error relative to what was allowed."""
        return max(self.judgements, key=lambda j: j.error / j.allowed if j.allowed else j.error, default=None)


@dataclass(frozen=True)
class Cause:
    """A guess at what went wrong.

    Attributes
    ----------
    name : str
        In a few words.
    explanation : str
        In a sentence.
    explained, examined : int
        In how many failing cases the results are those the mistake would give, of how many that were looked at.

    Examples
    --------
    >>> from refattn.testing import Cause
    >>> Cause("missing scale", "logits are not divided by √d", explained=4, examined=5).name
    'missing scale'
    """

    name: str
    explanation: str
    explained: int
    examined: int


@dataclass(frozen=True)
class ConformanceReport:
    """What `check_attention` found.

    Attributes
    ----------
    operation, function, dtype, precision : str
        What was checked, on arrays of which dtype, and the precision it was judged by.
    factor : float
        Of the rule of judgement.
    backward : bool
        Whether gradients were checked.
    cases : tuple of CaseResult
        In the order of the grid.
    shrunk : CaseResult or None
        The first failing case at the smallest n at which it still fails.
    causes : tuple of Cause
        Guesses, the likeliest first; empty where nothing was recognised.
    profile : str
        Which of the grid's profiles was run.
    notes : tuple of str
        What was moved and merged to fit what the function takes.

    Examples
    --------
    >>> from refattn.testing import ConformanceReport
    >>> report = ConformanceReport("dense", "mine", "float32", "float32", 4.0, False, cases=())
    >>> report.passed, report.counts()  # nothing was run, which is not a pass
    (False, {'pass': 0, 'fail': 0, 'refused': 0, 'not run': 0})
    """

    operation: str
    function: str
    dtype: str
    precision: str
    factor: float
    backward: bool
    cases: tuple[CaseResult, ...]
    shrunk: CaseResult | None = None
    causes: tuple[Cause, ...] = ()
    profile: str = "standard"
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """The cases that failed."""
        return tuple(case for case in self.cases if case.verdict == FAIL)

    @property
    def passed(self) -> bool:
        """Whether no case failed, and at least one passed; with a backward, one whose gradients were judged."""
        passing = [case for case in self.cases if case.verdict == PASS]
        refused = self.backward and any(case.gradients_refused for case in passing)
        judged = not refused or any(j.result.startswith("d") for case in passing for j in case.judgements)
        return not self.failures and bool(passing) and judged

    def counts(self) -> dict[str, int]:
        """Return how many cases passed, failed, were refused and were not run."""
        found = Counter(case.verdict for case in self.cases)
        return {verdict: found[verdict] for verdict in (PASS, FAIL, REFUSED, NOT_RUN)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON; numbers that are not finite become strings."""
        data = asdict(self)
        return dict(_plain({"schema": SCHEMA, "passed": self.passed, "counts": self.counts(), **data}))

    def __str__(self) -> str:
        """Return the report as text: the counts, what was not run, the failures, the shrunk case, the guess."""
        lines = [self._counted()]
        left, lacking = self._not_run()
        lines += [f"not run: {case.case}: {case.reason}" for case in left] + lacking
        lines += _by_reason("refused", [(c.reason, c.case) for c in self.cases if c.verdict == REFUSED])
        lines += _by_reason("gradients refused", [(c.gradients_refused, c.case) for c in self.cases])
        lines += _by_reason("note", [(note, c.case) for c in self.cases for note in c.notes])
        lines += self.notes
        sampled = [c.case for c in self.cases if c.sampled]
        lines += [f"judged by some of their rows: {', '.join(sampled)}"] if sampled else []
        lines += self._power()
        lines += [line for case in self.failures[:SHOWN] for line in describe(case)]
        if len(self.failures) > SHOWN:
            lines.append(f"and {len(self.failures) - SHOWN} more: {', '.join(c.case for c in self.failures[SHOWN:])}")
        if self.shrunk is not None:
            lines += [f"smallest failing n: {self.shrunk.n}", *(f"  {line}" for line in describe(self.shrunk))]
        if self.failures:
            lines += [guess(cause) for cause in self.causes] or ["cause: not recognised"]
        return "\n".join(lines)

    def short(self) -> str:
        """Return the report in a few lines: the counts, the first failing case, the smallest, the likeliest cause."""
        lines = [self._counted()]
        failures = self.failures
        left, lacking = self._not_run()
        lines += _by_reason("not run", [(c.reason, c.case) for c in left]) + lacking
        lines += _by_reason("refused", [(c.reason, c.case) for c in self.cases if c.verdict == REFUSED])
        lines += _by_reason("gradients refused", [(c.gradients_refused, c.case) for c in self.cases])
        if not failures:
            return "\n".join(lines + self._power())
        lines.append(f"FAILED {in_a_line(failures[0])}")
        if len(failures) > 1:
            lines.append(f"and {len(failures) - 1} more: {_listed([case.case for case in failures[1:]])}")
        if self.shrunk is not None:
            lines.append(f"smallest failing n: {self.shrunk.n}: {in_a_line(self.shrunk)}")
        return "\n".join([*lines, guess(self.causes[0]) if self.causes else "cause: not recognised"])

    def _not_run(self) -> tuple[list[CaseResult], list[str]]:
        """The cases that were not run, but for those of options that the function does not take: these in a line."""
        not_run = [case for case in self.cases if case.verdict == NOT_RUN]
        lacking = [case for case in not_run if case.kind == "option" and case.reason.startswith(TAKES_NO)]
        if not lacking:
            return not_run, []
        names = ", ".join(dict.fromkeys(case.reason.removeprefix(TAKES_NO).partition(":")[0] for case in lacking))
        line = f"not run: {len(lacking)} of options that the function does not take: {names}"
        return [case for case in not_run if case not in lacking], [line]

    def _counted(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        gradients = "with gradients" if self.backward else "forward only"
        return f"{self.function} as {self.operation!r} in {self.dtype}, {gradients}: {counts}."

    def _power(self) -> list[str]:
        """What the cases would have noticed."""
        found = [(case.case, power) for case in self.cases for power in case.power]
        return summary(found, precision(self.precision))


def _by_reason(what: str, said: list[tuple[str, str]]) -> list[str]:
    """A line for every reason, with the cases that have it."""
    cases: dict[str, list[str]] = {}
    for reason, case in said:
        if reason:
            cases.setdefault(reason, []).append(case)
    return [f"{what}: {reason} ({_listed(names)})" for reason, names in cases.items()]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= SHOWN else f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"


def guess(cause: Cause) -> str:
    """Return a cause in a line."""
    return f"cause: {cause.name}: {cause.explanation} ({cause.explained} of {cause.examined} failing cases)"


def describe(case: CaseResult) -> list[str]:
    """Return what failed in a case, a line for its name and one for every result that failed."""
    shapes = ", ".join(f"{x} {tuple(shape)}" for x, shape in case.shapes.items())
    lines = [f"FAILED {case.case} (seed {case.seed}; {shapes})"]
    if case.reason:
        lines.append(f"  {case.reason}")
    for j in case.judgements:
        if not j.passed:
            lines.append(f"  {j.result} row {j.row}: error {j.error:.3g}, allowed {j.allowed:.3g}, plain {j.plain:.3g}")
            lines.append(f"    expected {_numbers(j.expected)}")
            lines.append(f"    got      {_numbers(j.got)}")
    return lines


def in_a_line(case: CaseResult) -> str:
    """Return what failed in a case: its name, and why, or its worst row."""
    said = f"{case.case} (seed {case.seed}): "
    worst = case.worst
    if worst is None or worst.passed:
        return said + case.reason
    return said + f"{worst.result} row {worst.row}: error {worst.error:.3g}, allowed {worst.allowed:.3g}"


def _numbers(values: list[float]) -> str:
    shown = " ".join(f"{x:.6g}" for x in values[:4])
    return f"[{shown}{' …' if len(values) > 4 else ''}]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
