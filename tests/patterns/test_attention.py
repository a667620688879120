"""Attention to given pairs: the loops are the definition, in any order, on any thread; bad lists are refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from refattn import dense_attention
from refattn._threads import set_thread_count
from refattn.patterns import attention as attention_module
from refattn.patterns import indexed_attention, indexed_attention_backward, indexed_attention_forward
from refattn.testing import GradientMismatchError, check_gradients, relative_error, row_errors, tolerance


def lists(n_q: int, n_k: int, pairs: int, lead: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Different positions in any order for every query, of some queries fewer, of one none."""
    rng = np.random.default_rng(seed)
    order = rng.random((*lead, n_q, n_k)).argsort(axis=-1)[..., :pairs]
    found = np.where(rng.random(order.shape) < 0.2, -1, order)
    found[..., n_q // 2, :] = -1
    return found


def inputs(n_q: int, n_k: int, lead_q: tuple[int, ...] = (), lead_kv: tuple[int, ...] = (), dtype: Any = float) -> Any:
    rng = np.random.default_rng(1)
    shapes = ((*lead_q, n_q, 3), (*lead_kv, n_k, 3), (*lead_kv, n_k, 2))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(arrays: Any, indices: Any, method: str = "fast", **options: Any) -> list[np.ndarray]:
    out, cache = indexed_attention_forward(*arrays, indices, method=method, **options)
    upstream = np.random.default_rng(2).standard_normal(out.shape).astype(out.dtype)
    return [out, *indexed_attention_backward(upstream, cache)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("pairs", [1, 3, 4, 9, 17])
@pytest.mark.parametrize(
    ("lead_q", "lead_kv", "lead_lists"),
    [
        ((), (), ()), ((), (3,), ()), ((2, 4), (2, 2), ()), ((4,), (2,), (4,)), ((4,), (1,), (1,)),
        ((2, 4), (2, 2), (2, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_the_loops_are_the_definition(lead_q: Any, lead_kv: Any, lead_lists: Any, pairs: int, dtype: Any) -> None:
    arrays, indices = inputs(11, 17, lead_q, lead_kv, dtype), lists(11, 17, pairs, lead_lists)
    found, right = run(arrays, indices, scale=0.7), run(arrays, indices, "oracle", scale=0.7)
    for one, other in zip(found, right, strict=True):
        assert one.shape == other.shape
        assert one.dtype == dtype
        assert relative_error(one, other) <= tolerance("reordered", dtype).rtol


def test_it_is_dense_attention_with_a_mask_written_pair_by_pair() -> None:
    """The mask of a loop in Python, and dense attention's fast method: nothing is shared with the oracle here."""
    q, k, v = inputs(9, 12)
    indices, mask = lists(9, 12, 5), np.zeros((9, 12), bool)
    for query, row in enumerate(indices.tolist()):
        for key in row:
            if key >= 0:
                mask[query, key] = True
    right = dense_attention(q, k, v, mask=mask)
    assert row_errors(indexed_attention(q, k, v, indices), right).max() <= tolerance("row").rtol
    assert not right[4].any()


def test_the_gradients_are_derivatives_and_a_planted_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(7, 8, (4,), (2,))
    indices = lists(7, 8, 4)
    _, cache = indexed_attention_forward(q, k, v, indices)

    def check() -> None:
        check_gradients(
            lambda **given: indexed_attention(**given, indices=indices),
            lambda dout: indexed_attention_backward(dout, cache)._asdict(),
            {"q": q, "k": k, "v": v},
            rtol=tolerance("differences").rtol,
        )

    check()
    right = attention_module.fast.backward
    monkeypatch.setattr(attention_module.fast, "backward", lambda *given: right(*given)._replace(k=0 * k))
    with pytest.raises(GradientMismatchError):
        check()


def test_neither_threads_nor_the_order_of_a_list_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refattn.patterns.fast._WORK", 1 << 8)
    arrays, indices = inputs(40, 40, (3,), (3,), np.float32), lists(40, 40, 9)
    set_thread_count(1)
    try:
        right = run(arrays, indices)
        set_thread_count(3)
        for found in (run(arrays, indices), run(arrays, indices[:, ::-1])):
            assert all(np.array_equal(one, other) for one, other in zip(found, right, strict=True))
        one_head = [array[0] for array in arrays]
        many = run(one_head, indices)
        set_thread_count(1)
        assert all(np.array_equal(one, other) for one, other in zip(run(one_head, indices), many, strict=True))
    finally:
        set_thread_count(None)


def test_no_array_of_n_by_n_is_made() -> None:
    n = 2048
    arrays = inputs(n, n, dtype=np.float32)
    indices = np.sort(lists(n, n, 8).astype(np.int64), axis=1)
    run(arrays, indices)
    tracemalloc.start()
    run(arrays, indices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n / 4  # of booleans it takes four times that


def test_what_overflows_on_the_way_only_is_computed() -> None:
    q, k, v = (array.astype(np.float32) for array in inputs(6, 6))
    indices = lists(6, 6, 3)
    large = [1e25 * q, 1e25 * k, 1e38 * v / np.abs(v).max()]
    found, right = (run(large, indices, method, scale=1e-30) for method in ("fast", "oracle"))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_logit_that_overflows_is_refused(sign: int) -> None:
    """Also where it is −inf: it must not count as a pair that is not attended to."""
    q, k, v = (np.ones((2, 1), np.float32) for _ in range(3))
    k[1] = sign * 1e30
    with pytest.raises(ValueError, match="q, k: the logit of query 1 and key 1 is"):
        indexed_attention(1e30 * q, k, v, [[0, -1], [0, 1]])


def test_what_is_on_no_list_may_be_anything() -> None:
    q, k, v = inputs(4, 4)
    k[3] = v[3] = np.nan
    out = indexed_attention(q, k, v, [[0, 1]] * 4, check_finite=False)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="nan"):
        indexed_attention(q, k, v, [[0, 3]] * 4, check_finite=False)


def test_lists_without_a_place_give_zeros() -> None:
    for one in run(inputs(4, 4), np.empty((4, 0), int)):
        assert not one.any()


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([[0.0]] * 4, TypeError, "indices: dtype float64 came"),
        ([[True]] * 4, TypeError, "indices: dtype bool came"),
        ([[0]] * 3, ValueError, r"indices: shape \(3, 1\) came, \(…, 4, pairs\)"),
        ([0, 1, 2, 3], ValueError, r"indices: shape \(4,\) came"),
        ([[0], [1], [2], [5]], ValueError, "indices: 5 came, positions below the 5 keys"),
        ([[0], [1], [2], [-2]], ValueError, "indices: -2 came"),
        ([[0, 1], [1, 2], [2, 2], [-1, -1]], ValueError, "indices: 2 came twice for query 2"),
        ([[2, 1, 2]] * 4, ValueError, "indices: 2 came twice for query 0"),
        ([[[0]] * 4] * 3, ValueError, r"indices: leading axes \(3,\) came"),
        (np.array([[2**63]] * 4, np.uint64), ValueError, "indices: 9223372036854775808 came"),
    ],
)  # fmt: skip
def test_bad_lists_are_refused(indices: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        indexed_attention(*inputs(4, 5), indices)


def test_a_change_to_the_callers_arrays_changes_no_gradient() -> None:
    arrays, indices = inputs(5, 5), np.sort(lists(5, 5, 3), axis=1)
    right = run(arrays, indices)[1:]
    out, cache = indexed_attention_forward(*arrays, indices)
    for array in (*arrays, indices):
        array[...] = 0
    upstream = np.random.default_rng(2).standard_normal(out.shape)
    for one, other in zip(indexed_attention_backward(upstream, cache), right, strict=True):
        assert np.array_equal(one, other)
