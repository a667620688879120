"""A whole decoder's gradients, derived by hand, are autograd's; planted errors are found by the tensor they spoil."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from decoders import CONFIGS, GPT2, LLAMA, Batch, random_batch, random_decoder, torch_loss, torch_loss_and_gradients

from refattn.models import Decoder, GPT2Config, Llama, NotFiniteError, SparseKAttention, output
from refattn.models import decoder as decoder_module
from refattn.models.layers import attention_block, feed_forward_block, named
from refattn.models.layers.named import Gradients

AUTOGRAD = 1e-9
"""Largest difference allowed from autograd, relative to the tensor's gradient."""


def wrong_tensors(model: Decoder, batch: Batch) -> set[str]:
    """The tensors whose gradient is not autograd's; one that should be zero is held to the others' size."""
    loss, found = model.loss_and_gradients(*batch)
    expected_loss, expected = torch_loss_and_gradients(model.config, model.parameters, *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert found.keys() == expected.keys()
    least = 1e-3 * max(np.abs(one).max() for one in expected.values())
    return {
        name
        for name, one in expected.items()
        if not np.abs(found[name] - one).max() <= AUTOGRAD * max(np.abs(one).max(), least)
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own-output"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_gradient_is_autograds(family: str, tied: bool) -> None:
    pytest.importorskip("torch", reason="autograd is the second derivation")
    model = random_decoder(CONFIGS[family], tied=tied)
    assert wrong_tensors(model, random_batch()) == set()
    assert wrong_tensors(model, random_batch(seed=1, shape=(1, 2))) == set()


def _no_mean_of_squares(right: Any) -> Any:
    def wrong(dout: Any, cache: Any) -> Any:
        return right(dout, cache)._replace(x=dout * cache.gain * cache.rate.reshape(*dout.shape[:-1], 1))

    return wrong


def _no_mean(right: Any) -> Any:
    def wrong(dout: Any, cache: Any) -> Any:
        found = right(dout, cache)
        rate = cache.rate.reshape(*dout.shape[:-1], 1)
        return found._replace(x=found.x + rate * (dout * cache.gain).mean(axis=-1, keepdims=True))

    return wrong


def _field(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(right: Any) -> Any:
        def wrong(*args: Any, **options: Any) -> Any:
            found = right(*args, **options)
            return found._replace(**{name: None if getattr(found, name) is None else change(getattr(found, name))})

        return wrong

    return make


def _turned_on(right: Any) -> Any:
    return lambda dout, turn: right(dout, turn.conj())


def _used_once(right: Any) -> Any:
    def add(self: Gradients, name: str, gradient: Any) -> None:
        self.found.pop("token_embd.weight", None) if name == "token_embd.weight" else None
        right(self, name, gradient)

    return add


def _shifted(right: Any) -> Any:
    return lambda dloss, cache: right(dloss, cache._replace(targets=np.roll(cache.targets, 1)))


def _unmasked(right: Any) -> Any:
    return lambda dloss, cache: right(np.full_like(dloss, dloss.mean()), cache)


def _gate_without_slope(right: Any) -> Any:
    def wrong(dout: Any, cache: Any) -> Any:
        return right(dout, cache)._replace(gate=dout * cache.up * cache.open)

    return wrong


def _without_tanh_slope(right: Any) -> Any:
    return lambda dout, cache: 0.5 * (1 + cache.tanh) * dout


def _not_summed(right: Any) -> Any:
    return lambda dout, cache: right(dout / 2, cache)


PLANTED: dict[str, tuple[str, Any, str, Any, str]] = {
    "mean-of-squares-dropped": ("llama", named, "rms_norm_backward", _no_mean_of_squares, "blk.1.ffn_up.weight"),
    "mean-dropped": ("gpt2", named, "layer_norm_backward", _no_mean, "blk.0.attn_q.weight"),
    "gain-twice": ("gpt2", named, "layer_norm_backward", _field("gain", lambda g: 2 * g), "blk.0.ffn_norm.weight"),
    "shift-forgotten": ("gpt2", named, "layer_norm_backward", _field("shift", np.zeros_like), "output_norm.bias"),
    "bias-forgotten": ("gpt2", named, "linear_backward", _field("bias", np.zeros_like), "blk.1.ffn_down.bias"),
    "rotary-sign": ("llama", attention_block, "rotary_backward", _turned_on, "blk.1.attn_k.weight"),
    "embedding-used-once": ("llama", Gradients, "add", _used_once, "token_embd.weight"),
    "target-shifted": ("llama", output, "cross_entropy_backward", _shifted, "output_norm.weight"),
    "mask-forgotten": ("gpt2", output, "cross_entropy_backward", _unmasked, "output_norm.weight"),
    "silu-without-its-slope": ("llama", feed_forward_block, "swiglu_backward", _gate_without_slope,
                               "blk.1.ffn_gate.weight"),
    "gelu-without-its-slope": ("gpt2", feed_forward_block, "gelu_backward", _without_tanh_slope, "blk.1.ffn_up.weight"),
    "positions-halved": ("gpt2", decoder_module, "embedding_backward", _not_summed, "position_embd.weight"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found_in_the_tensor_it_spoils(monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    pytest.importorskip("torch", reason="autograd is the second derivation")
    family, place, name, make, spoiled = PLANTED[planted]
    model = random_decoder(CONFIGS[family])
    monkeypatch.setattr(place, name, make(getattr(place, name)))
    assert spoiled in wrong_tensors(model, random_batch())


@pytest.mark.parametrize("family", CONFIGS)
def test_five_steps_of_plain_descent_follow_pytorch(family: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch takes the same steps")
    config, rate = CONFIGS[family], 0.5
    model = Decoder.initial(config, 2, np.float64)
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in model.parameters.items()}
    for seed in range(5):
        batch = random_batch(seed)
        loss, gradients = model.loss_and_gradients(*batch)
        expected = torch_loss(config, theirs, *(torch.as_tensor(array) for array in batch))
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-10)
        with torch.no_grad():
            for name, tensor in theirs.items():
                model.parameters[name] -= rate * gradients[name]
                tensor -= rate * tensor.grad
                tensor.grad = None


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_recomputed_and_what_is_left_out_changes_no_bit(family: str) -> None:
    model, batch = random_decoder(CONFIGS[family]), random_batch()
    loss, gradients = model.loss_and_gradients(*batch)
    assert model.loss(*batch) == loss
    again, recomputed = model.loss_and_gradients(*batch, recompute=True)
    assert again == loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(recomputed[name], gradient)
    for wanted in (["blk.1.attn_q.weight", "blk.0.ffn_down.weight"], ["token_embd.weight"], ["blk.1.ffn_norm.weight"]):
        _, some = model.loss_and_gradients(*batch, wanted=wanted)
        assert some.keys() == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(some[name], gradients[name])
    assert model.loss_and_gradients(*batch, wanted=[]) == (loss, {})


def test_the_loss_of_a_batch_is_the_weighted_mean_of_its_texts() -> None:
    model, (tokens, targets, weights) = random_decoder(LLAMA), random_batch()
    texts = [model.loss_and_gradients(tokens[i : i + 1], targets[i : i + 1], weights[i : i + 1]) for i in range(3)]
    share = weights.sum(axis=1) / weights.sum()
    loss, gradients = model.loss_and_gradients(tokens, targets, weights)
    assert loss == pytest.approx(sum(s * one for s, (one, _) in zip(share, texts, strict=True)), rel=1e-13)
    for name, gradient in gradients.items():
        mean = sum(s * one[name] for s, (_, one) in zip(share, texts, strict=True))
        np.testing.assert_allclose(gradient, mean, rtol=1e-10, atol=1e-14)


def test_without_weights_every_target_counts_the_same() -> None:
    model, batch = random_decoder(LLAMA), random_batch()
    targets = np.abs(batch.targets) % 31
    uniform = np.full(targets.shape, 7.0)
    assert model.loss(batch.tokens, targets) == pytest.approx(model.loss(batch.tokens, targets, uniform), rel=1e-14)


def test_weights_may_be_a_mask() -> None:
    model, (tokens, targets, weights) = random_decoder(LLAMA), random_batch()
    loss = model.loss(tokens, targets, np.sign(weights))
    assert model.loss(tokens, targets, weights > 0) == model.loss(tokens, targets, np.sign(weights).astype(int)) == loss


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own-output"])
def test_an_evaluation_is_that_of_the_logits_target_by_target(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets, weights) = random_decoder(LLAMA, tied=tied), random_batch()
    logits = np.stack([Llama(LLAMA, model.parameters, dtype=np.float64)(text) for text in tokens])
    targets[0], weights[0, 5:] = logits[0].argmax(axis=-1), 1  # so that some are right
    counts = weights > 0
    found = model.evaluate(tokens, targets, weights)
    right = counts & (logits.argmax(axis=-1) == targets)
    np.testing.assert_array_equal(found.right, right)
    assert 0.1 < found.accuracy < 0.9
    assert found.accuracy == pytest.approx(weights[right].sum() / weights.sum(), rel=1e-12)
    losses = np.log(np.exp(logits).sum(axis=-1))[counts] - logits[counts, targets[counts]]
    np.testing.assert_allclose(found.losses[counts], losses, rtol=1e-12)
    assert np.isnan(found.losses[~counts]).all()
    assert found.loss == model.loss_and_gradients(tokens, targets, weights)[0]
    monkeypatch.setattr(output, "_LEAST_ROWS", 7)  # blocks of rows, of which the last is a part
    monkeypatch.setattr(output, "_LOGITS", 1)
    in_blocks = model.evaluate(tokens, targets, weights)
    np.testing.assert_array_equal(in_blocks.right, right)
    assert in_blocks.loss == pytest.approx(found.loss, rel=1e-14)


def test_of_equal_logits_the_first_token_counts() -> None:
    model = Decoder.initial(GPT2, 0, np.float64)
    model.parameters["token_embd.weight"][:] = 0
    found = model.evaluate([[1, 2, 3]], [[0, 1, 0]])
    assert found.right.tolist() == [[True, False, True]]
    assert found.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("attention", [None, SparseKAttention(3, 2)], ids=["exact", "sparsek"])
def test_a_decoder_is_the_llama_of_its_parameters(attention: SparseKAttention | None) -> None:
    model, tokens = random_decoder(LLAMA, attention=attention), random_batch().tokens[:1]
    losses = Llama(LLAMA, model.parameters, dtype=np.float64, attention=attention).losses(tokens[0])
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], attention=attention)
    assert loss == pytest.approx(losses.mean(), rel=1e-12)


def test_float32_stays_float32_and_near_float64() -> None:
    model, batch = random_decoder(LLAMA), random_batch()
    narrow = Decoder(LLAMA, {name: tensor.astype(np.float32) for name, tensor in model.parameters.items()})
    loss, gradients = narrow.loss_and_gradients(*batch)
    wide_loss, wide = model.loss_and_gradients(*batch)
    assert loss == pytest.approx(wide_loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, wide[name], rtol=0, atol=1e-4 * max(np.abs(wide[name]).max(), 1e-3))


def test_a_decoder_owns_its_parameters() -> None:
    given = {name: tensor.copy() for name, tensor in random_decoder(LLAMA).parameters.items()}
    model = Decoder(LLAMA, given)
    model.parameters["output_norm.weight"] += 1
    assert not (model.parameters["output_norm.weight"] == given["output_norm.weight"]).any()
    assert all(tensor.flags.writeable and tensor.flags.owndata for tensor in model.parameters.values())


def test_the_first_weights_are_those_of_the_seed_in_either_precision() -> None:
    one, same, other = (Decoder.initial(GPT2, seed, np.float64).parameters for seed in (3, 3, 4))
    narrow = Decoder.initial(GPT2, 3).parameters
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, same[name])
        np.testing.assert_array_equal(tensor.astype(np.float32), narrow[name])
    assert not (one["token_embd.weight"] == other["token_embd.weight"]).any()


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("token_embd.weight", "token_embd"),
        ("blk.1.ffn_up.weight", "blk.1"),
        ("blk.0.attn_k.weight", "blk.0"),
        ("output_norm.weight", "output"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_layer_that_is_not_finite_is_named(tensor: str, layer: str, value: float) -> None:
    model = random_decoder(LLAMA)
    model.parameters[tensor][:] = value
    for run in (model.loss, model.loss_and_gradients):
        with pytest.raises(NotFiniteError, match=rf"^{layer}: .* not finite") as caught:
            run(*random_batch())
        assert caught.value.layer == layer
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": [[1.5, 2.0]]}, TypeError, "tokens: dtype float64 came, integers were wanted"),
        ({"tokens": [1, 2]}, ValueError, r"tokens: shape \(2,\) came, \(batch, n\)"),
        ({"tokens": np.zeros((2, 0), int)}, ValueError, r"tokens: shape \(2, 0\) came"),
        ({"tokens": [[0, 31]]}, ValueError, r"tokens: 31 at index \(0, 1\) came, 0 … 30 was wanted"),
        ({"targets": [[-1, 3]]}, ValueError, r"targets: -1 at index \(0, 0\) came, 0 … 30 was wanted"),
        ({"targets": [[1, 2, 3]]}, ValueError, r"targets: shape \(1, 3\) came, that of the tokens \(1, 2\)"),
        ({"weights": [1.0, 1.0]}, ValueError, r"weights: shape \(2,\) came, that of the targets \(1, 2\)"),
        ({"weights": [[1.0, -1.0]]}, ValueError, r"weights: -1.0 at index \(0, 1\) came, at least 0 was wanted"),
        ({"weights": [[0.0, 0.0]]}, ValueError, "weights: only zeros came"),
        ({"weights": [[1.0, np.nan]]}, ValueError, "weights: nan"),
        ({"wanted": ["blk.2.attn_q.weight"]}, ValueError, "wanted: 'blk.2.attn_q.weight' came"),
        ({"wanted": ["blk.0.scorer.weight"]}, ValueError, "wanted: 'blk.0.scorer.weight' came, names of"),
        ({"wanted": "blk.0.attn_q.weight"}, TypeError, "wanted: one text came"),
        ({"recompute": 1}, TypeError, "recompute: 1 came"),
        ({"attention": lambda *args: None}, TypeError, "attention: function came, a DifferentiableAttention"),
        ({"attention": SparseKAttention(2, 2)}, ValueError, "parameters: 'blk.0.scorer.weight' is missing"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"tokens": [[1, 2]], "targets": [[2, 3]], **changes}
    with pytest.raises(error, match=message):
        random_decoder(LLAMA).loss_and_gradients(**given)


def test_a_text_longer_than_the_learned_positions_is_refused() -> None:
    tokens = np.zeros((1, 65), int)
    with pytest.raises(ValueError, match="tokens: 65 a text came, at most the 64 positions"):
        random_decoder(GPT2).loss(tokens, tokens)


def test_parameters_that_do_not_fit_are_refused() -> None:
    given = dict(random_decoder(LLAMA).parameters)
    with pytest.raises(ValueError, match=r"parameters: 'output_norm.weight' of shape \(3,\) came, \(16,\) was wanted"):
        Decoder(LLAMA, {**given, "output_norm.weight": np.ones(3)})
    with pytest.raises(ValueError, match=r"parameters: 'output_norm.weight': nan at index"):
        Decoder(LLAMA, {**given, "output_norm.weight": np.full(16, np.nan)})
    del given["blk.1.ffn_up.weight"]
    with pytest.raises(ValueError, match=r"parameters: 'blk.1.ffn_up.weight' is missing, one of shape \(24, 16\)"):
        Decoder(LLAMA, given)
    with pytest.raises(TypeError, match="config: dict came"):
        Decoder({}, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_heads": 3}, "n_heads: 3 came, a divisor of the width 16"), ({"n_layers": 0}, "n_layers: 0 came")],
)
def test_numbers_of_a_gpt2_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    numbers: dict[str, Any] = {"n_layers": 2, "width": 16, "ffn_width": 24, "vocab_size": 31, "n_heads": 4}
    with pytest.raises(ValueError, match=message):
        GPT2Config(context_length=8, **{**numbers, **changes})
