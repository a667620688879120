"""Reports about other projects' masks, gradient checks and transforms, with the values that are right here."""

import numpy as np
import pytest

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn._fft import irfft, rfft
from refattn.report import Claim, Measurement, run_claims
from refattn.testing import check_gradients, check_jacobian, row_errors, tolerance

N = 6
Q, K, V = np.random.default_rng(0).standard_normal((3, N, 4))
CHECKS = [pytest.param(check_gradients, id="gradients"), pytest.param(check_jacobian, id="jacobian")]


def test_causal_and_a_mask_apply_together_and_a_row_that_sees_nothing_is_zero():
    """A causal flag that was dropped beside a mask, a mean of all values in a row without a key (ONNX, candle)."""
    keys = np.arange(N) >= 2  # hides the only keys that queries 0 and 1 may see
    out, cache = dense_attention_forward(Q, K, V, mask=("causal", keys))
    assert not out[:2].any()
    right = np.tri(N, dtype=bool) & keys
    assert np.array_equal(out, dense_attention(Q, K, V, mask=right))
    assert not dense_attention_backward(np.ones_like(out), cache).q[:2].any()
    assert np.array_equal(dense_attention(Q, K, V, mask=("causal", np.where(keys, 0.0, -np.inf))), out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_a_mask_times_the_largest_number_leaves_no_nan_in_a_gradient(dtype):
    """A boolean mask multiplied by −finfo.max, rows hidden as a whole (nGPT, PyTorch's memory-efficient attention)."""
    hidden = np.triu(np.ones((N, N), bool), 1)
    hidden[3] = True
    q, k, v = (a.astype(dtype) for a in (Q, K, V))
    mask = hidden.astype(dtype) * -np.finfo(dtype).max
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    assert all(np.isfinite(g).all() for g in dense_attention_backward(out, cache))
    rest = np.arange(N) != 3
    assert row_errors(out[rest], dense_attention(q, k, v)[rest]).max() <= tolerance("reordered", dtype).rtol
    full = dense_attention(q, k, v, mask="full")
    assert row_errors(out[3:4], full[3:4]).max() <= tolerance("reordered", dtype).rtol


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("layout", ["expanded", "transposed", "reversed", "strided"])
def test_a_gradient_check_takes_inputs_as_they_lie(check, layout):
    """Inputs that overlap themselves or are not contiguous, whose differences were wrong (PyTorch, torch-totem)."""
    x = {
        "expanded": np.broadcast_to(np.float64(0.7), (3, 4)),
        "transposed": np.random.default_rng(1).standard_normal((4, 3)).T,
        "reversed": np.random.default_rng(1).standard_normal((3, 4))[::-1, ::-1],
        "strided": np.random.default_rng(1).standard_normal((6, 8))[::2, ::2],
    }[layout]
    weights = np.arange(12.0).reshape(3, 4)
    check(lambda x: weights * x**3, lambda g: {"x": 3 * weights * x**2 * g}, {"x": x}, rtol=1e-7)
    with pytest.raises(AssertionError):
        check(lambda x: weights * x**3, lambda g: {"x": 0 * g}, {"x": x}, rtol=1e-7)


def test_an_inverse_transform_leaves_its_input_alone():
    """FFTW's inverse of real data writes to what it is given (pyFFTW)."""
    x = np.random.default_rng(2).standard_normal((3, 64))
    spectrum = rfft(x, 64)
    before = spectrum.copy()
    for _ in range(3):
        np.testing.assert_allclose(irfft(spectrum, 64), x, rtol=0, atol=1e-14)
        assert np.array_equal(spectrum, before)


def test_what_failed_is_not_what_was_left_out():
    """A benchmark that failed and one that was skipped were both shown as NaN (asv)."""
    claims = [
        Claim("a.nan", "ours", "x", "looking", lambda quick: Measurement("none", float("nan"), at_most=1.0)),
        Claim("a.broke", "ours", "x", "looking", lambda quick: 1 / 0),
        Claim("a.absent", "ours", "x", "looking", lambda quick: 1 / 0, needs=("no_such_package",)),
    ]
    report = run_claims(claims, quick=True)
    assert [(row.verdict, row.failed) for row in report.rows] == [
        ("does not hold", True),
        ("not run", True),
        ("not run", False),
    ]
