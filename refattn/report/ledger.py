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
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from refattn._version import __version__
from refattn.versions import environment

SCHEMA = "refattn-report/1"
"""Name of the JSON layout, raised when a field changes its meaning."""

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
    """

    inputs: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    condition: str = ""
    counterexample: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("at_most, at_least: exactly one bound was wanted")
        if bool(self.condition) != (self.counterexample is not None):
            raise ValueError("condition, counterexample: both or neither were wanted")

    def satisfies(self, number: float) -> bool:
        """Whether a number is inside the bound; NaN never is."""
        return number <= self.at_most if self.at_most is not None else number >= (self.at_least or 0.0)

    @property
    def verdict(self) -> str:
        """One of ``holds``, ``holds if``, ``does not hold``."""
        if not self.satisfies(self.measured):
            return FAILS
        if self.counterexample is None or self.satisfies(self.counterexample):
            return HOLDS
        return HOLDS_IF

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"≤ {self.at_most:.3g}" if self.at_most is not None else f"≥ {self.at_least:.3g}"


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
    """

    id: str
    source: str
    claim: str
    check: str
    measure: Callable[[bool], Measurement] | None
    must_hold: bool = True
    needs: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the ledger."""

    id: str
    source: str
    claim: str
    check: str
    inputs: str
    bound: str
    measured: float | None
    verdict: str
    condition: str
    reason: str
    must_hold: bool
    failed: bool
    seconds: float
    detail: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """All rows, and the environment they were measured in."""

    rows: tuple[Row, ...]
    quick: bool
    environment: dict[str, Any]

    @property
    def failed(self) -> tuple[Row, ...]:
        """Rows that must hold and do not, or whose check broke."""
        return tuple(row for row in self.rows if row.failed)

    def counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return {v: sum(row.verdict == v for row in self.rows) for v in (HOLDS, HOLDS_IF, FAILS, NOT_RUN)}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "quick": self.quick,
            "counts": self.counts(),
            "failed": [row.id for row in self.failed],
            "rows": [_plain(asdict(row)) for row in self.rows],
            "environment": self.environment,
        }


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for: infinity and NaN become strings."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_claims(claims: Iterable[Claim], *, quick: bool) -> Report:
    """Run every claim and collect the report.

    Parameters
    ----------
    claims : iterable of Claim
        In the order of the rows.
    quick : bool
        Smaller sizes, fewer seeds; every row says what it ran on.

    Returns
    -------
    Report
        One row per claim.

    Examples
    --------
    >>> claim = Claim("sum", "ours", "1 + 1 is 2", "adding", lambda quick: Measurement("none", 2.0, at_most=2.0))
    >>> run_claims([claim], quick=True).rows[0].verdict
    'holds'
    """
    return Report(tuple(run_each(claims, quick=quick)), quick, environment())


def run_each(claims: Iterable[Claim], *, quick: bool) -> Iterator[Row]:
    """Yield the row of every claim as it is measured."""
    for claim in claims:
        missing = [name for name in claim.needs if find_spec(name) is None]
        if claim.measure is None:
            yield _not_run(claim, claim.why_not, failed=False)
        elif missing:
            yield _not_run(claim, f"needs {', '.join(missing)}, which is not installed", failed=False)
        else:
            yield _measure(claim, claim.measure, quick)


def _measure(claim: Claim, measure: Callable[[bool], Measurement], quick: bool) -> Row:
    begun = time.perf_counter()
    try:
        found = measure(quick)
    except NotRunError as reason:
        return _not_run(claim, str(reason), failed=False)
    except ModuleNotFoundError as error:
        return _not_run(claim, str(error), failed=(error.name or "").partition(".")[0] == "refattn")
    except Exception as error:  # the check itself broke: shown as a row, and the report fails
        return _not_run(claim, f"the check broke: {type(error).__name__}: {error}", failed=True)
    return Row(
        claim.id,
        claim.source,
        claim.claim,
        claim.check,
        found.inputs,
        found.bound,
        float(found.measured),
        found.verdict,
        found.condition if found.verdict == HOLDS_IF else "",
        "",
        claim.must_hold,
        claim.must_hold and found.verdict == FAILS,
        time.perf_counter() - begun,
        found.detail,
    )


def _not_run(claim: Claim, reason: str, *, failed: bool) -> Row:
    return Row(
        claim.id,
        claim.source,
        claim.claim,
        claim.check,
        "",
        "",
        None,
        NOT_RUN,
        "",
        reason,
        claim.must_hold,
        failed,
        0.0,
        {},
    )


def fingerprint(*arrays: Any) -> str:
    """First 12 digits of the SHA-256 of arrays, by which a reader can tell that inputs are the same.

    Examples
    --------
    >>> import numpy as np
    >>> fingerprint(np.arange(3.0))
    '...'
    """
    digest = hashlib.sha256()
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        digest.update(f"{contiguous.dtype.str}{contiguous.shape}".encode())
        digest.update(contiguous.tobytes())
    return digest.hexdigest()[:12]
