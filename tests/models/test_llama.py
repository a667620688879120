"""The NumPy decoder computes what the weights' authors meant, with whatever attention is plugged in."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refattn import dense_attention
from refattn.models import Capture, GGUFFile, Llama, LlamaConfig, essays, exact_attention, tokenizer_from_gguf
from refattn.models.llama import Attention

TOKENS = np.random.default_rng(30).integers(0, 261, 40)


@pytest.fixture(scope="module")
def model(smollm2_file: GGUFFile) -> Llama:
    return Llama.from_gguf(smollm2_file)


@pytest.fixture(scope="module")
def essay(smollm2_file: GGUFFile) -> list[int]:
    """The first 2,048 tokens of "How to Write Usefully"."""
    pytest.importorskip("tokenizers", reason="the tokenizers library reads the essay")
    try:
        text = essays()["useful"]
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    ids: list[int] = tokenizer_from_gguf(smollm2_file).encode(text).ids[:2048]
    return ids


def torch_logits(
    config: LlamaConfig, weights: Any, tokens: list[int], dtype: Any, positions: Any = None
) -> NDArray[Any]:
    """The architecture again, in PyTorch, from the tensors alone.

    The rows of Q and K are first brought into the layout ``(x_i, x_i+d/2)`` and turned by halves, as the model's
    authors do; causal attention is PyTorch's own.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is the second implementation")
    F = torch.nn.functional
    d, n = config.head_width, len(tokens)

    def tensor(name: str) -> Any:
        return torch.from_numpy(np.array(weights[name])).to(dtype)

    def halves(name: str) -> Any:
        rows = tensor(name)
        return rows.view(-1, d // 2, 2, config.width).transpose(1, 2).reshape(rows.shape)

    def heads(x: Any) -> Any:
        return x.view(1, n, -1, d).transpose(1, 2)

    frequency = 1.0 / config.rope_base ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    places = torch.arange(n) if positions is None else torch.tensor(positions)
    angle = torch.outer(places.to(torch.float64), frequency).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def turned(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    x = F.embedding(torch.tensor(tokens), tensor("token_embd.weight"))
    for layer in range(config.n_layers):
        name = f"blk.{layer}."
        a = F.rms_norm(x, (config.width,), tensor(name + "attn_norm.weight"), config.norm_eps)
        q, k = (turned(heads(a @ halves(f"{name}attn_{which}.weight").T)) for which in "qk")
        v = heads(a @ tensor(name + "attn_v.weight").T)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).reshape(n, -1), tensor(name + "attn_output.weight"))
        b = F.rms_norm(x, (config.width,), tensor(name + "ffn_norm.weight"), config.norm_eps)
        gate = F.silu(F.linear(b, tensor(name + "ffn_gate.weight")))
        x = x + F.linear(gate * F.linear(b, tensor(name + "ffn_up.weight")), tensor(name + "ffn_down.weight"))
    x = F.rms_norm(x, (config.width,), tensor("output_norm.weight"), config.norm_eps)
    head = "output.weight" if "output.weight" in weights else "token_embd.weight"
    return np.asarray((x @ tensor(head).T).numpy())


@pytest.mark.long
def test_logits_agree_with_pytorch_on_real_text(model: Llama, smollm2_file: GGUFFile, essay: list[int]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the second implementation")
    tokens = essay[:256]
    weights = {name: smollm2_file.tensor(name) for name in smollm2_file.records}
    expected = torch_logits(model.config, weights, tokens, torch.float32)
    logits = model(tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize(
    "positions", [np.zeros(40, int), np.random.default_rng(32).permutation(40)], ids=["zero", "shuffled"]
)
def test_other_positions_agree_with_pytorch(tiny_model: Llama, positions: NDArray[Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the second implementation")
    model = Llama(tiny_model.config, tiny_model.weights, dtype=np.float64)
    expected = torch_logits(model.config, tiny_model.weights, TOKENS.tolist(), torch.float64, positions)
    found = model.logits(model.hidden(TOKENS, positions=positions))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert not np.allclose(found, model(TOKENS))


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [([0.5] * 40, TypeError, "integers"), ([0] * 39, ValueError, "one a token"), ([-1] * 40, ValueError, "-1 …")],
)
def test_positions_that_are_none_are_refused(tiny_model: Llama, positions: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"positions.*{message}"):
        tiny_model.hidden(TOKENS, positions=positions)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own-output"])
def test_a_random_model_agrees_with_pytorch_in_float64(tiny_model: Llama, tied: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the second implementation")
    weights: dict[str, Any] = dict(tiny_model.weights)
    if not tied:
        weights["output.weight"] = np.random.default_rng(31).standard_normal((261, 8))
    model = Llama(tiny_model.config, weights, dtype=np.float64)
    expected = torch_logits(model.config, weights, TOKENS.tolist(), torch.float64)
    np.testing.assert_allclose(model(TOKENS), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_perplexity_of_an_essay(model: Llama, essay: list[int]) -> None:
    assert model.perplexity(essay) == pytest.approx(24.59, rel=0.01)


@pytest.mark.long
def test_positions_turn_neighbouring_pairs_in_this_file(model: Llama, essay: list[int]) -> None:
    """With Q and K rearranged for turning by halves, turning neighbours is wrong, and text becomes improbable."""
    d, weights = model.config.head_width, dict(model.weights)
    for name in weights:
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            rows = weights[name].reshape(-1, d // 2, 2, model.config.width)
            weights[name] = rows.swapaxes(1, 2).reshape(weights[name].shape)
    assert Llama(model.config, weights).perplexity(essay[:256]) > 5 * model.perplexity(essay[:256])


def test_a_later_token_changes_no_earlier_logit(tiny_model: Llama) -> None:
    changed = TOKENS.copy()
    changed[25] = (changed[25] + 1) % 261
    before, after = tiny_model(TOKENS), tiny_model(changed)
    np.testing.assert_allclose(after[:25], before[:25], rtol=0, atol=1e-13)
    assert np.abs(after[25:] - before[25:]).max(axis=1).min() > 1e-6


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_model: Llama) -> None:
    tokens = np.random.default_rng(32).integers(0, 261, 300)  # more than one block of rows
    with pytest.warns(UserWarning, match="300 came, the model was trained on 64 positions"):
        logits = tiny_model(tokens)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.exp(-log_p[np.arange(299), tokens[1:]].mean())
    with pytest.warns(UserWarning, match="positions"):
        assert tiny_model.perplexity(tokens) == pytest.approx(expected, rel=1e-12)


def test_scores_depend_on_the_distance_of_positions_only(tiny_model: Llama) -> None:
    capture = Capture()
    tiny_model(np.full(30, 7), attention=capture)  # one token throughout: in layer 0 only positions differ
    scores = capture.q[0][0] @ capture.k[0][0].T
    for lag in (0, 1, 17):
        np.testing.assert_allclose(np.diagonal(scores, -lag), scores[lag, 0], rtol=1e-10)
    assert abs(scores[17, 0] - scores[1, 0]) > 1e-3


def test_capture_records_what_the_attention_was_given(tiny_model: Llama) -> None:
    capture = Capture()
    logits = tiny_model(TOKENS, attention=capture, observe=capture.observe)
    np.testing.assert_array_equal(logits, tiny_model(TOKENS))
    assert capture.q.keys() == capture.k.keys() == capture.v.keys() == capture.inputs.keys() == {0, 1}
    for layer in (0, 1):
        assert capture.q[layer].shape == (4, 40, 2)
        assert capture.k[layer].shape == capture.v[layer].shape == (2, 40, 2)
        v = capture.inputs[layer] @ tiny_model.weights[f"blk.{layer}.attn_v.weight"].T
        np.testing.assert_allclose(capture.v[layer], v.reshape(40, 2, 2).swapaxes(0, 1), rtol=1e-14)


def test_capture_can_be_kept_to_some_layers(tiny_model: Llama) -> None:
    capture = Capture(layers=[1])
    tiny_model(TOKENS, attention=capture, observe=capture.observe)
    assert capture.q.keys() == capture.inputs.keys() == {1}


def test_the_plugged_attention_is_the_one_used(tiny_model: Llama) -> None:
    def only_in_layer_one(layer: int, q: Any, k: Any, v: Any) -> Any:
        return exact_attention(layer, q, k, v) if layer == 1 else np.zeros_like(q)

    silent = Llama(
        tiny_model.config,
        {**tiny_model.weights, "blk.0.attn_output.weight": np.zeros((8, 8))},
        dtype=np.float64,
    )
    np.testing.assert_allclose(tiny_model(TOKENS, attention=only_in_layer_one), silent(TOKENS), rtol=1e-13)
    assert not np.allclose(silent(TOKENS), tiny_model(TOKENS))


def test_the_default_attention_is_the_dense_causal_one(tiny_model: Llama) -> None:
    def attention(layer: int, q: Any, k: Any, v: Any) -> Any:
        return dense_attention(q, k, v, mask="causal")

    np.testing.assert_array_equal(tiny_model(TOKENS), tiny_model(TOKENS, attention=attention))


def test_both_dtypes_compute_in_their_own_precision(tiny_model: Llama) -> None:
    narrow = Llama(tiny_model.config, tiny_model.weights, dtype=np.float32)
    capture = Capture()
    logits = narrow(TOKENS, attention=capture)
    assert logits.dtype == capture.q[0].dtype == capture.v[1].dtype == np.float32
    assert tiny_model(TOKENS).dtype == np.float64
    np.testing.assert_allclose(logits, tiny_model(TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([1.5], TypeError, "tokens: dtype float64 came, integers were wanted"),
        ([[1, 2]], ValueError, r"tokens: shape \(1, 2\) came"),
        (np.zeros(0, dtype=int), ValueError, r"tokens: shape \(0,\) came"),
        ([0, 261], ValueError, "tokens: 261 at index 1, 0 … 260 was wanted"),
        ([-1], ValueError, "tokens: -1 at index 0"),
    ],
    ids=["fractions", "matrix", "empty", "too-large", "negative"],
)
def test_tokens_out_of_order_are_refused(tiny_model: Llama, tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_model(tokens)


def test_perplexity_needs_a_token_to_predict(tiny_model: Llama) -> None:
    with pytest.raises(ValueError, match="n ≥ 2 was wanted"):
        tiny_model.perplexity([3])


def test_an_attention_of_another_shape_is_named_with_its_layer(tiny_model: Llama) -> None:
    attention: Attention = lambda layer, q, k, v: q if layer == 0 else q[:2]  # noqa: E731
    with pytest.raises(ValueError, match=r"attention: shape \(2, 40, 2\) came in layer 1, \(4, 40, 2\)"):
        tiny_model(TOKENS, attention=attention)


def test_only_two_dtypes_are_computed_in(tiny_model: Llama) -> None:
    with pytest.raises(TypeError, match="dtype: float16 came, float32 or float64 was wanted"):
        Llama(tiny_model.config, tiny_model.weights, dtype=np.float16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers: 0 came"),
        ({"n_kv_heads": 3}, "n_kv_heads: 3 came, a divisor of the 4"),
        ({"head_width": 3}, "head_width: 3 came, an even number"),
        ({"rope_base": 0.0}, "rope_base: 0.0 came"),
    ],
    ids=["no-layers", "heads", "odd-width", "base"],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    numbers: dict[str, Any] = {
        "n_layers": 1,
        "width": 8,
        "ffn_width": 12,
        "vocab_size": 10,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_width": 2,
        "context_length": 64,
        "rope_base": 1e4,
        "norm_eps": 1e-5,
    }
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**numbers, **changes})


def test_importing_refattn_does_not_import_models_nor_models_their_readers() -> None:
    code = (
        "import sys, refattn; assert 'refattn.models' not in sys.modules;"
        "import refattn.models; assert not {'gguf', 'tokenizers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
