"""Exact attention under every mask: its definition, its derivatives, rows that see nothing."""

import numpy as np
import pytest
from dense_definition import BOOLEAN, INF, MASKS, OPTIONS, check_derivatives, check_masks, ids, inputs

import refattn.dense
from refattn import Causal, SlidingWindow, dense_attention, dense_attention_backward, dense_attention_forward
from refattn.testing import row_errors, tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", ids(OPTIONS))
@pytest.mark.parametrize("mask", ids(MASKS))
def test_output_and_log_sum_exp_follow_the_definition_under_every_mask(mask, options, dtype):
    check_masks(refattn.dense, mask, OPTIONS[options], dtype)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["softcap and scale"]], ids=["plain", "softcap"])
@pytest.mark.parametrize("mask", ids(MASKS))
def test_gradients_are_the_derivatives_under_every_mask(mask, options):
    condition, n_q, n_k, _ = MASKS[mask]
    check_derivatives(refattn.dense, "one head", condition, n_q, n_k, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 5), bool),
        np.full((5, 5), -INF),
        ("full", np.eye(5, dtype=bool), ~np.eye(5, dtype=bool)),
        Causal(-5),
    ],
    ids=["boolean", "additive", "disjoint_pair", "causal_offset"],
)
def test_fully_masked_rows_give_zeros_and_zero_gradients(mask, dtype):
    q, k, v = inputs("grouped", 5, 5, dtype=dtype)
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    assert not out.any()
    assert (cache.log_sum_exp == -INF).all()
    assert not any(g.any() for g in dense_attention_backward(np.ones_like(out), cache))


def test_one_fully_masked_row_leaves_the_others_alone():
    q, k, v = inputs("one head", 5, 5)
    seen = np.tri(5, dtype=bool)
    seen[3] = False
    out, cache = dense_attention_forward(q, k, v, mask=seen)
    rest = np.arange(5) != 3
    np.testing.assert_allclose(out[rest], dense_attention(q, k, v)[rest], rtol=tolerance("rounding").rtol)
    only_masked_row = np.where(rest[:, None], 0.0, 1.0) * np.ones_like(out)
    assert not any(g.any() for g in dense_attention_backward(only_masked_row, cache))


@pytest.mark.parametrize("window", [6, 7, 10**9], ids=str)
def test_a_window_of_at_least_n_is_causal(window):
    q, k, v = inputs("batch", 6, 6)
    assert np.array_equal(dense_attention(q, k, v, mask=SlidingWindow(window)), dense_attention(q, k, v))


@pytest.mark.parametrize("mask", ids(MASKS))
def test_weights_of_every_row_that_sees_a_key_sum_to_one(mask):
    condition, n_q, n_k, meaning = MASKS[mask]
    q, k, _ = inputs("one head", n_q, n_k)
    sees = [any(meaning(i, j) > -INF for j in range(n_k)) for i in range(n_q)]
    out = dense_attention(q * 20, k, np.ones((n_k, 1)), mask=condition)
    np.testing.assert_allclose(out[:, 0], np.array(sees, float), rtol=tolerance("rounding").rtol)


def test_a_boolean_mask_is_an_additive_one_of_zeros_and_minus_infinity():
    q, k, v = inputs("grouped", 5, 7)
    additive = dense_attention(q, k, v, mask=np.where(BOOLEAN, 0.0, -INF))
    assert np.array_equal(additive, dense_attention(q, k, v, mask=BOOLEAN))


def test_hiding_keys_equals_leaving_them_out():
    q, k, v = inputs("batch", 6, 6)
    seen = np.array([True, False, True, True, False, True])
    left_out = dense_attention(q, k[:, seen], v[:, seen], mask="full")
    assert row_errors(dense_attention(q, k, v, mask=seen), left_out).max() <= tolerance("reordered").rtol
