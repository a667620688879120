"""The verdict of a whole report, in a sentence: the first and the last thing that a reader sees (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN


def sentence(document: Mapping[str, Any]) -> str:
    """Return the verdict of a report as `to_document` gives it.

    >>> counts = {"holds": 4, "holds if": 1, "does not hold": 2, "not run": 0}
    >>> sentence({"failed": [], "counts": counts})
    'Everything that must hold does. 7 claims: 4 hold, 1 under a condition; 2 that were put to the test do not.'
    >>> sentence({"failed": ["a.b"], "counts": {**counts, "not run": 1}})
    '1 that must hold does not, or its check broke. 8 claims: 4 hold, 1 under a condition; 2 do not; 1 not run.'
    """
    counts, failed = document["counts"], len(document["failed"])
    first = f"{failed} that must hold does not, or its check broke." if failed else "Everything that must hold does."
    total, holding, under, against, without = (
        sum(counts.values()), counts[HOLDS], counts[HOLDS_IF], counts[FAILS], counts[NOT_RUN],
    )  # fmt: skip
    found = f"{total} claim{'' if total == 1 else 's'}: {holding} hold{'s' if holding == 1 else ''}"
    found += f", {under} under a condition" if under else ""
    one = against == 1
    tested = "" if failed else " that was put to the test" if one else " that were put to the test"
    found += f"; {against}{tested} {'does' if one else 'do'} not" if against else ""
    found += f"; {without} not run" if without else ""
    return f"{first} {found}."
