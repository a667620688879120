"""The ledger: claims, what running one gives, and the verdicts (ours).

A `Claim` says what is claimed, by whom, and how it is checked; its function returns a `Measurement`; the verdict
follows from the numbers alone:

- ``holds``: the measured number satisfies the bound;
- ``holds if …``: it does under a stated condition, *and* a case outside the condition was run in which it does not;
- ``does not hold``: it does not;
- ``not run``: nothing was measured, and why. Never a pass.

A claim that must hold and does not, or whose check broke, makes the report fail.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from refattn._needs import install, not_there
from refattn.versions import environment

HOLDS, HOLDS_IF, FAILS, NOT_RUN = "holds", "holds if", "does not hold", "not run"


class NotRunError(Exception):
    """A check's way to say that it did not run, and why."""


@dataclass(frozen=True)
class Measurement:
    """What the check of a claim found.

    Parameters
    ----------
    inputs : str
        Which inputs, with sizes, seeds and hash.
    measured : float
        The number that is judged.
    at_most, at_least : float, optional
        The bound on it, above or below; exactly one.
    condition : str, optional
        What the claim needs, where it needs something.
    counterexample : float, optional
        The same number without the condition: the claim then holds *if*, provided this one breaks the bound.
    detail : dict, optional
        Further numbers, for the reader; plain data.
    recorded : dict, optional
        Where the number is read off shipped records: ``experiment``, ``begun`` and ``version`` of them.

    Raises
    ------
    ValueError
        Not exactly one bound; or a condition without a counterexample, or the reverse.

    Notes
    -----
    Memory O(1). Source: ours.

    Examples
    --------
    >>> from refattn.report import Measurement
    >>> Measurement("seed 0", 0.5, at_most=1.0).verdict
    'holds'
    >>> Measurement("seed 0", 0.5, at_most=1.0, condition="small x", counterexample=3.0).verdict
    'holds if'
    >>> Measurement("seed 0", float("nan"), at_most=1.0).verdict
    'does not hold'
    """

    inputs: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    condition: str = ""
    counterexample: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("at_most, at_least: exactly one bound was wanted")
        if bool(self.condition) != (self.counterexample is not None):
            raise ValueError("condition, counterexample: both or neither were wanted")

    def satisfies(self, number: float) -> bool:
        """Whether a number is inside the bound; NaN never is.

        Parameters
        ----------
        number : float
            The number.
        """
        return number <= self.at_most if self.at_most is not None else number >= (self.at_least or 0.0)

    @property
    def verdict(self) -> str:
        """One of ``holds``, ``holds if``, ``does not hold``."""
        if not self.satisfies(self.measured):
            return FAILS
        if self.counterexample is None or self.satisfies(self.counterexample):
            return HOLDS
        return HOLDS_IF


Check = Callable[[bool], Measurement]
"""What a claim's function is: of whether to be quick."""


@dataclass(frozen=True)
class Claim:
    """A statement and its check.

    Parameters
    ----------
    id : str
        Short and stable: what is claimed, by topic.
    source : str
        Paper and theorem, algorithm or section; or "ours".
    claim : str
        One sentence.
    check : str
        How it is checked.
    measure : callable or None
        ``measure(quick) -> Measurement``; None for a claim that nothing here can check yet.
    must_hold : bool, optional
        Whether the report fails if it does not hold. False for statements of the papers that are put to the test, and
        for times, which depend on what else the machine does.
    needs : tuple of str, optional
        Modules without which it cannot run.
    why_not : str, optional
        For a claim without a check: why.
    timed : bool, optional
        Whether the measured number is a time or depends on times, as memory does that is held by several threads: then
        it, its verdict and its detail may differ between two runs. Everything else is the same, bit for bit, on the
        same machine.
    planted : str, optional
        The wrong results on which the check was seen to fail, divided by semicolons: a check that cannot fail shows
        nothing. Where a claim does not hold to begin with, what makes it hold.
    covers : tuple of str, optional
        Items of the papers, by their number (``"theorem 4.4"``) or else their name.

    Notes
    -----
    Memory O(1). Source: ours.

    Examples
    --------
    >>> from refattn.report import Claim, Measurement
    >>> claim = Claim("sum", "ours", "1 + 1 is 2", "adding", lambda quick: Measurement("none", 2.0, at_most=2.0))
    >>> claim.measure(True).verdict
    'holds'
    """

    id: str
    source: str
    claim: str
    check: str
    measure: Check | None
    must_hold: bool = True
    needs: tuple[str, ...] = ()
    why_not: str = ""
    timed: bool = False
    planted: str = ""
    covers: tuple[str, ...] = ()


def claim(
    id: str,
    source: str,
    sentence: str,
    *,
    check: str,
    planted: str,
    covers: tuple[str, ...] = (),
    must_hold: bool = True,
    needs: tuple[str, ...] = (),
    timed: bool = False,
) -> Callable[[Check], Claim]:
    """Make the function under this decorator a claim: everything about a row of the ledger stands in one place."""
    return lambda measure: Claim(
        id, source, sentence, check, measure, must_hold, needs, timed=timed, planted=planted, covers=covers
    )


@dataclass(frozen=True)
class Row:
    """One line of the ledger: a claim, and what was found.

    Attributes
    ----------
    claim : Claim
        What is claimed.
    found : Measurement or None
        What was found; None where nothing was measured.
    reason : str
        Why nothing was.
    broke : bool
        Whether the check itself failed.
    seconds : float
        How long it took.

    Examples
    --------
    >>> from refattn.report import Claim, Row
    >>> claim = Claim("unchecked", "ours", "true", "not yet", measure=None, why_not="nothing can check it")
    >>> Row(claim, None, claim.why_not).verdict
    'not run'
    """

    claim: Claim
    found: Measurement | None
    reason: str = ""
    broke: bool = False
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """The claim's id."""
        return self.claim.id

    @property
    def verdict(self) -> str:
        """The verdict; ``not run`` where nothing was measured."""
        return NOT_RUN if self.found is None else self.found.verdict

    @property
    def inputs(self) -> str:
        """On which inputs; empty where nothing was measured."""
        return "" if self.found is None else self.found.inputs

    @property
    def measured(self) -> float | None:
        """The number that is judged, if there is one."""
        return None if self.found is None else float(self.found.measured)

    @property
    def detail(self) -> dict[str, Any]:
        """Further numbers."""
        return {} if self.found is None else self.found.detail

    @property
    def recorded(self) -> dict[str, str] | None:
        """Of which shipped records the number is, if it is of some."""
        return None if self.found is None else self.found.recorded

    @property
    def condition(self) -> str:
        """What the claim needs, where a case without it breaks the bound."""
        return self.found.condition if self.found is not None and self.found.verdict == HOLDS_IF else ""

    @property
    def bound(self) -> str:
        """The bound as text; empty where nothing was measured."""
        if self.found is None:
            return ""
        return f"≤ {self.found.at_most:.3g}" if self.found.at_most is not None else f"≥ {self.found.at_least:.3g}"

    @property
    def failed(self) -> bool:
        """Whether the report fails by this row: it must hold and does not, or its check broke."""
        return self.broke or (self.claim.must_hold and self.verdict == FAILS)


@dataclass(frozen=True)
class Report:
    """All rows, when and in what environment they were measured.

    Attributes
    ----------
    rows : tuple of Row
        One per claim.
    quick : bool
        Whether sizes were the smaller ones.
    environment : dict
        Versions, threads, machine.
    begun : datetime
        When.
    seconds : float
        How long it took.
    command : str
        The command line that asked for it, without folders; empty where none did.

    Examples
    --------
    >>> from refattn.report import run_claims
    >>> run_claims([], quick=True).counts()
    {'holds': 0, 'holds if': 0, 'does not hold': 0, 'not run': 0}
    """

    rows: tuple[Row, ...]
    quick: bool
    environment: dict[str, Any]
    begun: datetime
    seconds: float
    command: str = ""

    @property
    def failed(self) -> tuple[Row, ...]:
        """Rows that must hold and do not, or whose check broke."""
        return tuple(row for row in self.rows if row.failed)

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return {v: sum(row.verdict == v for row in self.rows) for v in (HOLDS, HOLDS_IF, FAILS, NOT_RUN)}


def run_claims(
    claims: Iterable[Claim],
    *,
    quick: bool,
    seen: Callable[[Row], None] = lambda row: None,
    run: Callable[..., Iterator[Row]] | None = None,
    command: str = "",
) -> Report:
    """Run every claim and collect the report.

    Parameters
    ----------
    claims : iterable of Claim
        In the order of the rows.
    quick : bool
        Smaller sizes, fewer seeds; every row says what it ran on.
    seen : callable, optional
        Called with every row as it is measured.
    run : callable, optional
        ``run(claims, quick=quick)`` yields the row of every claim, in any order; by default one after the other.
    command : str, optional
        What asked for it, to be noted.

    Returns
    -------
    Report
        One row per claim.

    Raises
    ------
    Exception
        What `seen` raises. A check that breaks is a row that fails.

    Notes
    -----
    Time O(claims) and what they take. Source: ours.

    Examples
    --------
    >>> claim = Claim("sum", "ours", "1 + 1 is 2", "adding", lambda quick: Measurement("none", 2.0, at_most=2.0))
    >>> run_claims([claim], quick=True).rows[0].verdict
    'holds'
    """
    begun, claims = datetime.now(UTC), list(claims)
    rows = {}
    for row in (run or run_each)(claims, quick=quick):
        rows[id(row.claim)] = row
        seen(row)
    seconds = (datetime.now(UTC) - begun).total_seconds()
    return Report(tuple(rows[id(claim)] for claim in claims), quick, environment(), begun, seconds, command)


def run_each(claims: Iterable[Claim], *, quick: bool) -> Iterator[Row]:
    """Yield the row of every claim as it is measured."""
    for claim in claims:
        absent = not_there(claim.needs)
        if claim.measure is None:
            yield Row(claim, None, claim.why_not)
        elif absent:
            yield Row(claim, None, f"needs {', '.join(absent)}: {install(absent)}")
        else:
            yield _measure(claim, claim.measure, quick)


def _measure(claim: Claim, measure: Check, quick: bool) -> Row:
    begun = time.perf_counter()
    try:
        found = measure(quick)
        found = replace(found, detail=deepcopy(found.detail))  # a check may fill the same one again
    except NotRunError as reason:
        return Row(claim, None, str(reason))
    except ModuleNotFoundError as error:
        return Row(claim, None, str(error), broke=(error.name or "").partition(".")[0] == "refattn")
    except Exception as error:  # the check itself broke: shown as a row, and the report fails
        return Row(claim, None, f"the check broke: {type(error).__name__}: {error}", broke=True)
    return Row(claim, found, seconds=time.perf_counter() - begun)


def fingerprint(*arrays: Any) -> str:
    """First 12 digits of the SHA-256 of arrays, by which a reader can tell that inputs are the same.

    Examples
    --------
    >>> import numpy as np
    >>> fingerprint(np.arange(3.0)), fingerprint(np.arange(3))  # the type counts
    ('74cc823074f3', '129d7c8430ee')
    """
    digest = hashlib.sha256()
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        digest.update(f"{contiguous.dtype.str}{contiguous.shape}".encode())
        digest.update(contiguous.tobytes())
    return digest.hexdigest()[:12]
