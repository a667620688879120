"""Whole models: what is timed is what is called so, layers are counted, and lengths are refused."""

import numpy as np
import pytest

from refattn.experiments.compared import whole_models as whole
from refattn.models import Encoder, EncoderConfig, Llama, LlamaConfig, exact_attention
from refattn.testing import relative_error


def drawn(kind, config):
    rng = np.random.default_rng(0)
    shapes = config.tensor_shapes()
    return kind(config, {name: rng.standard_normal(shape) / 4 for name, shape in shapes.items()})


@pytest.fixture
def small(monkeypatch):
    """Replace both models by small ones, and their texts by drawn tokens."""
    decoder = LlamaConfig(n_layers=30, width=576, ffn_width=8, vocab_size=50, n_heads=9, n_kv_heads=3, head_width=64,
                          context_length=256, rope_base=1e4, norm_eps=1e-5)  # fmt: skip
    encoder = EncoderConfig(2, 64, 8, 2, 50, 80, 1e-12)
    models = {"decoder": drawn(Llama, decoder), "encoder": drawn(Encoder, encoder)}
    monkeypatch.setattr(whole, "_whole", models.__getitem__)
    monkeypatch.setattr(whole, "tokens_of", lambda model, n: np.arange(n) % 50)
    whole.first_layers.cache_clear()
    yield models
    whole.first_layers.cache_clear()


@pytest.mark.parametrize("name", whole.MODELS)
def test_the_first_layers_are_those_of_the_whole_model(small, name):
    model, tokens = small[name], np.arange(40) % 50
    all_layers = whole.first_layers(name, model.config.n_layers, 40)
    first = whole.first_layers(name, 1, 40)
    assert first.config.n_layers == 1
    watched = whole.watched(name, "exact", 1.0)
    right = model.hidden(tokens) if name == "decoder" else model(tokens)
    np.testing.assert_array_equal(whole.output(all_layers, tokens, watched), right)
    assert relative_error(whole.output(first, tokens, watched), right) > 1e-3


def test_an_encoder_s_positions_are_repeated_beyond_its_own(small):
    longer = whole.first_layers("encoder", 2, 200)
    table = longer.weights["embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(table[80:160], table[:80])
    assert whole.output(longer, np.arange(200) % 50, whole.watched("encoder", "exact", 1.0)).shape == (200, 64)


@pytest.mark.parametrize("name", whole.MODELS)
def test_conv_with_every_column_is_exact_in_a_whole_model(small, name):
    model, tokens = whole.first_layers(name, 2, 48), np.arange(48) % 50
    exact = whole.output(model, tokens, whole.watched(name, "exact", 1.0))
    for starts in ("first", "uniform"):
        assert relative_error(whole.output(model, tokens, whole.watched(name, "conv", 1.0, starts)), exact) < 1e-5
        assert relative_error(whole.output(model, tokens, whole.watched(name, "conv", 0.25, starts)), exact) > 1e-3


@pytest.mark.slow
def test_a_round_has_every_method_and_what_each_took(small):
    records = whole.run({"model": "encoder", "n": 64, "part": "time", "round": 0})
    assert [(one["method"], one["k"]) for one in records] == whole.timed_methods("encoder", 64)
    assert all(0 < one["attention"] < one["seconds"] for one in records)
    assert all(one["threads"] == 1 for one in records)
    assert all(one["layers"] == 2 for one in records)
    assert all(one["megabytes"] > 0 for one in records)
    assert ["error" in one for one in records] == [False, True, True, True]
    again = whole.run({"model": "encoder", "n": 64, "part": "time", "round": 1})
    assert again[1]["error"] == records[1]["error"]


def test_a_search_ends_at_the_first_k_within_the_smaller_tolerance(small):
    records = whole.run({"model": "encoder", "n": 64, "part": "search", "starts": "first"})
    errors = [one["error"] for one in records[1:]]
    assert records[0]["method"] == "exact"
    assert errors[-1] <= 0.1 or len(errors) == len(whole.SHARES)
    assert all(error > 0.1 for error in errors[:-1])


def test_a_watch_counts_the_attention_and_its_observer():
    seen = []
    attend = whole.Watched(exact_attention, lambda layer, a: seen.append(layer))
    ones = np.ones((1, 3, 4))
    attend.observe(0, ones[0])
    assert attend(0, ones, ones, ones).shape == (1, 3, 4)
    assert seen == [0]
    assert attend.seconds > 0


def test_one_thread_leaves_what_it_found(monkeypatch):
    from refattn._threads import thread_count

    before = thread_count()
    with whole.one_thread():
        assert thread_count() == 1
    assert thread_count() == before
    monkeypatch.setenv("REFATTN_NUM_THREADS", str(before + 1))  # the environment is asked again
    assert thread_count() == before + 1


def test_two_layers_hold_as_much_at_once_as_more(small):
    tokens = np.arange(256) % 50
    held = [
        whole.peak_megabytes(whole.first_layers("decoder", layers, 256), tokens, whole.watched("decoder", "exact", 1))
        for layers in (2, 2, 6)  # the first compiles
    ]
    assert held[2] == pytest.approx(held[1], rel=0.1)


@pytest.mark.parametrize("model", whole.MODELS)
@pytest.mark.parametrize("part", ["time", "search"])
def test_a_length_beyond_memory_is_refused_with_the_estimate(model, part):
    item = {"model": model, "n": 10**10, "part": part, "round": 0, "starts": "first"}  # longer than --sizes gives it
    with pytest.raises(MemoryError, match=r"whole-models: n = 10000000000: about .* of memory would be needed"):
        whole.run(item)


@pytest.mark.parametrize("n", [1, 8, 32, 33])
def test_no_method_is_timed_twice(n):
    for model in whole.MODELS:
        found = whole.timed_methods(model, n)
        assert len(set(found)) == len(found)
        assert all(k <= n for method, k in found if method == "conv")


def test_a_text_that_is_too_short_is_said(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr("refattn.laboratory.smollm2.hamlet", lambda n: [1, 2, 3])
    with pytest.raises(ValueError, match=r"n: 4 came, at most the text's 3 tokens were wanted"):
        whole.tokens_of("decoder", 4)


def test_the_grid_is_searched_where_it_can_be_judged():
    found = whole.items([512, 1024, 4096, 32_768])
    searched = {(one["model"], one["n"]) for one in found if one["part"] == "search"}
    assert searched == {("decoder", 512), ("encoder", 512), ("decoder", 1024)}
    assert sum(one["part"] == "time" for one in found) == (3 + 1 + 1 + 1) + (3 + 1)
