"""Every measured number that a page has about models trained with conv attention is that of the shipped records."""

from pathlib import Path

import pytest

from refattn.experiments.records import read_records
from refattn.experiments.scratch.readings import at_best_rates, interval, scores
from refattn.experiments.sparsek.shipped import FOLDER
from refattn.experiments.tables import median

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "what-holds.md"
SOLVED = 0.99
"""Accuracy of a training that has solved a task; all others are below 0.8."""


@pytest.fixture(scope="module")
def rows():
    records = read_records(FOLDER / "conv-from-scratch.jsonl")
    assert records.complete
    return records.rows()


@pytest.fixture(scope="module")
def said():
    return " ".join(PAGE.read_text(encoding="utf-8").split())


def test_what_is_said_of_text(rows, said):
    some = [row for row in rows if row["task"] == "bytes"]
    losses, others = (scores(some, field, 1) for field in ("loss", "other_loss"))
    ahead = interval([losses["exact"][seed] - losses["spread"][seed] for seed in (0, 1, 2)])
    assert f"{ahead.value:.2f} nats a byte below that of exact attention" in said
    assert f"({ahead.high:.2f} below to {-ahead.low:.2f} above)" in said
    last = max(row["step"] for row in some if "step" in row)
    ends = {
        method: median([r for r in at_best_rates(some) if (r["method"], r.get("step")) == (method, last)], "residual")
        for method in losses
    }
    assert f"end {ends['spread']:.2f} from k-conv, relatively, those of exact attention {ends['exact']:.2f};" in said
    replaced = interval([others["spread"][seed] - losses["spread"][seed] for seed in (0, 1, 2)]).value
    assert f"changes the loss by {replaced:.3f} nats" in said


def test_what_is_said_of_the_task(rows, said):
    found = scores([row for row in rows if row["task"] == "lags"], "accuracy", 1)
    solved = {method: sum(value > SOLVED for value in seeds.values()) for method, seeds in found.items()}
    assert all(value > SOLVED or value < 0.8 for seeds in found.values() for value in seeds.values())
    assert f"{solved.pop('spread')} of 3 seeds solve it with spread starts and {solved.pop('exact')} of 3 with" in said
    assert "paper's gradient, 0 of 3 do" in said
    assert set(solved.values()) == {0}
