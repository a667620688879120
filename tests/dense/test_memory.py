"""What goes in and what comes out: views, strides, byte order, ownership."""

import numpy as np
import pytest
from dense_definition import BIAS, BOOLEAN, LAYOUTS, ids, inputs, normal

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.testing import row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")

VIEWS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, axis=-1), 3, axis=-2)[..., ::3, ::2],
    "reversed": lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "heads behind rows": lambda a: a.swapaxes(0, -2).copy().swapaxes(0, -2),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), dtype=a.dtype, offset=1).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("view", ids(VIEWS))
def test_strides_order_and_byte_order_of_the_inputs_do_not_matter(view):
    arrays = inputs("grouped", 6, 6)
    viewed = [VIEWS[view](a) for a in arrays]
    out, cache = dense_attention_forward(*arrays)
    same, same_cache = dense_attention_forward(*viewed)
    rtol = tolerance("reordered").rtol
    assert same.dtype == np.float64
    assert same.dtype.isnative
    assert row_errors(same, out).max() <= rtol
    (dout,) = normal(out.shape, seed=1)
    expected = dense_attention_backward(dout, cache)
    for one, other in zip(dense_attention_backward(VIEWS[view](dout), same_cache), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def test_zero_stride_inputs_are_read_as_what_they_show():
    q, k, v = (np.broadcast_to(a, (4, 6, 3)) for a in normal((6, 3), (4, 1, 3), (4, 6, 1)))
    out, cache = dense_attention_forward(q, k, v)
    copied, copied_cache = dense_attention_forward(q.copy(), k.copy(), v.copy())
    np.testing.assert_allclose(out, copied, rtol=0, atol=tolerance("rounding").rtol * np.abs(v).max())
    size = 3 * np.abs(out).max() * np.abs(v).max() * max(np.abs(q).max(), np.abs(k).max(), 1)  # of what is summed up
    for one, other in zip(
        dense_attention_backward(out, cache), dense_attention_backward(out, copied_cache), strict=True
    ):
        assert one.flags.writeable
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance("rounding").rtol * size)


@pytest.mark.parametrize("mask", ["causal", BOOLEAN[:, :5], BIAS[:, :5]], ids=["causal", "boolean", "additive"])
@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_inputs_are_never_written_to(layout, mask):
    q, k, v = inputs(layout, 5, 5)
    dout = np.ones_like(dense_attention(q, k, v))
    mask = mask if isinstance(mask, str) else mask.copy()
    arrays = [a for a in (q, k, v, dout, mask) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    _, cache = dense_attention_forward(q, k, v, mask=mask, softcap=2.0)
    dense_attention_backward(dout, cache)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_results_are_fresh_writeable_and_contiguous(layout):
    arrays = inputs(layout, 4, 4)
    out, cache = dense_attention_forward(*arrays)
    gradients = dense_attention_backward(out, cache)
    for result in (out, *gradients, cache.log_sum_exp):
        assert result.flags.writeable
        assert result.flags.c_contiguous
        assert not any(np.shares_memory(result, a) for a in (*arrays, cache.row_max, cache.row_sum))
    assert [g.shape for g in gradients] == [a.shape for a in arrays]


def test_writing_to_the_output_does_not_change_the_gradients():
    out, cache = dense_attention_forward(*inputs("grouped", 5, 5))
    (dout,) = normal(out.shape, seed=1)
    expected = dense_attention_backward(dout, cache)
    out += 1.0
    assert all(np.array_equal(a, b) for a, b in zip(dense_attention_backward(dout, cache), expected, strict=True))
