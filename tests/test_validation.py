"""Bad input is refused by an error that names the argument, what came and what was wanted."""

import re

import numpy as np
import pytest

import refattn._validation
import refattn.convbasis
import refattn.lowrank
import refattn.models
import refattn.sparsek
import refattn.testing
from refattn import (
    Causal,
    SlidingWindow,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)

Q, K, V = np.random.default_rng(0).standard_normal((3, 5, 4))
HUGE32 = np.full((5, 4), 1e30, np.float32)


def rows(*shape):
    return np.ones(shape)


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def cases(**table):
    return [pytest.param(*row, id=name) for name, row in table.items()]


class OnAnotherDevice:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("the data is not on the CPU")


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    cases(
        q_scalar=(np.float64(1), K, V, "q: shape () came, (…, n_q, d) was wanted"),
        q_one_axis=(rows(4), K, V, "q: shape (4,) came, (…, n_q, d) was wanted"),
        k_one_axis=(Q, rows(4), V, "k: shape (4,) came, (…, n_k, d) was wanted"),
        v_one_axis=(Q, K, rows(5), "v: shape (5,) came, (…, n_k, d_v) was wanted"),
        no_queries=(rows(0, 4), K, V, "q: shape (0, 4) came with an empty axis, (…, n_q, d) was wanted"),
        no_keys=(Q, rows(0, 4), rows(0, 4), "k: shape (0, 4) came with an empty axis"),
        no_width=(rows(5, 0), rows(5, 0), V, "q: shape (5, 0) came with an empty axis"),
        no_values=(Q, K, rows(5, 0), "v: shape (5, 0) came with an empty axis"),
        no_batch=(rows(0, 5, 4), K, V, "q: shape (0, 5, 4) came with an empty axis"),
        other_width=(Q, rows(5, 3), V, "k: last axis 3 came, q's d = 4 was wanted"),
        other_length=(Q, K, rows(6, 4), "v: 6 rows came, as many as k has (5) were wanted"),
        heads_not_a_multiple=(
            rows(6, 5, 4),
            rows(4, 5, 4),
            rows(4, 5, 4),
            "q: 6 heads (axis -3) came, a multiple of the 4 heads of k and v was wanted",
        ),
        fewer_query_heads=(rows(2, 5, 4), rows(4, 5, 4), V, "q: 2 heads (axis -3) came, a multiple of the 4 heads"),
        k_and_v_heads=(
            rows(4, 5, 4),
            rows(2, 5, 4),
            rows(4, 5, 4),
            "v: leading axes (4,) came, axes that broadcast with those of k (2,) were wanted",
        ),
        batches=(
            rows(2, 1, 5, 4),
            rows(3, 1, 5, 4),
            rows(3, 1, 5, 4),
            "q: leading axes (2, 1) came, axes that broadcast with those of k and v (3, 1) were wanted",
        ),
        batches_of_grouped_heads=(rows(2, 4, 5, 4), rows(3, 2, 5, 4), rows(2, 5, 4), "q: leading axes (2,) came"),
        nan=(put(Q, (3, 1), np.nan), K, V, "q: nan at index (3, 1), finite numbers were wanted (1 of 20 entries are"),
        inf=(Q, put(K, (slice(2, 4), 0), np.inf), V, "k: inf at index (2, 0), finite numbers were wanted (2 of 20"),
        both_infinities=(Q, K, put(put(V, (0, 1), np.inf), (0, 0), -np.inf), "v: -inf at index (0, 0)"),
        nan_in_a_list=(Q.tolist(), [[0.0, np.nan]], [[1.0]], "k: nan at index (0, 1)"),
        ragged=([[1.0, 2.0], [3.0]], K, V, "q: cannot be read as an array of numbers"),
        logits_overflow=(HUGE32, HUGE32, HUGE32, "q, k: the logit of query 0 and key 0 is inf in float32; smaller"),
    ),
)
def test_a_wrong_value_is_refused_by_name(q, k, v, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        dense_attention(q, k, v)


@pytest.mark.parametrize(
    ("value", "message"),
    cases(
        complex=(Q + 0j, "dtype complex128 came, float32 or float64 was wanted"),
        boolean=(Q > 0, "dtype bool came, float32 or float64 was wanted"),
        text=("causal", "dtype <U6 came"),
        bytes=(b"abc", "dtype |S3 came"),
        list_of_text=([["1", "2"]], "dtype <U1 came"),
        objects=(Q.astype(object), "dtype object came"),
        none=(None, "dtype object came"),
        dictionary=({"q": 1}, "dtype object came"),
        generator=((x for x in [1.0]), "dtype object came"),
        dates=(np.zeros((2, 2), "M8[s]"), "dtype datetime64[s] came"),
        records=(np.zeros((2, 2), "f8,i4"), "dtype [('f0', '<f8'), ('f1', '<i4')] came"),
        masked=(np.ma.masked_array(Q, Q > 0), "a masked array came, a plain array was wanted"),
        device=(OnAnotherDevice(), "a OnAnotherDevice came that cannot be read as a NumPy array on the CPU (the data"),
    ),
)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_wrong_kind_of_thing_is_refused_by_name(name, value, message):
    with pytest.raises(TypeError, match="^" + re.escape(f"{name}: {message}")):
        dense_attention(**{"q": Q, "k": K, "v": V, name: value})


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double on this platform")
def test_precision_beyond_float64_is_refused_and_not_lost_silently():
    with pytest.raises(TypeError, match=r"^k: dtype float(96|128) came, float32 or float64 was wanted"):
        dense_attention(Q, K.astype(np.longdouble), V)
    with pytest.raises(TypeError, match=r"^mask: ndarray of dtype float(96|128) came"):
        dense_attention(Q, K, V, mask=np.zeros((5, 5), np.longdouble))


def test_memory_running_out_is_not_called_a_wrong_type():
    class TooLarge:
        def __array__(self, dtype=None, copy=None):
            raise MemoryError

    with pytest.raises(MemoryError):
        dense_attention(TooLarge(), K, V)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    cases(
        block_0=({"block": 0}, ValueError, "block: 0 came, at least 1 was wanted"),
        block_negative=({"block": -1}, ValueError, "block: -1 came, at least 1 was wanted"),
        block_true=({"block": True}, TypeError, "block: True came, an integer was wanted"),
        block_numpy_true=({"block": np.True_}, TypeError, f"block: {np.True_!r} came, an integer was wanted"),
        block_fraction=({"block": 1.5}, TypeError, "block: 1.5 came, an integer was wanted"),
        block_whole_float=({"block": 2.0}, TypeError, "block: 2.0 came, an integer was wanted"),
        block_text=({"block": "2"}, TypeError, "block: '2' came, an integer was wanted"),
        scale_nan=({"scale": np.nan}, ValueError, "scale: nan came, a finite number was wanted"),
        scale_inf=({"scale": np.inf}, ValueError, "scale: inf came, a finite number was wanted"),
        scale_text=({"scale": "0.5"}, TypeError, "scale: '0.5' came, a real number was wanted"),
        scale_bytes=({"scale": b"0.5"}, TypeError, "scale: b'0.5' came, a real number was wanted"),
        scale_true=({"scale": True}, TypeError, "scale: True came, a real number was wanted"),
        scale_complex=({"scale": 1 + 2j}, TypeError, "scale: (1+2j) came, a real number was wanted"),
        scale_numpy_complex=({"scale": np.complex64(1)}, TypeError, "scale: (1+0j) came, a real number was wanted"),
        scale_array=({"scale": np.array([0.5])}, TypeError, "scale: array([0.5]) came, a real number was wanted"),
        scale_beyond_float64=({"scale": 10**400}, ValueError, "scale: a number too large for float64 came"),
        softcap_0=({"softcap": 0}, ValueError, "softcap: 0.0 came, a number above 0 was wanted"),
        softcap_negative=({"softcap": -1.0}, ValueError, "softcap: -1.0 came, a number above 0 was wanted"),
        softcap_nan=({"softcap": np.nan}, ValueError, "softcap: nan came, a finite number was wanted"),
        softcap_subnormal=({"softcap": 5e-324}, ValueError, "softcap: 5e-324 came, at least 2.2250738585072014e-308"),
    ),
)
def test_a_bad_option_is_refused_by_name(options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        dense_attention(Q, K, V, **options)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    cases(
        unknown=("casual", ValueError, "mask: 'casual' came, one of 'causal', 'full' was wanted"),
        unknown_in_tuple=(("full", "window"), ValueError, "mask: 'window' came, one of 'causal', 'full' was wanted"),
        none=(None, TypeError, "mask: NoneType of dtype object came; 'causal', 'full', Causal, SlidingWindow, "),
        integers=(np.ones((5, 5), int), TypeError, "mask: ndarray of dtype int64 came; 'causal', 'full', Causal"),
        complex=(np.ones((5, 5), complex), TypeError, "mask: ndarray of dtype complex128 came"),
        the_class=(Causal, TypeError, "mask: type of dtype object came"),
        list_of_masks=(["causal", np.ones((5, 5), bool)], ValueError, "mask: cannot be read as an array of numbers"),
        masked=(np.ma.masked_array(np.zeros((5, 5)), np.eye(5)), TypeError, "mask: a masked array came, a plain"),
        shape=(np.ones((5, 4), bool), ValueError, "mask: shape (5, 4) came, one that broadcasts to (5, 5) was wanted"),
        too_many_axes=(
            np.ones((2, 5, 5), bool),
            ValueError,
            "mask: shape (2, 5, 5) came, one that broadcasts to (5, 5)",
        ),
        nan=(put(np.zeros((5, 5)), (1, 2), np.nan), ValueError, "mask: nan at index (1, 2), numbers below +inf were"),
        inf=(put(np.zeros((5, 5)), (4, 0), np.inf), ValueError, "mask: inf at index (4, 0), numbers below +inf were"),
        inf_elsewhere_hidden=(("causal", put(np.zeros((5, 5)), (0, 4), np.inf)), ValueError, "mask: inf at index"),
        unknown_alignment=(Causal("middle"), ValueError, "alignment: 'middle' came, one of 'top-left', 'bottom-right'"),
        alignment_beyond=(Causal(6), ValueError, "alignment: 6 came, at least -5 and at most 5 (n_k) was wanted"),
        alignment_before=(SlidingWindow(1, alignment=-6), ValueError, "alignment: -6 came, at least -5"),
        alignment_fraction=(Causal(0.5), TypeError, "alignment: 0.5 came, an integer was wanted"),
        alignment_true=(Causal(True), TypeError, "alignment: True came, an integer was wanted"),
    ),
)
def test_a_bad_mask_is_refused_by_name(mask, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        dense_attention(Q, K, V, mask=mask)


def test_a_mask_with_the_key_value_heads_is_not_one_for_the_query_heads():
    message = "mask: shape (2, 5, 5) came, one that broadcasts to (4, 5, 5) was wanted"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        dense_attention(rows(4, 5, 4), rows(2, 5, 4), rows(2, 5, 4), mask=np.ones((2, 5, 5), bool))


@pytest.mark.parametrize("mask", ["causal", Causal(), SlidingWindow(2)], ids=["name", "causal", "window"])
def test_causal_masks_of_unequal_lengths_need_an_alignment(mask):
    with pytest.raises(ValueError, match="with 5 queries and 3 keys needs an alignment: 'top-left', 'bottom-right' or"):
        dense_attention(Q, K[:3], V[:3], mask=mask)


def test_a_mask_that_overflows_the_precision_computed_in_is_named():
    low = np.where(np.tri(5, dtype=bool), 0.0, -1e300)
    with pytest.raises(ValueError, match=r"^mask: the logit of query 0 and key 1 is -inf in float32"):
        dense_attention(*(a.astype(np.float32) for a in (Q, K, V)), mask=low)
    assert np.array_equal(dense_attention(Q, K, V, mask=low), dense_attention(Q, K, V))


@pytest.mark.parametrize(
    ("values", "message"),
    cases(
        window_negative=({"window": -1}, "window: -1 came, at least 0 was wanted"),
        sinks_negative=({"window": 1, "sinks": -2}, "sinks: -2 came, at least 0 was wanted"),
    ),
)
def test_a_negative_window_is_refused(values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        SlidingWindow(**values)


@pytest.mark.parametrize("window", [1.0, "3", True, None], ids=repr)
def test_a_window_that_is_no_integer_is_refused(window):
    with pytest.raises(TypeError, match=re.escape(f"window: {window!r} came, an integer was wanted")):
        SlidingWindow(window)


# --- the upstream gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dout", "error", "message"),
    cases(
        shape=(rows(5, 3), ValueError, "dout: shape (5, 3) came, the output's (5, 4) was wanted"),
        broadcastable=(rows(1, 4), ValueError, "dout: shape (1, 4) came, the output's (5, 4) was wanted"),
        scalar=(1.0, ValueError, "dout: shape () came, the output's (5, 4) was wanted"),
        nan=(put(V, (0, 2), np.nan), ValueError, "dout: nan at index (0, 2), finite numbers were wanted"),
        none=(None, TypeError, "dout: dtype object came, float32 or float64 was wanted"),
        complex=(V + 0j, TypeError, "dout: dtype complex128 came, float32 or float64 was wanted"),
        overflowing=(np.full((5, 4), 1e308), ValueError, "dout: gradient of q: "),
    ),
)
def test_a_bad_upstream_gradient_is_refused_by_name(dout, error, message):
    _, cache = dense_attention_forward(Q, K, 100 * V)
    with pytest.raises(error, match="^" + re.escape(message)):
        dense_attention_backward(dout, cache)


def test_an_upstream_gradient_in_another_precision_takes_that_of_the_forward():
    for computed, came in ((np.float32, np.float64), (np.float64, np.float32)):
        _, cache = dense_attention_forward(*(a.astype(computed) for a in (Q, K, V)))
        dout = np.float32(V)  # exact in both
        gradients = dense_attention_backward(dout.astype(came), cache)
        assert all(g.dtype == computed for g in gradients)
        for one, other in zip(gradients, dense_attention_backward(dout.astype(computed), cache), strict=True):
            assert np.array_equal(one, other)


def test_an_upstream_gradient_beyond_the_forwards_precision_is_refused():
    _, cache = dense_attention_forward(*(a.astype(np.float32) for a in (Q, K, V)))
    with pytest.raises(ValueError, match=r"^dout: 1e\+300 at index \(0, 0\) came in float64, numbers of at most 3.4"):
        dense_attention_backward(np.full((5, 4), 1e300), cache)


def test_an_average_of_the_largest_numbers_is_the_largest_number():
    largest = np.finfo(float).max
    np.testing.assert_array_equal(refattn.dense_attention(Q, K, np.full((5, 4), largest)), np.full((5, 4), largest))


@pytest.mark.parametrize("value", ["fast", 3, None], ids=repr)
def test_an_unknown_option_lists_the_known(value):
    message = f"method: {value!r} came, one of 'paper', 'oracle' was wanted"
    with pytest.raises(ValueError, match=re.escape(message)):
        refattn._validation.as_option("method", value, ["paper", "oracle"])


@pytest.mark.parametrize(("least", "most"), [(0, 3), (1, 9)], ids=str)
def test_the_ends_of_a_range_belong_to_it(least, most):
    for end in (least, most):
        assert refattn._validation.as_count("count", end, least=least, most=most) == end
        assert refattn._validation.as_real("real", end, least=least, most=most) == end
    for beyond in (least - 1, most + 1):
        with pytest.raises(ValueError, match=rf"^count: {beyond} came, at least {least} and at most {most} \(n\) was"):
            refattn._validation.as_count("count", beyond, least=least, most=most, most_is="n")
        with pytest.raises(ValueError, match=f"^real: {beyond}.0 came, at (least {least}|most {most}) was wanted"):
            refattn._validation.as_real("real", beyond, least=least, most=most)
