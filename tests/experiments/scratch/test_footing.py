"""What makes a comparison unequal is found in its records."""

from __future__ import annotations

from typing import Any

import pytest

from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.settings import RATES

OWN = {"exact": (256, None), "window": (32, None), "strided": (31, None), "linear": (None, 99), "other": (33, 99)}
PLACE = {method: 5 * number for number, method in enumerate(OWN)}


def rows() -> list[dict[str, Any]]:
    """Five trainings a method; the middle rate is the best."""
    trainings = [(0, RATES[0], 0.5), (0, RATES[1], 0.9), (0, RATES[2], 0.2), (1, RATES[1], 0.1), (2, RATES[1], 0.1)]
    return [
        {
            "method": method, "task": "recall", "seed": seed, "rate": rate, "quick": False, "tokens": 10,
            "parameters": 1000, "pairs": pairs, "state": state, "validation_accuracy": right, "validation_loss": 1.0,
        }
        for method, (pairs, state) in OWN.items()
        for seed, rate, right in trainings
    ]  # fmt: skip


def test_equal_records_have_nothing_to_tell() -> None:
    assert uneven(rows(), tuple(OWN)) == []
    assert uneven([*rows(), {"method": "window", "times": 1, "distance": 8}], tuple(OWN)) == []


@pytest.mark.parametrize(
    ("place", "change", "sentence"),
    [
        (3, {"quick": True}, "records of a trial are among them"),
        (3, {"parameters": 1021}, "parameters: 1000 to 1021"),
        (3, {"tokens": 11}, "tokens: [10, 11]"),
        (3, {"task": "text"}, "tasks: recall, text"),
        (2, {"task": "text"}, "tasks: recall, text"),
        (PLACE["window"], {"pairs": 34}, "pairs a query: 31 to 34"),
        (PLACE["linear"], {"state": 98}, "state: [98, 99]"),
        (PLACE["window"], {"rate": 0.5}, "window: 1 trainings of the search are missing"),
        (PLACE["window"] + 3, {"seed": 2}, "window: 1 trainings at its best rate, 0.003, are missing"),
        (PLACE["window"] + 1, {"method": "new"}, None),
    ],
    ids=["quick", "parameters", "tokens", "task", "task of the search", "pairs", "state", "search", "seed", "method"],
)
def test_what_differs_is_said(place: int, change: dict[str, Any], sentence: str | None) -> None:
    planted = rows()
    planted[place] |= change
    found = uneven(planted, tuple(OWN))
    if sentence is None:
        assert found[0] == "new: is none of the methods"
        assert "window: 1 trainings of the search are missing" in found
    else:
        assert found == [sentence]


def test_seeds_at_another_rate_than_the_best_are_found() -> None:
    planted = rows()
    planted[PLACE["window"] + 3] |= {"rate": RATES[0]}
    assert uneven(planted, tuple(OWN)) == [
        "window: 1 trainings at its best rate, 0.003, are missing",
        "window: 1 trainings besides",
    ]
    more = [*rows(), {**rows()[PLACE["exact"]], "rate": 1.0}]
    assert uneven(more, tuple(OWN)) == ["exact: 1 trainings besides"]


def test_a_method_without_a_training_is_named() -> None:
    assert uneven(rows(), (*OWN, "sparsek")) == ["sparsek: no training"]
    assert uneven([], ("exact",)) == ["exact: no training"]
