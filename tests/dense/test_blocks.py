"""The block of rows changes no result."""

import numpy as np
import pytest
from dense_definition import MASKS, ids, inputs, normal

from refattn import dense_attention_backward, dense_attention_forward
from refattn.testing import row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("block", [1, 3, 4, 6, 7, 100, None], ids=str)
@pytest.mark.parametrize("mask", ids(MASKS))
def test_result_and_gradients_do_not_depend_on_the_block(mask, block):
    condition, n_q, n_k, _ = MASKS[mask]
    q, k, v = inputs("grouped", n_q, n_k)
    whole, whole_cache = dense_attention_forward(q, k, v, mask=condition, softcap=3.0, block=n_q)
    out, cache = dense_attention_forward(q, k, v, mask=condition, softcap=3.0, block=block)
    (dout,) = normal(out.shape, seed=9)
    rtol = tolerance("reordered").rtol
    assert row_errors(out, whole).max() <= rtol
    np.testing.assert_allclose(cache.log_sum_exp, whole_cache.log_sum_exp, rtol=rtol)
    for one, other in zip(
        dense_attention_backward(dout, cache), dense_attention_backward(dout, whole_cache), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def test_default_block_splits_long_inputs_and_repeats_bit_for_bit():
    q, k, v = normal((1500, 4), (1500, 4), (1500, 4))
    out, cache = dense_attention_forward(q, k, v)
    assert cache.block < 1500
    again, cache_again = dense_attention_forward(q, k, v)
    assert out.tobytes() == again.tobytes()
    for one, other in zip(
        dense_attention_backward(out, cache), dense_attention_backward(out, cache_again), strict=True
    ):
        assert one.tobytes() == other.tobytes()
