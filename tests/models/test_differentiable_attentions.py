"""Every attention that trains: its gradient through a whole decoder is the derivative of what the forward computes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from decoders import LLAMA, Batch, random_batch, random_decoder

from refattn.lowrank import PolynomialFeatures
from refattn.models import (
    ConvAttention,
    Decoder,
    DifferentiableAttention,
    ExactAttention,
    FixedAttention,
    HashingAttention,
    LinearAttention,
    LlamaConfig,
    LowRankAttention,
    RandomBlockAttention,
    RoutingAttention,
    SparseKAttention,
    StridedAttention,
    WindowAttention,
)
from refattn.models.attentions import sparsek as sparsek_module
from refattn.testing import GradientMismatchError, check_gradients

DIFFERENCES = 1e-6
"""Largest difference allowed from central differences, relative."""

ATTENTIONS: dict[str, DifferentiableAttention] = {
    "exact": ExactAttention(),
    "window": WindowAttention(5),
    "window-with-sinks": WindowAttention(4, sinks=2),
    "conv-fixed": ConvAttention(starts=[0, 3, 9]),
    "conv-uniform": ConvAttention(n_basis=6),
    "conv-recovered": ConvAttention(n_basis=6, probe=3, delta=0.01),
    "low-rank": LowRankAttention(features=PolynomialFeatures(6, degree=4, bound=4.0)),
    "linear-elu": LinearAttention(),
    "linear-random": LinearAttention("random", rank=6),
    "strided": StridedAttention(3),
    "fixed": FixedAttention(4, 2),
    "random-blocks": RandomBlockAttention(2, n_window=1, n_random=2, n_global=1),
    "hashing": HashingAttention(4, 2, rounds=2),
    "routing": RoutingAttention(3, 3, decay=0.9),
    "sparsek-kv": SparseKAttention(3, 4, gate="kv"),
    "sparsek-k": SparseKAttention(3, 4, gate="k"),
    "sparsek-v": SparseKAttention(3, 4, gate="v"),
    "sparsek-none": SparseKAttention(3, 4, gate="none"),
    "sparsek-normalised": SparseKAttention(3, 4, normalise=True),
    "sparsek-without-a-window": SparseKAttention(5, 0),
}


def check(attention: DifferentiableAttention, batch: Batch, step: float = 1e-5) -> None:
    """Compare every parameter's gradient with central differences; the step is small, so that kinks are rarely met."""
    model = random_decoder(LLAMA, attention=attention)
    if isinstance(attention, LowRankAttention):  # its features serve small logits
        for layer in (0, 1):
            model.parameters[f"blk.{layer}.attn_q.weight"] /= 4

    def with_parameters(**parameters: Any) -> Any:
        model.parameters.update(parameters)
        return np.array([model.loss(*batch, attention=attention)])

    start = {name: tensor.copy() for name, tensor in model.parameters.items()}
    _, gradients = model.loss_and_gradients(*batch, attention=attention)
    check_gradients(
        with_parameters,
        lambda upstream: {name: upstream[0] * one for name, one in gradients.items()},
        start,
        rtol=DIFFERENCES,
        step=step,
        directions=1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_gradient_is_the_derivative_of_the_loss(name: str) -> None:
    check(ATTENTIONS[name], random_batch(shape=(2, 17)))


def _without_the_slope(right: Any) -> Any:
    def wrong(dscores: Any, cache: Any) -> Any:
        found = right(dscores, cache)
        return found._replace(slope=np.zeros_like(found.slope))

    return wrong


def _without_the_input(right: Any) -> Any:
    def wrong(dscores: Any, cache: Any) -> Any:
        found = right(dscores, cache)
        return found._replace(x=np.zeros_like(found.x))

    return wrong


def _without_the_scores(right: Any) -> Any:
    def wrong(dout: Any, cache: Any) -> Any:
        found = right(dout, cache)
        return found._replace(scores=0.5 * found.scores)

    return wrong


@pytest.mark.parametrize(
    ("operation", "make", "spoiled"),
    [
        pytest.param("sparsek_scores_backward", _without_the_slope, "scorer.slope", id="slope-forgotten"),
        pytest.param("sparsek_scores_backward", _without_the_input, "attn_norm", id="input-forgotten"),
        pytest.param("sparsek_attention_backward", _without_the_scores, "scorer.weight", id="gates-halved"),
    ],
)
def test_a_planted_error_of_the_scorer_is_found(
    monkeypatch: pytest.MonkeyPatch, operation: str, make: Any, spoiled: str
) -> None:
    monkeypatch.setattr(sparsek_module, operation, make(getattr(sparsek_module, operation)))
    model = random_decoder(LLAMA, attention=ATTENTIONS["sparsek-kv"])
    with pytest.raises(GradientMismatchError):
        check(ATTENTIONS["sparsek-kv"], random_batch(shape=(2, 17)))
    assert any(spoiled in name for name in model.parameters)


def test_straight_through_gates_change_the_scorers_gradient_alone() -> None:
    """Gates of one in the forward: the output is that without gates; what differs comes through the scores."""
    one_layer = LlamaConfig(**{**LLAMA.__dict__, "n_layers": 1})
    through, without = SparseKAttention(3, 4, hard=True), SparseKAttention(3, 4, gate="none")
    model, batch = random_decoder(one_layer, attention=through), random_batch()
    (loss, hard), (same, none) = (model.loss_and_gradients(*batch, attention=one) for one in (through, without))
    assert loss == same
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down"):
        np.testing.assert_allclose(hard[f"blk.0.{name}.weight"], none[f"blk.0.{name}.weight"], rtol=1e-12, atol=1e-15)
    for name in ("blk.0.scorer.weight", "blk.0.scorer.slope"):
        assert not none[name].any()
        assert np.abs(hard[name]).max() > 1e-6


def test_both_gradients_of_conv_attention_are_exact_attentions_where_the_basis_is_exact() -> None:
    model, batch = random_decoder(LLAMA), random_batch()
    _, exact = model.loss_and_gradients(*batch)
    for gradient in ("approximation", "attention"):
        _, found = model.loss_and_gradients(*batch, attention=ConvAttention(n_basis=20, gradient=gradient))
        for name, one in exact.items():
            np.testing.assert_allclose(found[name], one, rtol=1e-8, atol=1e-11)


def test_the_two_gradients_of_conv_attention_differ_where_it_is_not() -> None:
    model, batch = random_decoder(LLAMA), random_batch()
    (one, _), (other, _) = (
        (found["blk.0.attn_q.weight"], loss)
        for loss, found in (
            model.loss_and_gradients(*batch, attention=ConvAttention(n_basis=4, gradient=gradient))
            for gradient in ("approximation", "attention")
        )
    )
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_uniform_starts_are_spread_over_the_text_and_recovered_ones_are_searched_for() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 12, 4))
    _, cache = ConvAttention(n_basis=3).forward(0, q, k, v)
    assert cache.basis.starts.tolist() == [[0, 4, 8]] * 2
    _, cache = ConvAttention(n_basis=3, probe=1, delta=1e-9).forward(0, q, k, v)
    assert cache.basis.starts.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    "attention",
    [SparseKAttention(16, 16), WindowAttention(16, 2), ConvAttention(n_basis=4)],
    ids=["sparsek", "window", "conv"],
)  # fmt: skip
def test_no_array_of_n_by_n_is_made(attention: DifferentiableAttention) -> None:
    n = 2048
    config = LlamaConfig(**{**LLAMA.__dict__, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1})
    model = Decoder.initial(config, 0, attention=attention)
    tokens = np.random.default_rng(0).integers(0, 31, (1, n))
    model.loss_and_gradients(tokens, tokens, attention=attention)  # what is compiled, is
    tracemalloc.start()
    model.loss_and_gradients(tokens, tokens, attention=attention)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * n * n / 3  # an array of n × n in float32 takes three times that


def test_a_scorer_that_the_model_lacks_is_asked_for() -> None:
    q = np.ones((1, 3, 2))
    with pytest.raises(ValueError, match=r"parameters: 'scorer.weight', 'scorer.slope' or the layer's input a were"):
        SparseKAttention(1, 1)(0, q, q, q)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WindowAttention(0), ValueError, "window: 0 came"),
        (lambda: WindowAttention(1, sinks=-1), ValueError, "sinks: -1 came"),
        (lambda: SparseKAttention(-1), ValueError, "n_select: -1 came"),
        (lambda: SparseKAttention(1, gate="q"), ValueError, "gate: 'q' came"),
        (lambda: SparseKAttention(1, hard=1), TypeError, "hard: 1 came"),  # type: ignore[arg-type]
        (lambda: ConvAttention(), TypeError, "starts, n_basis: neither came"),
        (lambda: ConvAttention(starts=[0], n_basis=1), TypeError, "starts, n_basis: both came"),
        (lambda: ConvAttention(starts=[1, 2]), ValueError, "starts: .* ascending from 0"),
        (lambda: ConvAttention(starts=[0.0]), TypeError, "starts: dtype float64"),
        (lambda: ConvAttention(n_basis=2, probe=1), TypeError, "probe, delta: "),
        (lambda: ConvAttention(starts=[0], probe=1, delta=1.0), TypeError, "probe, delta: "),
        (lambda: ConvAttention(n_basis=2, eps=0.1), TypeError, "eps: "),
        (lambda: ConvAttention(n_basis=2, gradient="exact"), ValueError, "gradient: 'exact' came"),
        (lambda: LowRankAttention(), TypeError, "features, error: neither came"),
        (lambda: LowRankAttention(error=1.0), ValueError, "error: 1.0 came"),
        (lambda: LinearAttention("relu"), ValueError, "features: 'relu' came"),
        (lambda: LinearAttention(rank=4), TypeError, "rank, seed: 4, None came"),
        (lambda: StridedAttention(0), ValueError, "stride: 0 came"),
        (lambda: FixedAttention(2, 3), ValueError, "summaries: 3 came"),
        (lambda: RandomBlockAttention(0), ValueError, "block: 0 came"),
        (lambda: HashingAttention(3, 1), ValueError, "n_buckets: 3 came"),
        (lambda: RoutingAttention(2, 2, decay=0.0), ValueError, "decay: 0.0 came"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_starts_beyond_the_text_are_refused() -> None:
    q = np.ones((1, 3, 2))
    with pytest.raises(ValueError, match="starts: 5 came, columns below the 3"):
        ConvAttention(starts=[0, 5])(0, q, q, q)
