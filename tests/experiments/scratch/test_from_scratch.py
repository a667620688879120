"""Trainings stand on equal footing, the trial runs, and what is measured by distance is counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from refattn.experiments.records import read_records
from refattn.experiments.runner import run_experiment
from refattn.experiments.scratch.distances import by_distance, distances
from refattn.experiments.scratch.from_scratch import EXPERIMENT, TIMES, configuration, items, tokens_of
from refattn.experiments.scratch.methods import METHODS, PAIRS, N
from refattn.models.output import Evaluation
from refattn.training import Batch

config_module = pytest.importorskip("refattn.training.config", exc_type=ImportError)


def footing(item: Any, folder: Any) -> tuple[int, int, int | None, int | None]:
    """Parameters, tokens, pairs a query, state of a training: of what would be trained, batch by batch."""
    from refattn.training.assembly import assemble

    setting = configuration(item)
    made = assemble(config_module.as_config(setting), folder).trainer
    sampled = range(0, setting["steps"], 100)  # lessons and schedule change at hundreds
    tokens = 100 * sum(made.batches(step).tokens.size for step in sampled)
    state = getattr(made.attention, "state_size", lambda width: None)(32)
    parameters = sum(parameter.size for parameter in made.model.parameters.values())
    return parameters, tokens, made.attention.pairs_per_query(item["n"]), state


def test_all_methods_stand_on_equal_footing(tmp_path: Any) -> None:
    study = items(EXPERIMENT.sizes)
    per_method = {method: [one for one in study if one["method"] == method] for method in METHODS}
    assert {len(found) for found in per_method.values()} <= {3, 5}  # the search; with the other seeds
    found = {method: footing(per_method[method][0], tmp_path) for method in METHODS}
    parameters, tokens, pairs, states = (
        dict(zip(found, column, strict=True)) for column in zip(*found.values(), strict=True)
    )
    assert max(parameters.values()) <= 1.02 * min(parameters.values())
    assert set(tokens.values()) == {tokens_of(configuration(study[0]))}
    sparse = {method: count for method, count in pairs.items() if method != "exact" and count is not None}
    assert len(sparse) == len(METHODS) - 3
    assert all(abs(count - PAIRS) <= 1 for count in sparse.values()), sparse
    assert pairs["exact"] == N
    assert states["linear"] == states["random features"] is not None


def test_the_trial_is_short_marked_and_measured_at_every_length(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    path = run_experiment(EXPERIMENT, tmp_path, sizes=EXPERIMENT.quick_sizes)
    rows = list(read_records(path).rows())
    assert {row["method"] for row in rows} == {"exact", "window"}
    assert all(row["quick"] for row in rows)
    for method in ("exact", "window"):
        whole = [row for row in rows if row["method"] == method and row["distance"] is None]
        assert [row["times"] for row in whole] == list(TIMES)
        assert all(row["targets"] == 16 for row in whole)  # 8 texts of two
        for one in whole:
            parts = [
                row for row in rows
                if row["method"] == method and row["times"] == one["times"] and row["distance"] is not None
            ]  # fmt: skip
            assert sum(row["targets"] for row in parts) == one["targets"]
            mean = sum(row["targets"] * row["accuracy"] for row in parts) / one["targets"]
            np.testing.assert_allclose(mean, one["accuracy"], atol=1e-3)
    assert {row["pairs"] for row in rows if row["distance"] is None} == {
        16
    }  # all of a text: a window of 32 sees it whole


def test_an_item_gives_the_same_records_again() -> None:
    pytest.importorskip("safetensors")
    item = items(EXPERIMENT.quick_sizes)[1]
    assert EXPERIMENT.run(item) == EXPERIMENT.run(item)


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes: 100 came, 256, or 16 for a trial"):
        items((100,))


@dataclasses.dataclass
class Knowing:
    """A model that is right about targets whose token came at most so far back."""

    reach: int

    def evaluate(self, tokens: Any, targets: Any, weights: Any = None, attention: Any = None) -> Evaluation:
        right = distances(tokens) <= self.reach
        losses = np.where(weights > 0, np.where(right, 1.0, 3.0), np.nan)
        return Evaluation(0.0, 0.0, losses, right)


def test_targets_are_counted_by_distance() -> None:
    tokens = np.array([[1, 2, 3, 1, 2, 2, 3, 1], [4, 5, 6, 7, 8, 9, 4, 5]])
    weights = np.array([[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]], np.float32)  # 3, 3, 1, 4; 6, 6
    found = list(by_distance(Knowing(3), [Batch(tokens, tokens, weights)], None))
    assert [tuple(one) for one in found] == [
        (None, 6, 2.0, 0.5),
        (1, 1, 1.0, 1.0),
        (4, 3, pytest.approx(5 / 3), pytest.approx(2 / 3)),
        (8, 2, 3.0, 0.0),
    ]
