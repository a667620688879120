"""Bounds hold, on structured, noisy, random and adversarial input, and are as tight as they say."""

import math

import numpy as np
import pytest
from lengths import long

from refattn import ConvBasis, conv_attention, decompose, dense_attention, recover
from refattn._fft import fast_length
from refattn.convbasis import (
    basis_from_starts,
    closeness,
    conv_product,
    convolution_error,
    inference_bound,
    logit_residual,
    posterior_bound,
    sharp_bound,
)
from refattn.testing import attention_inputs, rope_structured


@pytest.mark.parametrize("n_basis", [1, 5, 40, 80], ids="k={}".format)
@pytest.mark.parametrize("deviation", [0.01, 0.3, 1.0, 4.0], ids="deviation={}".format)
def test_a_posteriori_bounds_hold_row_by_row_on_any_input(deviation, n_basis):
    q, k, v = attention_inputs(80, 8, seed=int(100 * deviation), deviation=deviation)
    basis = recover(q, k, n_basis=n_basis, probe=1, delta=1e-9)
    error = np.abs(conv_attention(q, k, v, basis=basis) - dense_attention(q, k, v)).max(axis=-1)
    residual = logit_residual(q, k, basis)
    v_max = np.abs(v).max()
    for row in range(80):
        sharp, posterior = sharp_bound(residual[row], v_max), posterior_bound(residual[row], v_max)
        assert error[row] <= sharp + 1e-12
        assert sharp <= posterior + 1e-12


def test_residual_is_the_largest_causal_difference_of_the_logits():
    q, k, _ = attention_inputs(50, 8, seed=3, lead=(4,), kv_lead=(2,))
    basis = recover(q, k, n_basis=6, probe=2, delta=0.1)
    logits = np.tril(q @ np.repeat(k, 2, axis=0).swapaxes(-1, -2)) / np.sqrt(8)
    expected = np.abs(logits - np.tril(basis.to_dense())).max(axis=-1)
    np.testing.assert_allclose(logit_residual(q, k, basis), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("residual", [1e-3, 0.1, 1.0, 5.0], ids="r={}".format)
def test_two_keys_attain_the_sharp_bound(residual):
    """Logits (r, −r)/2 against (−r, r)/2 around equal weights, values ±1: the distance is 2 tanh(r/2)."""
    exact = np.array([[0.0, 0.0], [-residual / 2, residual / 2]])
    other = np.array([[0.0, 0.0], [residual / 2, -residual / 2]])
    q, k = np.zeros((2, 1)), np.zeros((2, 1))
    v = np.array([[1.0], [-1.0]])
    outputs = [conv_attention(q, k, v, basis=decompose(h)) for h in (exact, other)]
    assert np.abs(outputs[0] - outputs[1]).max() == pytest.approx(sharp_bound(residual, 1.0), rel=1e-9)


def test_the_theorems_bound_is_the_a_posteriori_bound_at_two_eps():
    assert inference_bound(0.25, 3.0) == posterior_bound(0.5, 3.0) == pytest.approx(6 * (math.exp(0.5) - 1))


def test_bounds_beyond_the_range_of_exp_are_infinite_or_capped():
    assert posterior_bound(1e4, 1.0) == math.inf
    assert sharp_bound(1e4, 1.5) == 3.0


KERNELS = {
    "normal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "wide": lambda rng, n: np.exp(8 * rng.standard_normal(n) - 30),
    "constant": lambda rng, n: np.ones(n),
    "decaying": lambda rng, n: np.exp(-np.linspace(0, 60, n)),
    "one-hot": lambda rng, n: np.eye(n)[n // 3],
    "alternating": lambda rng, n: 1.0 + (-1.0) ** np.arange(n),
    "rotary": lambda rng, n: np.exp(4 * np.cos(0.37 * np.arange(n))),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("values", ["normal", "ones", "sinusoid"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [64, 1000, *long(4096, 5041)], ids="n={}".format)
def test_the_rounding_estimate_covers_the_error_of_every_entry(n, kernel, values, dtype):
    rng = np.random.default_rng(n)
    a = KERNELS[kernel](rng, n).astype(dtype)
    x = {
        "normal": rng.standard_normal(n),
        "ones": np.ones(n),
        "sinusoid": np.sin(2 * np.pi * 5 * np.arange(n) / n),
    }[values].astype(dtype)
    rows = range(0, n, 7)
    exact = np.array([math.fsum(a[: i + 1].astype(float) * x[i::-1].astype(float)) for i in rows])
    a64, x64 = a.astype(float), x.astype(float)
    length = fast_length(2 * n - 1)
    bound = convolution_error(
        length,
        dtype,
        factors=np.linalg.norm(a64) * np.linalg.norm(x64),
        product=np.linalg.norm(np.convolve(a64, x64)),
    )
    few_units = 4 * np.finfo(dtype).eps * np.abs(exact)
    assert (np.abs(conv_product(a, x)[::7] - exact) <= bound + few_units).all()


@pytest.mark.parametrize(("fraction", "holds"), [(0.9, True), (1.1, False)], ids=["within", "beyond"])
def test_closeness_measures_the_noise_and_compares_it_with_the_theorems_limit(fraction, holds):
    n, probe = 60, 4
    q, k, _, starts = rope_structured(n, 8, starts=[0, 20, 40], seed=0)
    basis = basis_from_starts(q, k, starts, scale=1.0)
    eps = fraction * basis.nondegeneracy(probe) / (5 * probe)
    noise = np.random.default_rng(0).choice([-eps, eps], (n, n))
    q, k = np.concatenate([q, noise], axis=1), np.concatenate([k, np.eye(n)], axis=1)
    found = closeness(q, k, basis, probe=probe, scale=1.0)
    assert found.eps == pytest.approx(eps, rel=1e-9)
    assert found.delta == basis.nondegeneracy(probe)
    assert found.holds is holds


@pytest.mark.parametrize("bound", [inference_bound, posterior_bound, sharp_bound], ids=lambda f: f.__name__)
def test_negative_arguments_are_refused(bound):
    with pytest.raises(ValueError, match=r"-1.0 came, at least 0.0"):
        bound(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"v_max: -1.0 came"):
        bound(1.0, -1.0)


def test_a_basis_of_other_heads_is_refused():
    q, k, _ = attention_inputs(4, 2, seed=0, lead=(2,))
    with pytest.raises(ValueError, match=r"basis: heads \(\) and n = 3 came, \(2,\) and n = 4"):
        logit_residual(q, k, ConvBasis([0], np.ones((1, 3))))
