"""Whether records of trainings stand on equal footing: told from the records alone (ours)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from refattn.experiments.scratch.chosen import best_rates
from refattn.experiments.scratch.methods import METHODS
from refattn.experiments.scratch.settings import RATES, SEEDS

PARAMETERS = 1.02
"""Largest ratio of two methods' numbers of parameters."""


def uneven(rows: Iterable[Mapping[str, Any]], methods: Collection[str] | None = None) -> list[str]:
    """Return what is not equal among the methods of one task, as sentences; none if the footing is equal.

    Parameters within 2 %, the same tokens, pairs a query within 1 (of exact attention all, of linear ones none), the
    same state of the linear ones, no record of a trial; of every method the whole search, and the other seeds at the
    rate that the search tells, nothing missing and nothing besides. `methods` are those that there have to be, by
    default the study's.
    """
    rows = [row for row in rows if "parameters" in row]
    if methods is None:
        methods = METHODS[rows[0]["task"]] if rows else METHODS["recall"]
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    found = [f"{method}: no training" for method in methods if method not in by_method]
    found += [f"{method}: is none of the methods" for method in by_method if method not in methods]
    if not rows:
        return found
    every = {key: {row[key] for row in rows} for key in ("task", "quick", "parameters", "tokens", "state")}
    if len(every["task"]) > 1:
        found.append(f"tasks: {', '.join(sorted(every['task']))}")
    if True in every["quick"]:
        found.append("records of a trial are among them")
    if max(every["parameters"]) > PARAMETERS * min(every["parameters"]):
        found.append(f"parameters: {min(every['parameters'])} to {max(every['parameters'])}")
    if len(every["tokens"]) > 1:
        found.append(f"tokens: {sorted(every['tokens'])}")
    pairs = {row["pairs"] for row in rows if row["method"] != "exact"} - {None}
    if pairs and max(pairs) - min(pairs) > 2:  # each within 1 of the number between
        found.append(f"pairs a query: {min(pairs)} to {max(pairs)}")
    if len(every["state"] - {None}) > 1:
        found.append(f"state: {sorted(every['state'] - {None})}")
    return found + [sentence for method, some in by_method.items() for sentence in _searched(method, some)]


def _searched(method: str, rows: list[Mapping[str, Any]]) -> list[str]:
    """Say which trainings of a method are missing or too many: the search, and the other seeds at the best rate."""
    own = {(row["seed"], row["rate"]) for row in rows}
    missing = {(SEEDS[0], rate) for rate in RATES} - own
    if missing:
        return [f"{method}: {len(missing)} trainings of the search are missing"]
    task = rows[0]["task"]
    best = best_rates({**row, "quick": False, "task": task} for row in rows)[task][method]
    wanted = {(SEEDS[0], rate) for rate in RATES} | {(seed, best) for seed in SEEDS[1:]}
    found = [f"{method}: {len(wanted - own)} trainings at its best rate, {best:g}, are missing"] * bool(wanted - own)
    return found + [f"{method}: {len(own - wanted)} trainings besides"] * bool(own - wanted)
