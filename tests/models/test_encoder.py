"""The NumPy encoder equals PyTorch on the same weights, and takes any attention in the place of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refattn import conv_attention
from refattn.models.encoder import Encoder, EncoderConfig, encoder_tokenizer
from refattn.models.safetensors_file import minilm_folder, read_safetensors

TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light."
)
TINY = EncoderConfig(2, 12, 20, 3, 30, 24, 1e-12)


def tiny_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in TINY.tensor_shapes().items()}


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("safetensors", reason="the safetensors library reads the model's weights")
    try:
        return minilm_folder()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def in_torch(config, weights, tokens):
    """The same encoder in PyTorch's own operations."""
    torch = pytest.importorskip("torch", reason="PyTorch is what the encoder is compared with")
    f = torch.nn.functional
    w = {name: torch.from_numpy(np.array(weights[name])) for name in config.tensor_shapes()}

    def linear(x, name):
        return f.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        parts = w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"]
        return f.layer_norm(x, (config.width,), *parts, eps=config.norm_eps)

    n = len(tokens)
    x = w["embeddings.word_embeddings.weight"][torch.tensor(tokens)]
    x = x + w["embeddings.position_embeddings.weight"][torch.arange(n)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for layer in range(config.n_layers):
        name = f"encoder.layer.{layer}"
        heads = [
            linear(x, f"{name}.attention.self.{part}").view(n, config.n_heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        ]
        out = f.scaled_dot_product_attention(*(head[None] for head in heads))[0]
        x = norm(
            x + linear(out.transpose(0, 1).reshape(n, -1), f"{name}.attention.output.dense"), f"{name}.attention.output"
        )
        x = norm(x + linear(f.gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense"), f"{name}.output")
    return x.numpy()


def test_a_tiny_encoder_equals_pytorch_in_float64():
    weights, tokens = tiny_weights(), [3, 1, 4, 1, 5, 9, 2, 6]
    out = Encoder(TINY, weights, dtype=np.float64)(tokens)
    np.testing.assert_allclose(out, in_torch(TINY, weights, tokens), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 10], ids=["a-sentence", "the-whole-context"])
def test_minilm_equals_pytorch_on_the_same_weights(minilm, repeats):
    pytest.importorskip("tokenizers", reason="the tokenizers library cuts the text")
    tokens = encoder_tokenizer(minilm).encode(TEXT * repeats).ids[:512]
    model = Encoder.from_folder(minilm)
    out = model(tokens)
    right = in_torch(model.config, model.weights, tokens)
    assert out.dtype == np.float32
    assert np.abs(out - right).max() <= 1e-4
    if repeats == 1:
        wrong = model(tokens, lambda layer, q, k, v: 1.001 * v)
        assert np.abs(wrong - right).max() > 1e-2


def test_the_tokenizer_marks_beginning_and_end_and_does_not_cut(minilm):
    pytest.importorskip("tokenizers", reason="the tokenizers library cuts the text")
    tokenizer = encoder_tokenizer(minilm)
    assert tokenizer.encode("To be, or not").tokens == ["[CLS]", "to", "be", ",", "or", "not", "[SEP]"]
    assert len(tokenizer.encode("word " * 700).ids) == 702


def test_conv_attention_with_as_many_segments_as_columns_changes_nothing():
    model, tokens = Encoder(TINY, tiny_weights(), dtype=np.float64), np.arange(20)

    def attend(layer, q, k, v):
        return conv_attention(q, k, v, n_basis=20, probe=1, delta=0.0, mask="full", method="oracle")

    np.testing.assert_allclose(model(tokens, attend), model(tokens), rtol=0, atol=1e-11)


def test_an_attention_sees_every_layer_and_its_output_is_checked():
    model, seen = Encoder(TINY, tiny_weights()), []

    def attend(layer, q, k, v):
        seen.append((layer, q.shape, k.shape, v.shape))
        return v

    model([1, 2, 3], attend)
    assert seen == [(layer, *[(3, 3, 4)] * 3) for layer in range(2)]
    with pytest.raises(ValueError, match=r"attention: shape \(3, 2, 4\) came in layer 0"):
        model([1, 2, 3], lambda layer, q, k, v: v[:, :2])


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([0.5], TypeError, "tokens: dtype float64"),
        ([], TypeError, "tokens: dtype float64"),
        ([[1, 2]], ValueError, r"tokens: shape \(1, 2\)"),
        ([1] * 25, ValueError, r"tokens: shape \(25,\) came, \(n,\) with 1 ≤ n ≤ 24"),
        ([1, 30], ValueError, "tokens: 30 at index 1"),
    ],
    ids=["fractions", "none", "two-axes", "too-long", "vocabulary"],
)
def test_bad_tokens_are_refused(tokens, error, message):
    with pytest.raises(error, match=message):
        Encoder(TINY, tiny_weights())(tokens)


def test_weights_that_do_not_fit_are_refused():
    weights, name = tiny_weights(), "encoder.layer.1.output.dense.bias"
    with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
        Encoder(TINY, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"of shape \(3,\) came, \(12,\) was wanted"):
        Encoder(TINY, {**weights, name: np.ones(3)})
    with pytest.raises(ValueError, match=f"{name}: nan"):
        Encoder(TINY, {**weights, name: np.full(12, np.nan)})
    with pytest.raises(TypeError, match="dtype: int64"):
        Encoder(TINY, weights, dtype=int)
    with pytest.raises(ValueError, match="n_heads: 5 came"):
        EncoderConfig(2, 12, 20, 5, 30, 24, 1e-12)


def written(folder, weights=None, **changes):
    """A folder with a tiny model; ``changes`` replace entries of its configuration, None drops one."""
    save_file = pytest.importorskip("safetensors.numpy", reason="it writes the files these tests read").save_file
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_attention_heads": 3,
        "vocab_size": 30,
        "max_position_embeddings": 24,
        "layer_norm_eps": 1e-12,
    }
    kept = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    save_file(tiny_weights() if weights is None else weights, folder / "model.safetensors")
    return folder


def test_a_folder_is_read_as_it_was_written(tmp_path):
    out = Encoder.from_folder(written(tmp_path), dtype=np.float64)([1, 2, 3])
    np.testing.assert_array_equal(out, Encoder(TINY, tiny_weights(), dtype=np.float64)([1, 2, 3]))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta"},
        {"hidden_size": None},
        {"num_hidden_layers": "two"},
        {"position_embedding_type": "rotary"},
    ],
    ids=["architecture", "missing", "text", "positions"],
)
def test_a_configuration_of_something_else_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="a BERT-family configuration was wanted"):
        Encoder.from_folder(written(tmp_path, **change))


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 2), ("F8_E5M2", 2)], ids=lambda x: str(x))
def test_a_dtype_that_numpy_has_not_is_named(dtype, size, tmp_path):
    file = tmp_path / "half.safetensors"
    header = json.dumps({"w": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}).encode().ljust(80)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(ValueError, match=rf"half\.safetensors: tensor 'w' is of dtype '{dtype}', one of F64"):
        read_safetensors(file)


def test_damaged_files_are_refused(tmp_path):
    folder = written(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="a complete safetensors file was wanted"):
        Encoder.from_folder(folder)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="a complete safetensors file was wanted"):
        read_safetensors(file)
    written(tmp_path, weights={"embeddings.word_embeddings.weight": np.ones((30, 12))})
    with pytest.raises(ValueError, match=r"model.safetensors: weights: tensor .* is missing"):
        Encoder.from_folder(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="a safetensors weight file was wanted"):
        Encoder.from_folder(folder)
    with pytest.raises(FileNotFoundError, match="a tokenizer was wanted"):
        encoder_tokenizer(folder)
    pytest.importorskip("tokenizers", reason="the library refuses the file")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="a tokenizer's JSON was wanted"):
        encoder_tokenizer(folder)
