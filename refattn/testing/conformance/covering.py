"""A covering design: few combinations of options in which every pair of values occurs (ours).

Combinations are made one at a time. Each starts from the first pair not covered yet and takes, option by option, the
value that covers the most pairs with what it has (Cohen, Dalal, Fredman, Patton 1997, without their random order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

Value = tuple[str, Any]
"""An option and its value."""


def covering(
    options: Mapping[str, Sequence[Any]], forbidden: Sequence[tuple[Value, Value]] = ()
) -> list[dict[str, Any]]:
    """Return combinations of values in which every pair that is not forbidden occurs.

    Every option needs a value that may stand with all others, as its first.

    >>> len(covering({"a": [0, 1], "b": [0, 1], "c": [0, 1]}))
    4
    """
    barred = {frozenset(pair) for pair in forbidden}
    left = {frozenset(pair): None for pair in pairs(options) if frozenset(pair) not in barred}  # in order
    found = []
    while left:
        row: dict[str, Any] = dict(sorted(next(iter(left)), key=lambda value: list(options).index(value[0])))
        for name, values in options.items():
            if name in row:
                continue
            fitting = [x for x in values if not any(frozenset([(name, x), one]) in barred for one in row.items())]
            row[name] = max(fitting, key=lambda x: sum(frozenset([(name, x), one]) in left for one in row.items()))
        for pair in combinations(row.items(), 2):
            left.pop(frozenset(pair), None)
        found.append({name: row[name] for name in options})
    return found


def pairs(options: Mapping[str, Sequence[Any]]) -> list[tuple[Value, Value]]:
    """Return all pairs of values of two options."""
    names = combinations(options, 2)
    return [((one, x), (other, y)) for one, other in names for x, y in product(options[one], options[other])]
