"""Intervals, gains and tables are those counted by hand; a study that is not whole is in no table."""

from __future__ import annotations

from typing import Any

import numpy as np
import planters
import pytest

from refattn.experiments.scratch import tables
from refattn.experiments.scratch.methods import EARLIER
from refattn.experiments.scratch.readings import at_best_rates, gain, interval, scores
from refattn.experiments.scratch.settings import RATES

MAKERS = [tables.footing, tables.quality, tables.by_distance]


def test_an_interval_is_that_of_the_t_test() -> None:
    ttest_1samp = pytest.importorskip("scipy.stats").ttest_1samp
    values = [0.3, 0.5, 0.45]
    wanted = ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(values), (np.mean(values), wanted.low, wanted.high), rtol=1e-12)
    with pytest.raises(ValueError, match="values: 1 came"):
        interval([1.0])


def test_only_trainings_at_the_best_rate_are_read() -> None:
    rows = planters.study_rows(0.1)
    assert {row["rate"] for row in at_best_rates(rows)} == {RATES[1]}
    found = scores(rows, "accuracy", 2)["window"]
    assert found == {seed: pytest.approx((0.22 + 0.01 * seed) / 2) for seed in (0, 1, 2)}
    assert scores(rows, "accuracy", 2, 64) == {}
    assert scores(rows, "accuracy", 2, 128)["window"] == found


def test_a_gain_is_over_the_best_of_the_others_seed_by_seed() -> None:
    found = gain(planters.study_rows(0.1), "sparsek with a window", EARLIER, "accuracy", 1)
    assert found.best == "routing"
    np.testing.assert_allclose(found.interval, interval([0.1, 0.099, 0.098]), rtol=1e-9)
    loss = gain(planters.study_rows(0.1), "sparsek with a window", EARLIER, "loss", 1)
    np.testing.assert_allclose(loss.interval, found.interval, rtol=1e-9)  # less of it is better
    assert loss.best == "routing"


@pytest.mark.parametrize("task", ["recall", "text"])
def test_tables_have_a_line_for_every_method(task: str) -> None:
    rows = planters.study_rows(0.1, task)
    lines = tables.quality(rows).splitlines()
    assert len(lines) == 2 + 13
    if task == "recall":
        assert lines[3] == "| window | 0.003 | 0.230 (0.205 … 0.255) | 0.115 (0.103 … 0.127) | 0.057 (0.051 … 0.064) |"
        assert "| parameters | 123,456 |" in tables.footing(rows)
        assert "| pairs a query, of the sparse ones | 32 |" in tables.footing(rows)
    assert len(tables.by_distance(rows).splitlines()) == 2 + 3 * 13
    assert "0.099 (0.097 … 0.101) better in" in tables.sentence(rows)
    assert "than routing" in tables.sentence(rows)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_study_that_is_not_whole_is_not_shown(make: Any) -> None:
    rows = [row for row in planters.study_rows(0.1) if (row["method"], row["seed"]) != ("window", 2)]
    assert make(rows).splitlines() == [
        "| not shown, because the study is not whole |",
        "|---|",
        "| window: 1 trainings at its best rate, 0.003, are missing |",
    ]
    assert "not shown" in tables.sentence(rows)
    assert "better" not in tables.sentence(rows)
