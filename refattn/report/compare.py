"""What is different between two reports: a study's second run beside its first (ours).

Verdicts are compared as they are. A number counts as changed where it moved by more than noise: one that is not a time
by more than `SHARE` of itself and `OF_BOUND` of its bound, since rounding errors far below their bounds differ between
processors; a time, or what follows from times, by more than the factor `TIMES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SHARE, OF_BOUND, TIMES = 0.05, 0.01, 1.5


class Change(NamedTuple):
    """A row of which something changed: what, before and after; ``new`` and ``gone`` rows have one of the two."""

    id: str
    what: str
    before: str
    after: str


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return what changed from one report to another, in the order of the rows; those that are gone come last.

    Raises ``ValueError`` where one is of the quick sizes and the other is not: their numbers are not of the same thing.

    >>> row = {"id": "a.b", "verdict": "holds", "measured": 1e-16, "at_most": 1e-9, "at_least": None, "timed": False}
    >>> old = {"quick": True, "rows": [row, {**row, "id": "a.c"}, {**row, "id": "a.d"}]}
    >>> rows = [{**row, "measured": 3e-16}, {**row, "id": "a.c", "measured": 2e-10}]
    >>> [change[:2] for change in changes(old, {"quick": True, "rows": rows})]
    [('a.c', 'measured'), ('a.d', 'gone')]
    """
    if old["quick"] != new["quick"]:
        came, wanted = ("quick" if one["quick"] else "full" for one in (old, new))
        raise ValueError(f"a {came} report came, a {wanted} one was wanted")
    before = {row["id"]: row for row in old["rows"]}
    found = []
    for row in new["rows"]:
        known = before.pop(row["id"], None)
        if known is None:
            found.append(Change(row["id"], "new", "", row["verdict"]))
        elif known["verdict"] != row["verdict"]:
            found.append(Change(row["id"], "verdict", _told(known), _told(row)))
        elif _moved(known, row):
            found.append(Change(row["id"], "measured", _told(known), _told(row)))
    return found + [Change(name, "gone", row["verdict"], "") for name, row in before.items()]


def _moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the measured number changed by more than noise."""
    a, b = old["measured"], new["measured"]
    if not all(isinstance(one, (int, float)) for one in (a, b)):
        return bool(a != b)  # infinite, NaN, or none
    larger = max(abs(a), abs(b))
    if new["timed"]:
        return bool(larger > TIMES * min(abs(a), abs(b)) or a * b < 0)
    bound = new["at_most"] if new["at_most"] is not None else new["at_least"]
    most = abs(bound) if isinstance(bound, (int, float)) else 0.0
    return bool(abs(a - b) > max(SHARE * larger, OF_BOUND * most))


def _told(row: Mapping[str, Any]) -> str:
    measured = row["measured"]
    return str(row["verdict"]) + (f", {measured:.3g}" if isinstance(measured, (int, float)) else "")
