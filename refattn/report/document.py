"""The report as plain data, and its published layout (ours).

`to_document` is what ``refattn report --json`` writes; ``schema/report.schema.json`` (JSON Schema 2020-12) describes it
field by field, and is what ``refattn report --schema`` prints. `comparable` takes out what may differ between two runs
on the same machine: times, and what follows from them.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

from refattn._version import __version__
from refattn.report.citation import bibtex
from refattn.report.coverage import PAPERS, coverage, paper_of
from refattn.report.ledger import Report, Row

SCHEMA = "refattn-report/2"
"""Name of the layout, raised when a field changes its meaning."""

_TIMED = ("measured", "verdict", "condition", "counterexample", "failed", "detail")
"""Fields of a timed row that follow from times."""


def to_document(report: Report) -> dict[str, Any]:
    """Return the report as plain data, ready for ``json.dumps(…, allow_nan=False)``.

    Parameters
    ----------
    report : Report
        As `run_claims` gives it.

    Returns
    -------
    dict
        Of the layout that `schema` describes. Infinity and NaN, for which JSON has no word, are strings.

    Raises
    ------
    AttributeError
        It is not a report.

    Notes
    -----
    Time and memory O(rows). Source: ours.

    Examples
    --------
    >>> from refattn.report import Claim, Measurement, run_claims
    >>> claim = Claim("a.b", "ours", "1 < 2.", "adding", lambda quick: Measurement("none", 1.0, at_most=2.0))
    >>> document = to_document(run_claims([claim], quick=True))
    >>> document["counts"]["holds"], document["rows"][0]["bound"]
    (1, '≤ 2')
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "quick": report.quick,
        "run": {
            "begun": report.begun.isoformat(timespec="seconds"),
            "seconds": report.seconds,
            "command": report.command,
        },
        "counts": report.counts(),
        "failed": [row.id for row in report.failed],
        "rows": [_row(row) for row in report.rows],
        "papers": PAPERS,
        "coverage": [item.to_dict() for item in coverage()],
        "environment": report.environment,
        "citation": {"bibtex": bibtex(report.begun, report.environment["sources"])},
    }


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Return the report without what may differ between two runs on the same machine.

    Parameters
    ----------
    document : dict
        A report, as `to_document` gives it or as read from its JSON.

    Returns
    -------
    dict
        Without ``run`` and ``citation`` (they hold the clock), the rows' ``seconds``, and, of the rows that are
        ``timed``, what follows from times: ``measured``, ``verdict``, ``condition``, ``counterexample``, ``failed``
        and ``detail``. ``counts`` and ``failed`` are those of the other rows. Two runs of the same command on the same
        machine with the same packages give the same comparable report, to the last bit.

    Raises
    ------
    KeyError
        It is not a report.

    Notes
    -----
    Time and memory O(rows). Source: ours.

    Examples
    --------
    >>> row = {"id": "a", "verdict": "holds", "failed": False, "timed": True, "measured": 1.0, "seconds": 0.1}
    >>> comparable({"rows": [row], "counts": {"holds": 1}, "failed": []})
    {'rows': [{'id': 'a', 'timed': True}], 'counts': {'holds': 0}, 'failed': []}
    """
    rows = []
    for row in document["rows"]:
        left_out = ("seconds", *(_TIMED if row["timed"] else ()))
        rows.append({name: value for name, value in row.items() if name not in left_out})
    steady = [row for row in document["rows"] if not row["timed"]]
    changed: dict[str, Any] = {
        "rows": rows,
        "counts": {verdict: sum(row["verdict"] == verdict for row in steady) for verdict in document["counts"]},
        "failed": [row["id"] for row in steady if row["failed"]],
    }
    return {name: changed.get(name, value) for name, value in document.items() if name not in ("run", "citation")}


def schema() -> dict[str, Any]:
    """Return the published JSON Schema of the report.

    Returns
    -------
    dict
        JSON Schema, 2020-12.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    >>> schema()["properties"]["schema"]["const"] == SCHEMA
    True
    """
    text = files("refattn.report").joinpath("schema", "report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _row(row: Row) -> dict[str, Any]:
    found = row.found
    plain: dict[str, Any] = _plain(
        {
            "id": row.id,
            "source": row.claim.source,
            "paper": paper_of(row.claim.source),
            "claim": row.claim.claim,
            "check": row.claim.check,
            "inputs": row.inputs,
            "bound": row.bound,
            "at_most": None if found is None else found.at_most,
            "at_least": None if found is None else found.at_least,
            "measured": row.measured,
            "counterexample": None if found is None else found.counterexample,
            "verdict": row.verdict,
            "condition": row.condition,
            "reason": row.reason,
            "must_hold": row.claim.must_hold,
            "timed": row.claim.timed,
            "failed": row.failed,
            "planted": row.claim.planted,
            "recorded": row.recorded,
            "seconds": row.seconds,
            "detail": row.detail,
        }
    )
    return plain


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for: infinity and NaN become strings."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
