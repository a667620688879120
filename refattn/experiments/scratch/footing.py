"""Whether records of trainings stand on equal footing: told from the records alone (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PARAMETERS = 1.02
"""Largest ratio of two methods' numbers of parameters."""


def uneven(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what is not equal among the methods of one length, as sentences; none if the footing is equal.

    Parameters within 2 %, the same tokens, pairs a query within 1 (of exact attention all, of linear ones none), the
    same state of the linear ones, the same seeds and rates, and no record of a trial.
    """
    found: list[str] = []
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    every = {key: {row[key] for some in by_method.values() for row in some} for key in _KEYS}
    if True in every["quick"]:
        found.append("records of a trial are among them")
    if max(every["parameters"]) > PARAMETERS * min(every["parameters"]):
        found.append(f"parameters: {min(every['parameters'])} to {max(every['parameters'])}")
    if len(every["tokens"]) > 1:
        found.append(f"tokens: {sorted(every['tokens'])}")
    pairs = {row["pairs"] for method, some in by_method.items() if method != "exact" for row in some} - {None}
    if pairs and max(pairs) - min(pairs) > 2:  # each within 1 of the number between
        found.append(f"pairs a query: {min(pairs)} to {max(pairs)}")
    if len(every["state"] - {None}) > 1:
        found.append(f"state: {sorted(every['state'] - {None})}")
    searches = {method: {(row["task"], row["seed"], row["rate"]) for row in some} for method, some in by_method.items()}
    most = set().union(*searches.values())
    found += [f"{method}: {len(most - own)} trainings are missing" for method, own in searches.items() if most - own]
    return found


_KEYS = ("quick", "parameters", "tokens", "state")
