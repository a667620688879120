"""Generation from SparseK caches: the tokens of the full forward, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.models import GeneratingAttention, Llama, LlamaConfig, Scorer, SelectiveAttention, generate

CONFIG = LlamaConfig(
    n_layers=3, width=16, ffn_width=24, vocab_size=50, n_heads=4, n_kv_heads=2, head_width=4, context_length=512,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    weights = {name: 0.4 * rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}
    weights["output.weight"] = rng.standard_normal((50, 16))  # its own, or the last token would be the likeliest next
    return Llama(CONFIG, weights, dtype=np.float64)


@pytest.fixture
def scorer():
    rng = np.random.default_rng(1)
    counts = np.array([[6, 5, 4], [4, 5, 6]])
    return Scorer(rng.standard_normal((3, 2, 16)).astype("f4"), np.full((3, 2), 0.01, "f4"), *counts)


def _prompt(n=37):
    return np.random.default_rng(2).integers(0, 50, n)


@pytest.mark.long
def test_greedy_tokens_are_those_of_the_full_forward(model, scorer):
    new = generate(model, _prompt(), 60, GeneratingAttention(scorer))
    text = _prompt().tolist()
    for token in new:
        attend = SelectiveAttention(scorer)
        assert token == model(text, attend, observe=attend.observe)[-1].argmax()
        text.append(token)
    assert len(set(new)) > 5  # not one token again and again


@pytest.mark.long
def test_logits_of_chunks_are_those_of_the_full_forward(model, scorer):
    tokens = _prompt(90)
    whole, chunked = SelectiveAttention(scorer), GeneratingAttention(scorer)
    wanted = model.hidden(tokens, whole, observe=whole.observe)
    parts = np.split(tokens, [40, 41, 60])
    found = [
        model.hidden(part, chunked, observe=chunked.observe, start=start)
        for part, start in zip(parts, (0, 40, 41, 60), strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_memory_is_the_same_at_every_position(model, scorer):
    attend = GeneratingAttention(scorer)
    generate(model, _prompt(), 5, attend)
    sizes = {attend.nbytes}
    for _ in range(3):
        generate(model, [1], 100, attend)
        sizes.add(attend.nbytes)
    assert len(sizes) == 1
    assert attend.position == 37 + 4 + 300


def test_nothing_new_is_nothing_computed(model, scorer):
    attend = GeneratingAttention(scorer)
    assert generate(model, _prompt(), 0, attend) == []
    assert attend.position == 0


def test_positions_go_on_and_are_counted_against_the_context(model):
    tokens = _prompt(8)
    with pytest.warns(UserWarning, match="513 came"):
        model.hidden(tokens, lambda layer, q, k, v: q, start=505)
    with pytest.raises(ValueError, match="start"):
        model.hidden(tokens, start=-1)
