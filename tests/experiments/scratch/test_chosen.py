"""The rates that are kept are those that the search tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refattn.experiments.records import read_records
from refattn.experiments.scratch import chosen
from refattn.experiments.scratch.chosen import CHOSEN, best_rates, trainings
from refattn.experiments.scratch.conv_from_scratch import METHODS as CONV_METHODS
from refattn.experiments.scratch.methods import METHODS
from refattn.experiments.scratch.settings import RATES
from refattn.experiments.sparsek.shipped import FOLDER


def row(rate: float, accuracy: float, loss: float, **other: Any) -> dict[str, Any]:
    about = {"task": "recall", "method": "window", "seed": 0, "quick": False}
    return {**about, "rate": rate, "validation_accuracy": accuracy, "validation_loss": loss, **other}


def test_the_best_rate_is_by_accuracy_then_loss_then_the_lower_one() -> None:
    low, middle, high = RATES
    assert best_rates([row(low, 0.2, 1), row(middle, 0.3, 3), row(high, 0.1, 0)]) == {"recall": {"window": middle}}
    assert best_rates([row(low, 0.2, 2), row(middle, 0.2, 3), row(high, 0.2, 1)]) == {"recall": {"window": high}}
    assert best_rates([row(high, 0.2, 2), row(middle, 0.2, 2), row(low, 0.1, 1)]) == {"recall": {"window": middle}}


def test_of_texts_the_best_rate_is_by_loss() -> None:
    low, middle, high = RATES
    rows = [row(low, 0.2, 2, task="text"), row(middle, 0.3, 3, task="text"), row(high, 0.1, 1, task="text")]
    assert best_rates(rows) == {"text": {"window": high}}


def test_a_search_that_is_not_whole_chooses_nothing() -> None:
    low, middle, high = RATES
    some = [row(low, 0.2, 2), row(middle, 0.2, 3)]
    assert best_rates(some) == {"recall": {}}
    assert best_rates([*some, row(high, 0.9, 0, seed=1)]) == {"recall": {}}  # other seeds do not choose
    assert best_rates([*some, row(high, 0.9, 0, quick=True)]) == {"recall": {}}
    assert best_rates([*some, row(high, 0.9, 0, task="text")]) == {"recall": {}, "text": {}}


def test_other_seeds_are_trained_at_the_chosen_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "CHOSEN", {"recall": {"window": 5.0}})
    found = trainings("recall", ("exact", "window"))
    assert [(one["method"], one["seed"], one["rate"]) for one in found] == [
        *(("exact", 0, rate) for rate in RATES),
        *(("window", 0, rate) for rate in RATES),
        ("window", 1, 5.0),
        ("window", 2, 5.0),
    ]


@pytest.mark.parametrize(
    ("tasks", "name"),
    [(("recall",), "from-scratch"), (("text",), "from-scratch-text"), (("lags", "bytes"), "conv-from-scratch")],
)
def test_the_table_is_what_the_shipped_records_say(tasks: tuple[str, ...], name: str) -> None:
    path = Path(FOLDER, f"{name}.jsonl")
    if not path.exists():
        assert not any(CHOSEN[task] for task in tasks)
        return
    assert best_rates(read_records(path).rows()) == {task: CHOSEN[task] for task in tasks}
    for task in tasks:
        assert set(CHOSEN[task]) == set({**METHODS, **CONV_METHODS}[task])
