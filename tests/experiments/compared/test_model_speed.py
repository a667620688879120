"""What is timed is the same model in both libraries, training and generating."""

import numpy as np
import pytest

from refattn.experiments.compared import model_speed
from refattn.experiments.compared._resident import peak_resident_megabytes
from refattn.experiments.compared.torch_llama import TorchLlama
from refattn.experiments.tables import generation_speed, training_speed
from refattn.models import Decoder, KVCacheAttention, Llama, LlamaConfig, generate

CONFIG = LlamaConfig(
    n_layers=2, width=16, ffn_width=24, vocab_size=30, n_heads=4, n_kv_heads=2, head_width=4, context_length=64,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


def test_the_model_in_pytorch_is_ours():
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    ours = Decoder.initial(CONFIG, 0, np.float64)
    theirs = TorchLlama(CONFIG, ours.parameters, 64)
    tokens, targets = np.random.default_rng(0).integers(0, 30, (2, 2, 20))
    loss, gradients = ours.loss_and_gradients(tokens, targets)
    found, theirs_gradients = theirs.gradients(tokens, targets)
    assert found.item() == pytest.approx(loss, rel=1e-12)
    for name, one in gradients.items():
        np.testing.assert_allclose(theirs_gradients[name].numpy(), one, rtol=0, atol=1e-9 * np.abs(one).max())


def test_both_write_the_same_words():
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    rng = np.random.default_rng(1)
    weights = {name: 0.5 * rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}
    model, theirs = Llama(CONFIG, weights, dtype=np.float64), TorchLlama(CONFIG, weights, 64)
    theirs.next_token([1, 2])
    theirs.begin()
    text = rng.integers(0, 30, 20)
    wanted = generate(model, text, 12, KVCacheAttention())
    found = [theirs.next_token(text)]
    while len(found) < 12:
        found.append(theirs.next_token(found[-1:]))
    assert found == wanted
    assert len(set(wanted)) > 2


@pytest.mark.needs("pydantic", "torch")
@pytest.mark.parametrize("method", ["sparsek with a window", "torch"])
def test_a_training_step_is_timed(method):
    (record,) = model_speed.run({"part": "training", "n": 96, "method": method})
    assert record["tokens_per_second"] > 0


@pytest.mark.slow
@pytest.mark.needs(*model_speed.EXPERIMENT.needs, "torch")
def test_a_cache_of_sparsek_stays_as_large_where_all_pairs_grow(monkeypatch):
    monkeypatch.setattr(model_speed, "WRITTEN", 4)

    def found(method, n):
        (record,) = model_speed.run({"part": "generation", "n": n, "method": method})
        return record

    exact, more = found("exact", 300), found("exact", 600)
    assert exact["tokens"] == found("torch", 300)["tokens"]
    assert more["kept_megabytes"] > 1.5 * exact["kept_megabytes"]
    assert found("sparsek", 300)["kept_megabytes"] == found("sparsek", 600)["kept_megabytes"]


def test_tables_have_every_method_once_and_exact_attention_is_one():
    rows = [
        {"part": "training", "n": n, "method": method, "tokens_per_second": 1e3 / n, "megabytes": n}
        for n in (8, 16)
        for method in ("exact", "window")
    ]
    assert training_speed(rows).splitlines()[2:] == [
        "| exact | 125 | 62.5 | 8 | 16 |",
        "| window | 125 | 62.5 | 8 | 16 |",
    ]
    common = {"part": "generation", "n": 8, "megabytes": None}
    rows += [
        common | {"method": "exact", "read_per_second": 4.0, "written_per_second": 2.0, "kept_megabytes": 9.0},
        common | {"method": "sparsek", "read_per_second": 8.0, "written_per_second": 3.0, "kept_megabytes": 1.0},
    ]
    assert generation_speed(rows).splitlines()[2:] == [
        "| 8 | exact | 4 | 1 | 2 | 1 | 9 | – |",
        "| 8 | sparsek | 8 | 2 | 3 | 1.5 | 1 | – |",
    ]


def test_memory_that_is_let_go_of_within_a_call_counts():
    found = peak_resident_megabytes(lambda: np.ones(40_000_000).sum())
    assert found is None or 300 < found < 400  # Linux tells it, where a process may ask
