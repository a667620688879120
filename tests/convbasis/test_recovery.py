"""Recover and Search: exact under the theorem's conditions, settled where the text is silent."""

import math

import numpy as np
import pytest

from refattn import conv_attention, dense_attention, recover
from refattn.convbasis import basis_from_starts, inference_bound, logit_residual
from refattn.convbasis.recovery import search
from refattn.testing import attention_inputs, rope_structured


def structured(n, d, k, probe, seed, deviation=2.0):
    """RoPE-structured inputs whose last segment has at least `probe` rows, and the basis' δ at that probe."""
    rng = np.random.default_rng(seed)
    inner = 1 + np.sort(rng.choice(n - probe - 1, k - 1, replace=False))
    inputs = rope_structured(n, d, starts=np.concatenate([[0], inner]), seed=seed, deviation=deviation)
    return inputs, basis_from_starts(inputs.q, inputs.k, inputs.starts).nondegeneracy(probe)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 4, 17], ids="k={}".format)
@pytest.mark.parametrize("n", [65, 500, 1009], ids="n={}".format)
def test_starts_of_structured_inputs_are_found_exactly(n, k, lead):
    probe = 5
    rng = np.random.default_rng(n + k)
    starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - probe - 1, k - 1, replace=False))])
    q, keys, _, _ = rope_structured(n, 16, starts=starts, seed=k, lead=lead)
    basis = recover(q, keys, n_basis=k, probe=probe, delta=1e-6)
    np.testing.assert_array_equal(basis.starts, np.broadcast_to(starts, (*lead, k)))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.999], ids=lambda f: f"eps={f}·limit")
@pytest.mark.parametrize("seed", range(5), ids="seed={}".format)
def test_noise_within_the_theorems_limit_leaves_the_starts_exact(seed, fraction):
    """ε ≤ δ/(5T): starts exact, kernels within ε, represented logits within 2ε of the noisy ones."""
    n, probe = 200, 8
    (q, keys, v, starts), delta = structured(n, 8, 6, probe, seed)
    eps = fraction * delta / (5 * probe)
    rng = np.random.default_rng(seed)
    # Any noise matrix is a product of wider queries and keys: q' = [q, R], k' = [k, I].
    noise = rng.choice([-eps, eps], (n, n)) * np.sqrt(8)
    noisy_q, noisy_k = np.concatenate([q, noise], axis=1), np.concatenate([keys, np.eye(n)], axis=1)
    basis = recover(noisy_q, noisy_k, n_basis=6, probe=probe, delta=delta, eps=eps, scale=1 / np.sqrt(8))
    np.testing.assert_array_equal(basis.starts, starts)
    exact = basis_from_starts(q, keys, starts)
    assert np.abs(basis.kernels - exact.kernels).max() <= eps * (1 + 1e-9)
    assert logit_residual(noisy_q, noisy_k, basis, scale=1 / np.sqrt(8)).max() <= 2 * eps * (1 + 1e-9)
    out = conv_attention(noisy_q, noisy_k, v, basis=basis)
    error = np.abs(out - dense_attention(noisy_q, noisy_k, v, scale=1 / np.sqrt(8))).max()
    assert eps * np.abs(v).max() / 100 < error <= inference_bound(eps, np.abs(v).max())


def test_with_one_probe_and_a_tiny_delta_the_first_columns_come_back():
    q, k, _ = attention_inputs(300, 16, seed=0)
    basis = recover(q, k, n_basis=40, probe=1, delta=1e-12)
    np.testing.assert_array_equal(basis.starts, np.arange(40))


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65], ids="n={}".format)
def test_as_many_terms_as_columns_represent_any_logits_exactly(n):
    q, k, _ = attention_inputs(n, 8, seed=n, deviation=4.0)
    basis = recover(q, k, n_basis=n, probe=1, delta=0)
    np.testing.assert_allclose(basis.to_dense(), np.tril(q @ k.T) / np.sqrt(8), rtol=0, atol=1e-12)


def test_the_first_segment_starts_at_column_zero_even_where_the_logits_vanish():
    q, k = np.ones((10, 1)), np.zeros((10, 1))
    k[6:] = 1.0
    basis = recover(q, k, n_basis=3, probe=2, delta=0.5)
    np.testing.assert_array_equal(basis.starts, [0, 6])


def test_fewer_segments_than_asked_for_stop_early():
    q, k, _, starts = rope_structured(100, 8, starts=[0, 30], seed=0)
    basis = recover(q, k, n_basis=20, probe=4, delta=1e-6)
    np.testing.assert_array_equal(basis.starts, starts)
    assert basis.n_terms == 2


def test_no_segment_starts_where_fewer_than_probe_rows_are_left():
    q, k, _ = attention_inputs(20, 4, seed=1)
    basis = recover(q, k, n_basis=20, probe=5, delta=0.0)
    np.testing.assert_array_equal(basis.starts, np.arange(16))


def test_zero_threshold_takes_every_column():
    q, k = np.ones((12, 2)), np.ones((12, 2))
    np.testing.assert_array_equal(recover(q, k, n_basis=5, probe=1, delta=0.0).starts, np.arange(5))


def test_constant_inputs_have_one_segment():
    q, k = np.ones((12, 2)), np.ones((12, 2))
    np.testing.assert_array_equal(recover(q, k, n_basis=5, probe=3, delta=1e-9).starts, [0])


def test_heads_with_different_numbers_of_segments_share_a_stack():
    a = rope_structured(60, 8, starts=[0], seed=0)
    b = rope_structured(60, 8, starts=[0, 20, 40], seed=1)
    q, k = np.stack([a.q, b.q]), np.stack([a.k, b.k])
    basis = recover(q, k, n_basis=4, probe=3, delta=1e-6)
    np.testing.assert_array_equal(basis.starts, [[0, 60, 60], [0, 20, 40]])
    np.testing.assert_array_equal(basis.n_terms, [1, 3])


def test_grouped_heads_have_a_basis_for_every_query_head():
    q, k, _ = attention_inputs(30, 8, seed=2, lead=(4,), kv_lead=(2,))
    basis = recover(q, k, n_basis=3, probe=2, delta=0.1)
    for head in range(4):
        alone = recover(q[head], k[head // 2], n_basis=3, probe=2, delta=0.1)
        np.testing.assert_array_equal(basis[head].starts[: alone.starts.size], alone.starts)
        np.testing.assert_array_equal(basis[head].kernels[: alone.starts.size], alone.kernels)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000], ids="length={}".format)
def test_search_finds_every_possible_start_within_its_number_of_probes(length):
    for target in range(0, length, max(1, length // 50)):
        calls = []

        def predicate(j, target=target, calls=calls):
            calls.append(j)
            return j >= target

        assert search(predicate, 0, length - 1) == target
        assert len(calls) <= math.ceil(math.log2(length)) + 1


def test_search_says_when_there_is_nothing_to_find():
    assert search(lambda j: False, 3, 90) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_basis": 0}, ValueError, r"n_basis: 0 came, at least 1 and at most 10 \(n\)"),
        ({"n_basis": 11}, ValueError, "n_basis: 11 came"),
        ({"n_basis": 2.5}, TypeError, "n_basis: 2.5 came, an integer"),
        ({"probe": 11}, ValueError, r"probe: 11 came, at least 1 and at most 10 \(n\)"),
        ({"probe": True}, TypeError, "probe: True came"),
        ({"delta": -1.0}, ValueError, "delta: -1.0 came, at least 0.0"),
        ({"eps": -1e-9}, ValueError, "eps: -1e-09 came"),
        ({"delta": math.nan}, ValueError, "delta: nan came, a finite number"),
        ({"scale": "big"}, TypeError, "scale: 'big' came"),
    ],
    ids=["k-zero", "k-large", "k-real", "probe-large", "probe-bool", "delta", "eps", "nan", "scale"],
)
def test_bad_options_are_named(options, error, message):
    q, k, _ = attention_inputs(10, 4, seed=0)
    with pytest.raises(error, match=message):
        recover(q, k, **{"n_basis": 2, "probe": 1, "delta": 1e-9, **options})


def test_queries_and_keys_of_different_lengths_are_refused():
    q, k, _ = attention_inputs(10, 4, seed=0)
    with pytest.raises(ValueError, match=r"k: 9 rows came, as many as q has \(10\)"):
        recover(q, k[:9], n_basis=2, probe=1, delta=1e-9)


def test_a_logit_that_is_infinity_less_infinity_is_refused_and_warned_of_by_nothing_else():
    q = np.full((4, 2), 1e200)
    with pytest.raises(ValueError, match="q, k: logits of column 0"):
        recover(q, q * [1, -1], n_basis=2, probe=1, delta=1e-9)


def test_overflowing_logits_are_refused():
    q = np.full((4, 2), 1e200)
    with pytest.raises(ValueError, match="q, k: logits"):
        recover(q, q, n_basis=2, probe=1, delta=1e-9)
