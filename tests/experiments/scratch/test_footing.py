"""What makes a comparison unequal is found in its records."""

from __future__ import annotations

from typing import Any

import pytest

from refattn.experiments.scratch.footing import uneven


def rows() -> list[dict[str, Any]]:
    own = {"exact": (256, None), "window": (32, None), "strided": (31, None), "linear": (None, 99), "other": (33, 99)}
    return [
        {
            "method": method, "task": "recall", "seed": seed, "rate": 1e-3, "quick": False, "tokens": 10,
            "parameters": 1000, "pairs": pairs, "state": state,
        }
        for method, (pairs, state) in own.items()
        for seed in (0, 1)
    ]  # fmt: skip


def test_equal_records_have_nothing_to_tell() -> None:
    assert uneven(rows()) == []


@pytest.mark.parametrize(
    ("place", "change", "sentence"),
    [
        (3, {"quick": True}, "records of a trial are among them"),
        (3, {"parameters": 1021}, "parameters: 1000 to 1021"),
        (3, {"tokens": 11}, "tokens: [10, 11]"),
        (3, {"pairs": 34}, "pairs a query: 31 to 34"),
        (7, {"state": 98}, "state: [98, 99]"),
        (3, {"seed": 0}, "window: 1 trainings are missing"),
    ],
)
def test_what_differs_is_said(place: int, change: dict[str, Any], sentence: str) -> None:
    planted = rows()
    planted[place] |= change
    assert uneven(planted) == [sentence]
