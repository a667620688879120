"""Masked low-rank products: equal to the dense definition for every structure, with gradients that are derivatives."""

from __future__ import annotations

import os
import subprocess
import sys

import lengths
import numpy as np
import pytest

from refattn import Causal
from refattn._threads import set_thread_count
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctRowsMask,
    as_row_change,
    masked_product,
    masked_product_backward,
    masked_product_forward,
    oracle,
    paper,
    shifted_groups,
    sliding_window,
)
from refattn.testing import check_gradients, check_jacobian, tolerance

METHODS = ("fast", "paper")


def factors(n, r, d, seed, lead=()):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*lead, n, r)), rng.standard_normal((*lead, n, r)), rng.standard_normal((*lead, n, d))


def worst(got, right):
    """Largest error of an entry, relative to the largest entry (absolute if that is zero)."""
    return max(float(np.abs(g - r).max() / (np.abs(r).max() or 1)) for g, r in zip(got, right, strict=True))


def test_the_oracle_is_the_definition():
    u1, u2, v = factors(7, 3, 2, seed=0)
    mask = ContinuousRowsMask.from_dense(np.tri(7) - np.tri(7, k=-3))
    W = mask.to_dense()
    by_entries = np.zeros((7, 2))
    for i in range(7):
        for j in range(7):
            if W[i, j]:
                by_entries[i] += sum(u1[i, a] * u2[j, a] for a in range(3)) * v[j]
    np.testing.assert_allclose(masked_product(u1, u2, v, mask=mask, method="oracle"), by_entries, rtol=1e-14)


@pytest.mark.slow
@lengths.cases(200, 1000)
def test_a_thousand_random_masks_of_every_kind_with_their_gradients(kind, draw, cases):
    rng = np.random.default_rng([2, cases.start])
    for number in cases:
        n = round(500 ** rng.random()) if number else 500
        mask = kind.from_dense(draw(kind, n, rng))
        r, d = (int(x) for x in rng.integers(1, 6, 2))
        u1, u2, v = factors(n, r, d, seed=number)
        dout = rng.standard_normal((n, d))
        right = (oracle.product(mask, u1, u2, v), *oracle.pullback(mask, u1, u2, v, dout))
        for method in METHODS:
            out, cache = masked_product_forward(u1, u2, v, mask=mask, method=method)
            found = (out, *masked_product_backward(dout, cache)) if method == "fast" or number % 10 == 0 else (out,)
            assert worst(found, right[: len(found)]) <= tolerance("reordered").rtol, (number, n, method)


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_gradients_are_derivatives(kind, draw, method):
    rng = np.random.default_rng(3)
    mask = kind.from_dense(draw(kind, 9, rng))
    inputs = dict(zip(("u1", "u2", "v"), factors(9, 3, 2, seed=4), strict=True))
    _, cache = masked_product_forward(**inputs, mask=mask, method=method)
    check = {"rtol": tolerance("differences").rtol}

    def function(**values):
        return masked_product(**values, mask=mask, method="oracle")

    def gradients(upstream):
        return masked_product_backward(upstream, cache)._asdict()

    check_gradients(function, gradients, inputs, **check)
    check_jacobian(function, gradients, inputs, **check)


def test_the_segment_tree_sums_intervals():
    rng = np.random.default_rng(5)
    for n in (1, 2, 3, 8, 13):
        leaves = rng.standard_normal((n, 2))
        start, stop = np.sort(rng.integers(0, n + 1, (2, 50)), axis=0)
        found = paper.segment_sums(paper.segment_tree(leaves), start, stop)
        right = np.array([leaves[a:b].sum(axis=0) for a, b in zip(start, stop, strict=True)])
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-14)


def test_prefix_sums_equal_the_segment_tree_and_row_changes(draw):
    mask = ContinuousRowsMask.from_dense(draw(ContinuousRowsMask, 200, np.random.default_rng(6)))
    u1, u2, v = factors(200, 4, 3, seed=6)
    right = oracle.product(mask, u1, u2, v)
    for found in (
        paper.algorithm_6(mask, u1, u2, v),
        paper.prefix_sums(mask, u1, u2, v),
        paper.algorithm_5(as_row_change(mask), u1, u2, v),
    ):
        assert worst([found], [right]) <= 1e-13


def test_short_and_long_intervals_are_summed_in_both_ways():
    n = 400
    mask = ContinuousRowsMask(np.where(np.arange(n) % 3, np.maximum(np.arange(n) - 5, 0), 1), np.arange(n) + 1)
    u1, u2, v = factors(n, 20, 50, seed=7)
    out, cache = masked_product_forward(u1, u2, v, mask=mask)
    found = (out, *masked_product_backward(v, cache))
    assert worst(found, (oracle.product(mask, u1, u2, v), *oracle.pullback(cache.mask, u1, u2, v, v))) <= 1e-12


@pytest.mark.parametrize("d", [1, 40, 41, 64, 130])
def test_heads_and_pieces_of_columns(kind, draw, d):
    mask = kind.from_dense(draw(kind, 33, np.random.default_rng(8)))
    u1, u2, v = factors(33, 6, d, seed=8, lead=(2, 3))
    right = np.where(mask.to_dense(), u1 @ u2.swapaxes(-1, -2), 0) @ v
    np.testing.assert_allclose(masked_product(u1, u2, v, mask=mask), right, rtol=0, atol=1e-11)


def test_the_number_of_threads_changes_no_bit(kind, draw):
    mask = kind.from_dense(draw(kind, 150, np.random.default_rng(9)))
    u1, u2, v = factors(150, 5, 100, seed=9)
    results = []
    for threads in (1, 3):
        set_thread_count(threads)
        out, cache = masked_product_forward(u1, u2, v, mask=mask)
        results.append([x.tobytes() for x in (out, *masked_product_backward(v, cache))])
    set_thread_count(None)
    assert results[0] == results[1]


@pytest.mark.parametrize("mask", [Causal(), sliding_window(40, 30), shifted_groups(40, 8)], ids=type)
def test_changing_the_future_changes_no_past_row(mask):
    u1, u2, v = factors(40, 4, 3, seed=10)
    before = masked_product(u1, u2, v, mask=mask)
    for array in (u1, u2, v):
        array[25:] += 1
    np.testing.assert_array_equal(masked_product(u1, u2, v, mask=mask)[:25], before[:25])


def test_rows_that_see_nothing_are_zero_and_so_are_their_gradients():
    mask = ContinuousRowsMask([0, 1, 0], [1, 1, 3])
    u1, u2, v = factors(3, 2, 2, seed=11)
    for method in METHODS:
        out, cache = masked_product_forward(u1, u2, v, mask=mask, method=method)
        assert not out[1].any()
        assert not masked_product_backward(np.ones((3, 2)), cache).u1[1].any()


def test_float32_is_kept_and_summed_in_float64():
    u1, u2, v = (x.astype(np.float32) for x in factors(3000, 4, 2, seed=12))
    right = masked_product(*(x.astype(float) for x in (u1, u2, v)), mask=Causal())
    out = masked_product(u1, u2, v, mask=Causal())
    assert out.dtype == np.float32
    assert np.abs(out - right).max() <= 1e-6 * np.abs(right).max()


@pytest.mark.parametrize("alignment", [None, "top-left", "bottom-right", 0, 3, -2, 12, -12])
def test_causal_takes_the_length_of_the_arrays_and_any_alignment(alignment):
    u1, u2, v = factors(12, 3, 2, seed=14)
    mask = Causal(alignment)
    W = mask.allowed(slice(0, 12), 12, 12)
    out, cache = masked_product_forward(u1, u2, v, mask=mask)
    np.testing.assert_allclose(out, (W * (u1 @ u2.T)) @ v, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(cache.mask.to_dense(), W)
    np.testing.assert_allclose(masked_product_backward(v, cache).v, (W * (u1 @ u2.T)).T @ v, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u1": np.ones(3)}, ValueError, r"u1: shape \(3,\)"),
        ({"u1": np.ones((4, 2))}, ValueError, "u1: 4 rows came"),
        ({"u2": np.ones((3, 5))}, ValueError, "u2: shape"),
        ({"v": np.ones((2, 3, 2))}, ValueError, "v: leading axes"),
        ({"v": np.full((3, 2), np.nan)}, ValueError, "v: nan at index"),
        ({"u1": np.ones((3, 2), complex)}, TypeError, "u1: dtype complex128"),
        ({"mask": np.tri(3)}, TypeError, "mask: ndarray came"),
        ({"mask": sliding_window(4, 2)}, ValueError, "u1: 3 rows came, as many as the mask has"),
        ({"method": "quick"}, ValueError, "'fast', 'paper', 'oracle'"),
    ],
    ids=["rank", "rows", "factors", "lead", "nan", "complex", "dense-mask", "length", "method"],
)
def test_bad_input_is_refused(change, error, message):
    good = {"u1": np.ones((3, 2)), "u2": np.ones((3, 2)), "v": np.ones((3, 2)), "mask": sliding_window(3, 3)}
    with pytest.raises(error, match=message):
        masked_product(**{**good, **change})


def test_an_upstream_gradient_of_another_shape_is_refused():
    _, cache = masked_product_forward(*np.ones((3, 3, 2)), mask=Causal())
    with pytest.raises(ValueError, match="dout: shape"):
        masked_product_backward(np.ones((3, 1)), cache)


def test_inputs_are_not_written_to():
    arrays = factors(12, 3, 2, seed=13)
    for array in arrays:
        array.flags.writeable = False
    _, cache = masked_product_forward(*arrays, mask=DistinctRowsMask.from_dense(np.tri(12)))
    masked_product_backward(arrays[2], cache)


@pytest.mark.slow
def test_the_loops_run_without_compilation():
    program = (
        "import numpy as np\n"
        "from refattn import Causal\n"
        "from refattn.lowrank import *\n"
        "from refattn.lowrank import oracle\n"
        "u1, u2, v = np.random.default_rng(0).standard_normal((3, 20, 3))\n"
        "for mask in (Causal(), shifted_groups(20, 4), sliding_window(20, 15), sliding_window(20, 2)):\n"
        "    out, cache = masked_product_forward(u1, u2, v, mask=mask)\n"
        "    found = masked_product_backward(v, cache)\n"
        "    for a, b in zip(found, oracle.pullback(cache.mask, u1, u2, v, v)):\n"
        "        np.testing.assert_allclose(a, b, atol=1e-12)\n"
        "q = v / 4\n"
        "lowrank_attention(q, q, q, error=1e-2)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
