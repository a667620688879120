"""The attentions that SparseK is compared with: what they compute, of how many pairs, and that all are causal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decoders import LLAMA, random_decoder

from refattn import dense_attention
from refattn.models import (
    ConvAttention,
    DifferentiableAttention,
    ExactAttention,
    FixedAttention,
    HashingAttention,
    LinearAttention,
    RandomBlockAttention,
    RoutingAttention,
    SparseKAttention,
    StridedAttention,
    WindowAttention,
)
from refattn.patterns import hashed_indices, routed_indices

SPARSE: dict[str, DifferentiableAttention] = {
    "exact": ExactAttention(),
    "window": WindowAttention(4),
    "window with sinks": WindowAttention(3, sinks=2),
    "strided": StridedAttention(4),
    "fixed": FixedAttention(4, 2),
    "random blocks": RandomBlockAttention(2, n_window=2, n_random=2, n_global=1),
    "hashing": HashingAttention(2, 2, rounds=2),
    "routing": RoutingAttention(2, 4),
    "sparsek": SparseKAttention(5, 0),
    "sparsek with a window": SparseKAttention(3, 4),
}
LINEAR: dict[str, DifferentiableAttention] = {
    "elu": LinearAttention(),
    "random": LinearAttention("random", rank=5, seed=3),
}


def attend(attention: DifferentiableAttention, n: int, seed: int = 0) -> np.ndarray:
    """Weights of the pairs: the output for values that are the positions, one for each entry."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 2, n, 4))
    parameters = {"scorer.weight": rng.standard_normal((2, 3)), "scorer.slope": np.zeros(2)}
    values = np.broadcast_to(np.eye(n), (2, n, n))
    return attention.forward(0, q, k, values, rng.standard_normal((n, 3)), parameters)[0]


@pytest.mark.parametrize("n", [1, 7, 24])
@pytest.mark.parametrize("name", SPARSE)
def test_no_query_attends_to_more_pairs_than_it_says_and_to_none_that_is_later(name: str, n: int) -> None:
    weights = attend(SPARSE[name], n)
    most, seen = SPARSE[name].pairs_per_query(n), weights > 0
    assert most is not None
    counts = seen.sum(axis=-1).max()
    assert counts <= most
    if name not in ("hashing", "routing", "sparsek", "sparsek with a window"):  # theirs depend on the content
        assert counts == most
    assert not np.triu(seen, 1).any()
    if "sparsek" not in name:  # its gates multiply the values
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)


@pytest.mark.parametrize("name", SPARSE | LINEAR)
def test_an_output_does_not_change_with_what_comes_later(name: str) -> None:
    attention = (SPARSE | LINEAR)[name]
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 24, 4))
    a, weight = rng.standard_normal((24, 3)), rng.standard_normal((2, 3))
    parameters = {"scorer.weight": weight, "scorer.slope": np.zeros(2)}
    whole = attention.forward(0, q, k, v, a, parameters)[0]
    for n in (1, 9, 23):
        part = attention.forward(0, q[:, :n], k[:, :n], v[:, :n], a[:n], parameters)[0]
        np.testing.assert_allclose(part, whole[:, :n], rtol=1e-9, atol=1e-12)


def test_a_decoder_does_not_look_ahead_with_any_of_them() -> None:
    tokens = np.random.default_rng(0).integers(0, 31, (1, 20))
    changed = tokens.copy()
    changed[:, 12:] = (changed[:, 12:] + 7) % 31
    for name, attention in (SPARSE | LINEAR).items():
        model = random_decoder(LLAMA, attention=attention)
        one, other = (model.evaluate(text, tokens, attention=attention).losses[:, :12] for text in (tokens, changed))
        np.testing.assert_allclose(one, other, rtol=1e-9, err_msg=name)


def normalised(q: np.ndarray) -> np.ndarray:
    return q / np.sqrt(np.square(q).mean(axis=-1, keepdims=True) + 1e-12)


def masked(lists: np.ndarray) -> np.ndarray:
    return (lists[..., None] == np.arange(lists.shape[-2])).any(axis=-2)


def test_hashing_attends_with_keys_of_length_one_and_values_of_its_group() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((4, 20, 6)), rng.standard_normal((2, 20, 6)), rng.standard_normal((2, 20, 6))
    keys = normalised(q)
    mask = masked(hashed_indices(keys, n_buckets=2, chunk=3, seed=5 + 1))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    right = dense_attention(q, keys, np.repeat(v, 2, axis=0), mask=mask, scale=1.0)
    np.testing.assert_allclose(HashingAttention(2, 3, seed=5)(1, q, k, v), right, rtol=1e-9)


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (12, 1), (13, 2), (24, 2), (25, 4), (96, 8), (97, 10)])
def test_buckets_follow_from_the_length(n: int, groups: int) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, n, 6))
    free, given = HashingAttention(None, 6, seed=3), HashingAttention(groups, 6, seed=3)
    assert free.buckets_of(n) == groups
    np.testing.assert_array_equal(free(0, q, k, v), given(0, q, k, v))


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (6, 1), (7, 2), (48, 8), (49, 9)])
def test_clusters_follow_from_the_length(n: int, groups: int) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, n, 6))
    free, given = RoutingAttention(None, 6, seed=3), RoutingAttention(groups, 6, seed=3)
    assert free.clusters_of(n) == groups
    np.testing.assert_array_equal(free(0, q, k, v), given(0, q, k, v))


@pytest.mark.parametrize(
    ("attention", "alike"), [(HashingAttention(None, 6), False), (RoutingAttention(None, 12), True)],
    ids=["hashing", "routing"],
)  # fmt: skip
def test_all_of_a_text_as_short_as_a_list_is_attended_to(attention: Any, alike: bool) -> None:
    """All earlier positions, as with exact attention: to itself a query attends where there is no other."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 12, 6))
    keys = normalised(q)
    mask = np.tri(12, k=-1, dtype=bool)
    mask[0, 0] = True
    right = dense_attention(keys if alike else q, keys, v, mask=mask)
    np.testing.assert_allclose(attention(0, q, k, v), right, rtol=1e-9)


def test_routing_attends_with_queries_and_keys_of_one_length() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 20, 6))
    keys = normalised(q)
    mask = masked(routed_indices(keys, n_clusters=3, members=4, seed=2))
    right = dense_attention(keys, keys, v, mask=mask)
    np.testing.assert_allclose(RoutingAttention(3, 4, seed=2)(0, q, k, v), right, rtol=1e-9)


@pytest.mark.parametrize("attention", [HashingAttention(2, 2), RoutingAttention(2, 2)], ids=["hashing", "routing"])
def test_shared_keys_leave_the_layers_keys_without_a_gradient_and_zeros_are_keys_too(attention: Any) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 9, 4))
    q[:, 3] = 0
    out, cache = attention.forward(0, q, k, v)
    gradients = attention.backward(np.ones_like(out), cache)
    assert not gradients.k.any()
    assert all(np.isfinite(array).all() for array in (gradients.q, gradients.v))


@pytest.mark.parametrize("attention", [HashingAttention(2, 2), RoutingAttention(2, 2)], ids=["hashing", "routing"])
def test_queries_too_large_to_be_brought_to_one_length_are_refused(attention: Any) -> None:
    q = np.full((1, 3, 2), 1e200)
    with pytest.raises(ValueError, match="q: root mean square"):
        attention(0, q, q, np.ones((1, 3, 2)))


def test_linear_attention_is_its_definition() -> None:
    """``Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j)`` over j ≤ i, elu + 1 written from the exponential linear unit."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 17, 4))

    def features(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, np.expm1(x)) + 1

    weights = np.tril(features(q) @ features(k).swapaxes(-1, -2))
    right = weights / weights.sum(axis=-1, keepdims=True) @ v
    np.testing.assert_allclose(LinearAttention()(0, q, k, v), right, rtol=1e-12)


def test_equal_states_are_told_from_the_width_of_a_head() -> None:
    assert LinearAttention().state_size(32) == LinearAttention("random").state_size(32) == 32 * 33
    assert LinearAttention().pairs_per_query(9) is None
    assert ConvAttention(n_basis=4).pairs_per_query(9) is None
