"""The edges of the number format."""

import mpmath
import numpy as np
import pytest
from dense_definition import inputs, normal

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.testing import tolerance

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("softcap", [None, 1e-3, 1e3], ids=str)
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-300, 1.0, 1e2, 1e75], ids=str)
def test_finite_inputs_give_finite_results_without_a_floating_point_signal(size, softcap):
    q, k, v, dout = (size * a for a in normal(*[(6, 4)] * 4))
    with np.errstate(all="raise"):
        out, cache = dense_attention_forward(q, k, v, softcap=softcap)
        gradients = dense_attention_backward(dout, cache)
    assert all(np.isfinite(a).all() for a in (out, *gradients))


@pytest.mark.parametrize("size", [1e308, -1e308], ids=str)
def test_values_near_the_largest_number_do_not_overflow_in_their_average(size):
    q, k, _ = inputs("one head", 6, 6)
    out = dense_attention(q, k, np.full((6, 2), size))
    np.testing.assert_allclose(out, size, rtol=tolerance("rounding").rtol)


def test_logits_further_apart_than_the_largest_number_give_one_hot_weights():
    q, k = np.array([[1e308], [-1e308]]), np.array([[1.0], [-1.0]])
    v = np.array([[1.0], [2.0]])
    assert np.array_equal(dense_attention(q, k, v, mask="full"), [[1.0], [2.0]])


def test_a_finite_mask_as_low_as_float32_allows_hides_and_stays_finite():
    q, k, v = inputs("one head", 6, 6, dtype=np.float32)
    low = np.where(np.tri(6, dtype=bool), 0, np.finfo(np.float32).min)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(dense_attention(q, k, v, mask=low.astype(dtype)), dense_attention(q, k, v))


@pytest.mark.parametrize("cap", [1.0, 10.0], ids=str)
def test_a_saturated_softcap_keeps_the_relative_accuracy_of_its_small_gradients(cap):
    q, k, v = np.full((1, 1), 12.0 * cap), np.array([[1.0], [1.25]]), np.array([[0.0], [1.0]])
    _, cache = dense_attention_forward(q, k, v, mask="full", softcap=cap, scale=1.0)
    gradient = dense_attention_backward(np.ones((1, 1)), cache).q.item()
    with mpmath.workdps(50):

        def weight(x):
            first, second = (mpmath.exp(cap * mpmath.tanh(x * key / cap)) for key in (1, mpmath.mpf("1.25")))
            return second / (first + second)

        assert gradient == pytest.approx(float(mpmath.diff(weight, 12 * cap)), rel=1e-13)
