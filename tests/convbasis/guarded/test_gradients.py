"""The two gradients of conv attention at the paper's level: against differences, and against exact attention's."""

import numpy as np
import pytest

from refattn import dense_attention_backward, dense_attention_forward
from refattn.convbasis import basis_from_starts, oracle
from refattn.convbasis.guarded import gradients as module
from refattn.convbasis.guarded.gradients import approximation_gradient, attention_gradient, kernel_gradients
from refattn.convbasis.guarded.softmax import Softmax
from refattn.convbasis.guarded.units import Units
from refattn.testing import (
    GradientMismatchError,
    attention_inputs,
    check_gradients,
    check_jacobian,
    relative_error,
    rope_structured,
    tolerance,
)

SCALE = 0.5  # widths are 4
TOL = 1e-13


def softmax(q, k, starts, mask):
    upper = basis_from_starts(k, q, starts, scale=SCALE) if mask == "full" else None
    return Softmax(basis_from_starts(q, k, starts, scale=SCALE), upper, TOL)


def problem(n, terms, mask, deviation=1.0, seed=0):
    """Forward and gradient of one head with fixed starts, as the checkers want them."""
    q, k, v = attention_inputs(n, 4, seed=seed, deviation=deviation, d_v=3)
    starts = np.linspace(0, n, terms, endpoint=False).astype(int)
    f = softmax(q, k, starts, mask)
    out = f.apply(v)

    def forward(q, k, v):
        return softmax(q, k, starts, mask).apply(v)

    def gradients(upstream):
        return approximation_gradient(upstream, out, q, k, v, f, SCALE)._asdict()

    return forward, gradients, {"q": q, "k": k, "v": v}


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize(("n", "terms"), [(1, 1), (2, 2), (40, 1), (40, 3), (65, 17), (24, 24)], ids=str)
def test_approximation_gradient_passes_central_differences(n, terms, mask):
    check_gradients(*problem(n, terms, mask), rtol=tolerance("differences").rtol)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_approximation_gradient_passes_where_rows_are_recomputed(mask):
    forward, gradients, inputs = problem(60, 5, mask, deviation=5.0)
    starts = np.linspace(0, 60, 5, endpoint=False).astype(int)
    assert softmax(inputs["q"], inputs["k"], starts, mask).lost.size > 0
    check_gradients(forward, gradients, inputs, rtol=tolerance("differences").rtol, step=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_approximation_gradient_passes_a_full_jacobian(mask):
    check_jacobian(*problem(12, 3, mask), rtol=tolerance("differences").rtol)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_both_gradients_are_those_of_exact_attention_with_as_many_terms_as_columns(mask):
    n = 30
    q, k, v = attention_inputs(n, 4, seed=1, deviation=2.0)
    upstream = np.random.default_rng(1).standard_normal(v.shape)
    f = softmax(q, k, np.arange(n), mask)
    _, cache = dense_attention_forward(q, k, v, mask=mask, scale=SCALE)
    exact = dense_attention_backward(upstream, cache)
    for gradient in (attention_gradient, approximation_gradient):
        found = gradient(upstream, f.apply(v), q, k, v, f, SCALE)
        for ours, theirs in zip(found, exact, strict=True):
            assert relative_error(ours, theirs) < 1e-10


@pytest.mark.parametrize("terms", [1, 4, 17], ids="k={}".format)
def test_attention_gradient_is_exact_on_structured_inputs(terms):
    q, k, v, starts = rope_structured(200, 4, starts=terms, seed=terms, deviation=2.0)
    upstream = np.random.default_rng(2).standard_normal(v.shape)
    f = softmax(q, k, starts, "causal")
    _, cache = dense_attention_forward(q, k, v, scale=SCALE)
    found = attention_gradient(upstream, f.apply(v), q, k, v, f, SCALE)
    for ours, theirs in zip(found, dense_attention_backward(upstream, cache), strict=True):
        assert relative_error(ours, theirs) < 1e-10


def test_attention_gradient_approaches_the_exact_one_in_proportion_to_the_noise():
    n, width = 60, 4
    q, k, v, starts = rope_structured(n, width, starts=[0, 20, 40], seed=3)
    rng = np.random.default_rng(3)
    noise, upstream = rng.uniform(-1, 1, (n, n)), rng.standard_normal(v.shape)
    sizes = np.logspace(-6, -2, 9)
    errors = []
    for eps in sizes:
        wide_q, wide_k = np.concatenate([q, eps * noise / SCALE], axis=1), np.concatenate([k, np.eye(n)], axis=1)
        f = softmax(wide_q, wide_k, starts, "causal")
        _, cache = dense_attention_forward(wide_q, wide_k, v, scale=SCALE)
        exact = dense_attention_backward(upstream, cache)
        found = attention_gradient(upstream, f.apply(v), wide_q, wide_k, v, f, SCALE)
        errors.append(relative_error(found.q[:, :width], exact.q[:, :width]))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 0.9 <= slope <= 1.1


def test_kernel_gradient_is_the_sum_along_the_diagonals_of_each_segment():
    """From the definition: du_i[t] = Σ_{j in segment i} f_ij (G_i · v_j − r_i), with dense f."""
    q, k, v = attention_inputs(20, 4, seed=4)
    starts = np.array([0, 6, 15])
    f = softmax(q, k, starts, "causal")
    upstream = np.random.default_rng(4).standard_normal(v.shape)
    r = (upstream * f.apply(v)).sum(axis=1, keepdims=True)
    w = f.rows(np.arange(20)) * (upstream @ v.T - r)
    expected = np.zeros((3, 20))
    for i in range(20):
        for j in range(i + 1):
            expected[np.searchsorted(starts, j, side="right") - 1, i - j] += w[i, j]
    units = Units(upstream, f.apply(v), v, exponent=0, uneven=False)
    found, _, _ = kernel_gradients(units, units, f)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def scale_forgotten(monkeypatch):
    right = module.ConvGradients
    monkeypatch.setattr(module, "ConvGradients", lambda q, k, v, rows: right(q / SCALE, k / SCALE, v, rows))


def correction_dropped(monkeypatch):
    right = module.kernel_gradients
    monkeypatch.setattr(module, "kernel_gradients", lambda a, b, f: right(a._replace(Y=0 * a.Y), b, f))


def transpose_forgotten(monkeypatch):
    monkeypatch.setattr(Softmax, "transposed_product", Softmax.product)


def tenth_of_a_percent(monkeypatch):
    right = module.kernel_gradients
    monkeypatch.setattr(module, "kernel_gradients", lambda *a: (*(1.001 * du for du in right(*a)[:2]), 0))


def row_shifted(monkeypatch):
    right = module.fft_correlation
    monkeypatch.setattr(module, "fft_correlation", lambda a, b: np.roll(right(a, b), 1))


def start_off_by_one(monkeypatch):
    right = module.segments
    monkeypatch.setattr(module, "segments", lambda g: ((c, min(end + 1, g.n), u) for c, end, u in right(g)))


@pytest.mark.parametrize(
    "plant",
    [scale_forgotten, correction_dropped, transpose_forgotten, tenth_of_a_percent, row_shifted, start_off_by_one],
    ids=lambda plant: plant.__name__,
)
def test_each_planted_error_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(GradientMismatchError):
        check_gradients(*problem(40, 3, "causal"), rtol=tolerance("differences").rtol)


def test_the_size_of_a_gradient_counts_only_the_rows_that_it_comes_from():
    q, k, v, upstream = np.random.default_rng(0).standard_normal((4, 9, 3))
    upstream[[0, 1, 2, 3, 5, 6, 7, 8]] = 0
    basis = basis_from_starts(q, k, np.arange(9), scale=0.5)
    found, size = oracle.attention_gradient(upstream, q, k, v, basis, None, 0.5)
    assert size.q[4].all()
    assert not np.delete(size.q, 4, axis=0).any()
    assert size.k[:5].all()
    assert not size.k[5:].any()
    assert (np.abs(found.q) <= size.q).all()
    assert (np.abs(found.k) <= size.k).all()
