"""The scorer's file, and the attentions that use it: read with suspicion, causal, within the budget."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refattn import dense_attention
from refattn.models import (
    Llama,
    LlamaConfig,
    Scorer,
    SelectiveAttention,
    load_scorer,
    read_scorer,
    sliding_window,
)
from refattn.models.scorer import SHIPPED
from refattn.sparsek import sparsek_attention

CONFIG = LlamaConfig(
    n_layers=2, width=8, ffn_width=12, vocab_size=30, n_heads=4, n_kv_heads=2, head_width=2, context_length=256,
    rope_base=500.0, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return Llama(
        CONFIG, {name: rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}, dtype="f8"
    )


def _scorer(n_select=4, window=3, seed=1):
    rng = np.random.default_rng(seed)
    counts = np.full((2, 2), [[n_select], [window]], np.int64)
    return Scorer(rng.standard_normal((2, 2, 8)).astype("f4"), rng.standard_normal((2, 2)).astype("f4") * 0.01, *counts)


def test_what_is_saved_is_read(tmp_path):
    scorer = _scorer()
    scorer.save(tmp_path / "scorer.npz")
    found = read_scorer(tmp_path / "scorer.npz")
    for name in ("weight", "slope", "n_select", "window"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scorer, name))
    assert found.budget == 7


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def _alter(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"weight.npy") + 150] ^= 1
    path.write_bytes(content)


def _other_format(path):
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**manifest, "format": "other"}))


def _no_json(path):
    path.with_suffix(".json").write_text("[1, 2")


@pytest.mark.parametrize("damage", [_truncate, _alter, _other_format, _no_json])
def test_a_file_that_is_not_what_its_manifest_says_is_refused(tmp_path, damage):
    path = tmp_path / "scorer.npz"
    _scorer().save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"scorer\.npz"):
        read_scorer(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slope": np.zeros((2, 3), "f4")}, "weight, slope"),
        ({"weight": np.full((2, 2, 8), np.nan, "f4")}, "weight"),
        ({"weight": np.zeros((2, 2, 8))}, "dtype float64"),
        ({"window": np.array([1, -1])}, "window"),
        ({"n_select": np.array([1.0, 2.0])}, "n_select"),
    ],
)
def test_a_scorer_that_cannot_be_is_refused(change, message):
    right = _scorer()
    arrays = {name: getattr(right, name) for name in ("weight", "slope", "n_select", "window")}
    with pytest.raises(ValueError, match=message):
        Scorer(**{**arrays, **change})


@pytest.mark.parametrize(("kind", "budget"), SHIPPED)
def test_the_shipped_scorers_fit_the_model_and_are_small(kind, budget):
    scorer = load_scorer(kind, budget)
    assert scorer.weight.shape == (30, 3, 576)
    pairs = scorer.n_select + scorer.window
    assert pairs.sum() <= budget * 30
    assert set(pairs.tolist()) == {budget} or kind == "shared"
    assert scorer.manifest["kind"] == kind
    assert not {"worked", "popular", "gap", "useful"} & set(scorer.manifest["texts"])
    assert scorer.weight.nbytes < 500_000


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ValueError, match="kind"):
        load_scorer("oracle")
    with pytest.raises(ValueError, match="budget"):
        load_scorer("learned", 100)
    with pytest.raises(ValueError, match="budget"):
        load_scorer("shared", 256)


def test_a_budget_for_everything_is_exact_attention(model):
    tokens = np.random.default_rng(2).integers(0, 30, 40)
    attend = SelectiveAttention(_scorer(30, 10))
    np.testing.assert_allclose(model(tokens, attend, observe=attend.observe), model(tokens), rtol=1e-9, atol=1e-9)


def test_no_row_depends_on_a_later_token(model):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 30, 60)
    changed = np.concatenate([tokens[:35], rng.integers(0, 30, 25)])
    attend = SelectiveAttention(_scorer())
    one, other = (model(text, attend, observe=attend.observe) for text in (tokens, changed))
    np.testing.assert_array_equal(one[:35], other[:35])
    assert not np.allclose(one[35:], other[35:])


def test_it_says_when_it_was_not_shown_the_input(model):
    with pytest.raises(ValueError, match="observe"):
        model([1, 2, 3], SelectiveAttention(_scorer()))


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_window_with_sinks_is_dense_attention_under_that_mask(sinks):
    q, (k, v) = (
        np.random.default_rng(4).standard_normal((4, 30, 3)),
        np.random.default_rng(5).standard_normal((2, 2, 30, 3)),
    )
    i, j = np.ogrid[:30, :30]
    mask = (j <= i) & ((j > i - 7) | (j < sinks))
    np.testing.assert_allclose(
        sliding_window(7, sinks)(0, q, k, v), dense_attention(q, k, v, mask=mask), rtol=1e-12, atol=1e-12
    )


def test_its_selection_is_sparsek_s():
    scorer, rng = _scorer(), np.random.default_rng(6)
    q, (k, v) = rng.standard_normal((4, 50, 3)), rng.standard_normal((2, 2, 50, 3))
    x = rng.standard_normal((50, 8))
    attend = SelectiveAttention(scorer)
    attend.observe(1, x)
    scores = scorer.weight[1].astype(float) @ x.T + scorer.slope[1][:, None].astype(float) * np.arange(50)
    wanted = sparsek_attention(q, k, v, scores, n_select=4, window=3, gate="none", method="oracle")
    np.testing.assert_allclose(attend(1, q, k, v), wanted, rtol=1e-12, atol=1e-12)
