"""What the records of `whole_models` say: quotients within rounds, the k found, where exact is overtaken (ours).

What a model does beside its attention is the same work with every one. So that its noise does not decide between them,
it is taken to be the median of the round's, and a method's whole is that and its own attention.
"""

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
    by_method: dict[tuple[str, int, str], list[_Round]] = {}
    for (model, n, _), one in rounds.items():
        rest = float(np.median([_seconds(row, "seconds") - _seconds(row, "attention") for row in one.values()]))
        for name, row in one.items():
            found = _Round(row, _seconds(row, "attention"), _seconds(one["exact"], "attention"), rest)
            by_method.setdefault((model, n, name), []).append(found)
    return {key: _timing(key[1], some) for key, some in by_method.items()}


class _Round(NamedTuple):
    """A method in a round: its record, the seconds of its attention and of exact attention, and of all the rest."""

    row: Record
    attention: float
    exact: float
    rest: float


def _timing(n: int, some: list[_Round]) -> Timing:
    row = some[0].row
    held, error = row.get("megabytes"), row.get("error")
    return Timing(
        k=None if row["k"] is None else int(row["k"]),
        tokens=n / float(np.median([one.attention + one.rest for one in some])),
        share=float(np.median([one.attention / (one.attention + one.rest) for one in some])),
        quotient=float(np.median([(one.attention + one.rest) / (one.exact + one.rest) for one in some])),
        of_attention=float(np.median([one.attention / one.exact for one in some])),
        megabytes=None if held is None else float(held),
        error=None if error is None else float(error),
        layers=int(row["layers"] or 0),
    )


def _seconds(row: Record, name: str) -> float:
    return float(row[name] or 0)


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
            rest = float(np.median([_seconds(one, "seconds") - _seconds(one, "attention") for one in group]))
            quotient = (_seconds(row, "attention") + rest) / (_seconds(exact, "attention") + rest)
            return Found(int(row["k"] or 0), quotient)
    return Found(None, None)


def where(found: Mapping[tuple[str, str], int | None], model: str, name: str) -> str:
    """Say from which n on a method overtakes.

    >>> where({("decoder", "SparseK"): 1024}, "decoder", "SparseK"), where({("a", "b"): None}, "a", "b")
    ('from n = 1,024', 'not in the range')
    """
    n = found[model, name]
    return "not in the range" if n is None else f"from n = {n:,}"
