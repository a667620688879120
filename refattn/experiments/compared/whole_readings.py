"""What the records of `whole_models` say: quotients within rounds, the k found, where exact is overtaken (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from refattn.experiments.experiment import Record

FEW = 16
"""Terms that are timed at every length."""


class Timing(NamedTuple):
    """A method at one length: medians over rounds; error and memory where the records have them.

    `share` is that of the attention in the whole, `quotient` the whole's time over that with exact attention in the
    same round, `of_attention` the same for the attention alone.
    """

    k: int | None
    tokens: float
    share: float
    quotient: float
    of_attention: float
    megabytes: float | None
    error: float | None
    layers: int


class Found(NamedTuple):
    """The least k tried with which a model is within a tolerance: None where no k below n is; its time over exact's."""

    k: int | None
    quotient: float | None


def method_name(row: Record) -> str:
    """Return a method's name, conv attention's with how many terms it has.

    >>> method_name({"method": "conv", "k": 16, "n": 512}), method_name({"method": "conv", "k": 256, "n": 512})
    ('conv, k = 16', 'conv, k = n/2')
    """
    if row["method"] != "conv":
        return str(row["method"])
    n, k = int(row["n"] or 0), int(row["k"] or 0)
    return "conv, k = n/2" if k != FEW and k == round(n / 2) else f"conv, k = {k}"


def timings(rows: Iterable[Record]) -> dict[tuple[str, int, str], Timing]:
    """Return what was timed by (model, n, method), in the order of the records."""
    rounds: dict[tuple[str, int, int], dict[str, Record]] = {}
    for row in rows:
        if row["part"] == "time":
            place = str(row["model"]), int(row["n"] or 0), int(row["round"] or 0)
            rounds.setdefault(place, {})[method_name(row)] = row
    by_method: dict[tuple[str, int, str], list[tuple[Record, Record]]] = {}
    for (model, n, _), one in rounds.items():
        for name, row in one.items():
            by_method.setdefault((model, n, name), []).append((row, one["exact"]))
    return {key: _timing(key[1], pairs) for key, pairs in by_method.items()}


def _timing(n: int, pairs: list[tuple[Record, Record]]) -> Timing:
    def of(name: str) -> list[tuple[float, float]]:
        return [(float(row[name] or 0), float(exact[name] or 0)) for row, exact in pairs]

    seconds, attention = of("seconds"), of("attention")
    first = pairs[0][0]
    held, error = first.get("megabytes"), first.get("error")
    return Timing(
        k=None if first["k"] is None else int(first["k"]),
        tokens=n / float(np.median([ours for ours, _ in seconds])),
        share=float(np.median([part / whole for (part, _), (whole, _) in zip(attention, seconds, strict=True)])),
        quotient=float(np.median([ours / exact for ours, exact in seconds])),
        of_attention=float(np.median([ours / exact for ours, exact in attention])),
        megabytes=None if held is None else float(held),
        error=None if error is None else float(error),
        layers=int(first["layers"] or 0),
    )


def overtakes(rows: Iterable[Record]) -> dict[tuple[str, str], int | None]:
    """Return for every model and method the least n from which on the whole is faster than with exact attention.

    None where it is not at the largest n.
    """
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for (model, n, name), one in timings(rows).items():
        if name != "exact":
            curves.setdefault((model, name), {})[n] = one.quotient
    found: dict[tuple[str, str], int | None] = {}
    for key, curve in curves.items():
        found[key] = None
        for n in sorted(curve, reverse=True):
            if curve[n] >= 1:
                break
            found[key] = n
    return found


def searched(rows: Iterable[Record], tolerance: float) -> dict[tuple[str, int, str], Found]:
    """Return what the searches found by (model, n, starts)."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for row in rows:
        if row["part"] == "search":
            groups.setdefault((str(row["model"]), int(row["n"] or 0), str(row["starts"])), []).append(row)
    return {key: _found(group, tolerance) for key, group in groups.items()}


def _found(group: list[Record], tolerance: float) -> Found:
    (exact,) = (row for row in group if row["method"] == "exact")
    for row in group:
        if row["method"] != "conv" or row["k"] == row["n"]:  # all columns are exact attention
            continue
        if float(row["error"] or 0) <= tolerance:
            return Found(int(row["k"] or 0), float(row["seconds"] or 0) / float(exact["seconds"] or 1))
    return Found(None, None)


def where(found: Mapping[tuple[str, str], int | None], model: str, name: str) -> str:
    """Say from which n on a method overtakes.

    >>> where({("decoder", "SparseK"): 1024}, "decoder", "SparseK"), where({("a", "b"): None}, "a", "b")
    ('from n = 1,024', 'not in the range')
    """
    n = found[model, name]
    return "not in the range" if n is None else f"from n = {n:,}"
