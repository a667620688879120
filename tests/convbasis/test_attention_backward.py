"""Gradients of conv attention, the public operation: fast against paper, oracle and central differences."""

import numpy as np
import pytest

from refattn import (
    _fft,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn._threads import set_thread_count
from refattn.convbasis import Plan, basis_from_starts
from refattn.convbasis.fast import gradients as fast_gradients
from refattn.convbasis.fast.softmax import FastSoftmax
from refattn.testing import (
    GradientMismatchError,
    attention_inputs,
    check_gradients,
    check_jacobian,
    relative_error,
    rope_structured,
    row_errors,
    tolerance,
)

GRADIENTS = ["approximation", "attention"]
PLANS = {"transform": Plan("block transform", 16), "direct": Plan("direct"), "chosen": None}


def problem(n, terms, mask, method="fast", plan=None, deviation=1.0, **shapes):
    """Forward and gradient as the checkers want them; T = 1 and δ = 0 fix the starts to the first columns."""
    q, k, v = attention_inputs(n, 4, seed=n + terms, deviation=deviation, d_v=3, **shapes)
    options = {"n_basis": terms, "probe": 1, "delta": 0, "mask": mask, "method": method, "plan": plan}
    _, cache = conv_attention_forward(q, k, v, **options)
    return (
        lambda q, k, v: conv_attention(q, k, v, **options),
        lambda g: conv_attention_backward(g, cache)._asdict(),
        {"q": q, "k": k, "v": v},
    )


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize(("n", "terms"), [(1, 1), (2, 2), (40, 1), (40, 3), (65, 17), (24, 24)], ids=str)
def test_fast_approximation_gradient_passes_central_differences(n, terms, mask, plan):
    check_gradients(*problem(n, terms, mask, plan=plan), rtol=tolerance("differences").rtol, step=3e-4)


@pytest.mark.parametrize("method", ["paper", "oracle"])
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_the_other_methods_pass_central_differences(method, mask):
    check_gradients(*problem(33, 5, mask, method), rtol=tolerance("differences").rtol, step=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_fast_approximation_gradient_passes_a_full_jacobian(mask):
    check_jacobian(*problem(12, 3, mask, plan=Plan("block transform", 4)), rtol=tolerance("differences").rtol)


def test_grouped_and_broadcast_heads_pass_central_differences():
    shapes = {"lead": (2, 4), "kv_lead": (1, 2)}
    check_gradients(*problem(20, 3, "causal", plan=PLANS["transform"], **shapes), rtol=1e-7, step=3e-4)


@pytest.mark.parametrize("plan", [PLANS["transform"], PLANS["direct"]], ids=["transform", "direct"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("deviation", [1.0, 4.0, 8.0, 16.0], ids="deviation={}".format)
def test_fast_equals_paper_rows_recomputed_or_not(deviation, mask, gradient, plan):
    n = 130
    q, k, v = attention_inputs(n, 4, seed=5, deviation=deviation, lead=(2,), kv_lead=(1,), d_v=3)
    upstream = np.random.default_rng(5).standard_normal((2, n, 3))
    options = {"n_basis": 6, "probe": 4, "delta": 0.5, "mask": mask}
    found, expected = (
        conv_attention_backward(upstream, conv_attention_forward(q, k, v, **options, **how)[1], gradient=gradient)
        for how in ({"plan": plan}, {"method": "oracle"})
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("terms", [1, 4, 17], ids="k={}".format)
def test_attention_gradient_is_exact_on_structured_inputs(terms):
    q, k, v, starts = rope_structured(300, 8, starts=terms, seed=terms, deviation=2.0)
    upstream = np.random.default_rng(0).standard_normal(v.shape)
    _, cache = conv_attention_forward(q, k, v, n_basis=terms, probe=1, delta=1e-9, plan=Plan("block transform", 32))
    np.testing.assert_array_equal(cache.basis.starts, starts)
    exact = dense_attention_backward(upstream, dense_attention_forward(q, k, v)[1])
    for ours, theirs in zip(conv_attention_backward(upstream, cache, gradient="attention"), exact, strict=True):
        assert relative_error(ours, theirs) < 1e-10


def float32_errors(seed):
    """Errors of the float32 gradients over those of a plain float32 backward, by name."""
    q, k, v, _ = rope_structured(500, 64, starts=4, seed=seed, dtype=np.float32)
    upstream = np.random.default_rng(1).standard_normal(v.shape).astype(np.float32)
    options = {"n_basis": 4, "probe": 1, "delta": 1e-3, "plan": Plan("block transform", 64)}
    _, cache = conv_attention_forward(q, k, v, **options)
    found = conv_attention_backward(upstream, cache, gradient="attention")
    wide = [x.astype(np.float64) for x in (q, k, v)]
    exact = dense_attention_backward(upstream.astype(np.float64), dense_attention_forward(*wide)[1])
    plain = dense_attention_backward(upstream, dense_attention_forward(q, k, v)[1])
    assert all(x.dtype == np.float32 for x in found)
    assert row_errors(found.v, exact.v).max() < 1e-3
    return {
        name: relative_error(getattr(found, name), getattr(exact, name))
        / relative_error(getattr(plain, name), getattr(exact, name))
        for name in ("q", "k", "v")
    }


@pytest.mark.slow
def test_float32_is_within_twice_the_error_of_a_plain_float32_backward():
    assert max(float32_errors(seed=1).values()) <= (2 if _fft.backend() == "pyfftw" else 2.2)  # SciPy's transforms: 2.1


@pytest.mark.parametrize("seed", range(2, 6), ids="seed {}".format)
def test_float32_on_other_inputs_where_the_gradient_of_q_may_exceed_twice(seed):
    errors = float32_errors(seed)
    assert max(errors["k"], errors["v"]) <= 2
    assert errors["q"] <= 2.5


@pytest.mark.slow
def test_the_same_bits_for_one_and_two_threads_and_from_run_to_run():
    q, k, v, _ = rope_structured(3000, 16, starts=5, seed=2, deviation=3.0, dtype=np.float32)
    upstream = np.random.default_rng(2).standard_normal(v.shape).astype(np.float32)
    runs = []
    try:
        for threads in (1, 2, 2):
            set_thread_count(threads)
            options = {"n_basis": 5, "probe": 1, "delta": 1e-3, "plan": Plan("block transform", 128)}
            _, cache = conv_attention_forward(q, k, v, **options)
            runs.append([conv_attention_backward(upstream, cache, gradient=g) for g in GRADIENTS])
    finally:
        set_thread_count(None)
    for other in runs[1:]:
        for ours, first in zip(other, runs[0], strict=True):
            for a, b in zip(ours, first, strict=True):
                np.testing.assert_array_equal(a, b)


def test_writing_to_the_output_changes_no_gradient():
    q, k, v = attention_inputs(30, 4, seed=3)
    out, cache = conv_attention_forward(q, k, v, n_basis=3, probe=1, delta=0)
    before = conv_attention_backward(np.ones_like(out), cache)
    out += 100.0
    for a, b in zip(conv_attention_backward(np.ones_like(out), cache), before, strict=True):
        np.testing.assert_array_equal(a, b)


def tenth_of_a_percent(monkeypatch):
    right = fast_gradients._through_kernels
    monkeypatch.setattr(fast_gradients, "_through_kernels", lambda starts, du, *rest: right(starts, 1.001 * du, *rest))


def row_shifted(monkeypatch):
    right = fast_gradients.kernel_gradient
    monkeypatch.setattr(fast_gradients, "kernel_gradient", lambda *a: (np.roll(right(*a)[0], 1, axis=1), right(*a)[1]))


def correction_dropped(monkeypatch):
    right = fast_gradients._terms
    monkeypatch.setattr(fast_gradients, "_terms", lambda units: right(units._replace(Y=0 * units.Y)))


def start_off_by_one(monkeypatch):
    right = fast_gradients._through_kernels
    monkeypatch.setattr(
        fast_gradients,
        "_through_kernels",
        lambda starts, du, *rest: right(np.minimum(starts + 1, du.shape[1] - 1), du, *rest),
    )


def transpose_forgotten(monkeypatch):
    right = FastSoftmax.finish_transposed

    def wrong(self, w, found, *rest):
        report = right(self, w, found, *rest)
        found.y[...] = self.product(w)[0]
        return report

    monkeypatch.setattr(FastSoftmax, "finish_transposed", wrong)


def chunk_scale_dropped(monkeypatch):
    module = __import__("refattn.convbasis.fast.correlations", fromlist=["_"])
    right = module.BlockProduct.scales
    monkeypatch.setattr(module.BlockProduct, "scales", lambda self, i, exponents: right(self, i, 0 * exponents))


@pytest.mark.parametrize(
    "plant",
    [tenth_of_a_percent, row_shifted, correction_dropped, start_off_by_one, transpose_forgotten, chunk_scale_dropped],
    ids=lambda plant: plant.__name__,
)
def test_each_planted_error_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(GradientMismatchError):
        check_gradients(*problem(60, 3, "causal", plan=Plan("block transform", 8)), rtol=1e-7, step=3e-4)


@pytest.mark.parametrize("method", ["fast", "paper"])
def test_bad_input_is_named(method):
    q, k, v = attention_inputs(10, 4, seed=0)
    out, cache = conv_attention_forward(q, k, v, n_basis=2, probe=1, delta=0, method=method)
    with pytest.raises(ValueError, match=r"dout: shape \(9, 4\) came, the output's \(10, 4\)"):
        conv_attention_backward(out[:9], cache)
    with pytest.raises(ValueError, match=r"dout: nan at index \(0, 0\)"):
        conv_attention_backward(np.full_like(out, np.nan), cache)
    with pytest.raises(ValueError, match="gradient: 'exact' came, one of 'approximation', 'attention'"):
        conv_attention_backward(out, cache, gradient="exact")
    given = conv_attention_forward(q, k, v, basis=basis_from_starts(q, k, [0, 4]), method=method)[1]
    with pytest.raises(ValueError, match="gradient: 'approximation' came with a basis that the caller gave"):
        conv_attention_backward(out, given)
    assert np.isfinite(conv_attention_backward(out, given, gradient="attention").q).all()
