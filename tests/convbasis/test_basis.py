"""The conv basis: decomposition is exact, unique and minimal; the exp transform; non-degeneracy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refattn import ConvBasis, decompose
from refattn.convbasis import basis_from_starts, subconv_matrix
from refattn.testing import rope_structured


def random_basis(rng, n, k, integer=False):
    """A k-conv basis with random starts from 0, and kernels of which no two neighbours agree."""
    starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, k - 1, replace=False))])
    kernels = rng.integers(-9, 10, (k, n)).astype(float) if integer else rng.standard_normal((k, n))
    kernels[:, 0] += 20 * np.arange(k)
    kernels[np.arange(n) >= n - starts[:, None]] = 0
    return ConvBasis(starts, kernels)


def dense_sum(basis):
    """Σ conv(b_i, m_i), by the paper's definition."""
    return sum(
        (subconv_matrix(b, int(m)) for b, m in zip(basis.vectors, basis.sizes, strict=True)),
        np.zeros((basis.n, basis.n)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("integer", [True, False], ids=["integer", "real"])
def test_decomposition_is_exact_and_minimal_on_500_random_shapes(integer):
    rng = np.random.default_rng(7)
    for _ in range(500):
        n = int(rng.integers(1, 60))
        k = int(rng.integers(1, n + 1))
        known = random_basis(rng, n, k, integer)
        h = dense_sum(known)
        found = decompose(h)
        np.testing.assert_array_equal(found.to_dense(), h)
        tolerance = 0 if integer else 1e-13 * np.abs(h).max()
        np.testing.assert_allclose(dense_sum(found), h, rtol=0, atol=tolerance)
        if integer:
            np.testing.assert_array_equal(found.starts, known.starts)
            np.testing.assert_array_equal(found.vectors, known.vectors)


def test_no_set_of_fewer_starts_represents_the_matrix():
    """Minimality by exhaustion: for 5×5 matrices every smaller set of starts fails."""
    rng = np.random.default_rng(8)
    for k in (1, 2, 3, 4, 5):
        h = dense_sum(random_basis(rng, 5, k, integer=True))
        assert decompose(h).n_terms == k
        for fewer in range(1, k):
            for starts in itertools.combinations(range(5), fewer):
                kernels = np.zeros((fewer, 5))
                for kernel, c in zip(kernels, starts, strict=True):
                    kernel[: 5 - c] = h[c:, c]
                assert not np.array_equal(ConvBasis(np.array(starts), kernels).to_dense(), h)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 12).map(lambda n: (n, n)), elements=st.integers(-3, 3)))
def test_any_lower_triangular_matrix_decomposes_exactly(matrix):
    h = np.tril(matrix)
    if not h.any():
        with pytest.raises(ValueError, match="h: a zero matrix came"):
            decompose(h)
        return
    basis = decompose(h)
    np.testing.assert_array_equal(dense_sum(basis), h)
    np.testing.assert_array_equal(basis.to_dense(), h)
    assert basis.n_terms <= h.shape[0]


def test_tolerance_bounds_the_entries_and_joins_noisy_columns():
    rng = np.random.default_rng(9)
    known = random_basis(rng, 40, 3)
    noisy = known.to_dense() + np.tril(rng.uniform(-1e-9, 1e-9, (40, 40)))
    assert decompose(noisy).n_terms == 40
    joined = decompose(noisy, atol=2e-9)
    np.testing.assert_array_equal(joined.starts, known.starts)
    assert np.abs(joined.to_dense() - noisy).max() <= 2e-9


def test_rows_and_columns_are_those_of_the_dense_matrix():
    basis = random_basis(np.random.default_rng(10), 30, 5)
    dense = basis.to_dense()
    np.testing.assert_array_equal(basis.rows([0, 29, 7]), dense[[0, 29, 7]])
    np.testing.assert_array_equal(basis.columns([0, 29, 7]), dense[:, [0, 29, 7]].T)


@pytest.mark.parametrize("first", [0, 3], ids=["from-column-0", "leading-zero-columns"])
def test_exp_transform_is_the_exponential_of_every_causal_entry(first):
    rng = np.random.default_rng(11)
    h = np.tril(rng.standard_normal((12, 12)))
    h[:, :first] = 0
    basis = decompose(h)
    np.testing.assert_allclose(basis.exp_transform(0.5).to_dense(), np.tril(np.exp(h - 0.5)), rtol=1e-15, atol=0)


def test_exp_transform_in_the_papers_form_is_the_lemma():
    """b̃_1 = exp(b_1) and b̃_i = exp(u_i) − exp(u_{i−1}), on the first m_i entries."""
    basis = random_basis(np.random.default_rng(12), 15, 4)
    transformed = basis.exp_transform(shift=basis.largest)
    u = np.cumsum(basis.vectors, axis=0) - basis.largest
    for i, m in enumerate(basis.sizes):
        expected = np.exp(u[i, :m]) - (np.exp(u[i - 1, :m]) if i else 0)
        np.testing.assert_allclose(transformed.vectors[i, :m], expected, rtol=0, atol=1e-14)


def test_overflowing_exp_transform_is_refused():
    basis = ConvBasis([0], [[1000.0, 0.0]])
    with pytest.raises(ValueError, match=r"shift: exp\(1000 − 0\) overflows float64"):
        basis.exp_transform()
    assert basis.exp_transform(1000.0).kernels[0, 0] == 1.0


def test_nondegeneracy_is_the_minimum_over_all_partial_sums():
    basis = random_basis(np.random.default_rng(13), 20, 4)
    b = basis.vectors
    probe = int(basis.sizes[-1])
    by_definition = min(np.abs(b[j : i + 1, :probe].sum(axis=0)).sum() for i in range(4) for j in range(i + 1))
    assert basis.nondegeneracy(probe) == pytest.approx(by_definition, rel=1e-12)


def test_stacks_keep_bases_of_different_sizes_apart():
    one, two = random_basis(np.random.default_rng(14), 9, 2), random_basis(np.random.default_rng(15), 9, 4)
    starts, kernels = np.full((2, 4), 9), np.zeros((2, 4, 9))
    starts[0, :2], kernels[0, :2] = one.starts, one.kernels
    starts[1], kernels[1] = two.starts, two.kernels
    stack = ConvBasis(starts, kernels)
    np.testing.assert_array_equal(stack.n_terms, [2, 4])
    np.testing.assert_array_equal(stack.to_dense(), [one.to_dense(), two.to_dense()])
    np.testing.assert_array_equal(stack.vectors[0, 2:], 0)
    np.testing.assert_array_equal(stack[1].to_dense(), two.to_dense())


@pytest.mark.parametrize("k", [1, 4, 17], ids="k={}".format)
def test_rotary_inputs_with_constant_contents_are_k_conv(k):
    q, keys, _, starts = rope_structured(300, 16, starts=k, seed=k, deviation=3.0)
    logits = np.tril(q @ keys.T) / 4
    assert decompose(logits, atol=1e-12).n_terms == k
    np.testing.assert_allclose(basis_from_starts(q, keys, starts).to_dense(), logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("starts", "kernels", "message"),
    [
        ([0, 0], np.ones((2, 3)), "strictly increasing"),
        ([2, 1], np.zeros((2, 3)), "strictly increasing"),
        ([-1], np.zeros((1, 3)), r"starts: \[-1\] came, columns from 0 to 2"),
        ([3], np.zeros((1, 3)), r"starts: \[3\] came"),
        ([0, 1], np.ones((1, 3)), r"starts: shape \(2,\) came, \(1,\)"),
        ([0, 1], np.ones((2, 3)), r"kernels: entry 2 of kernel \(1,\) is not zero"),
        ([0], [[1.0, np.nan, 0.0]], r"kernels: nan at index \(0, 1\)"),
        ([0], [1.0, 2.0], r"kernels: shape \(2,\) came"),
    ],
    ids=["equal", "decreasing", "negative", "beyond", "count", "too-long", "nan", "rank"],
)
def test_a_basis_that_is_none_is_refused(starts, kernels, message):
    with pytest.raises(ValueError, match=message):
        ConvBasis(np.asarray(starts), np.asarray(kernels))


def test_starts_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match="starts: dtype float64 came"):
        ConvBasis(np.array([0.0]), np.ones((1, 3)))


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.ones((2, 3)), r"h: shape \(2, 3\) came"),
        (np.ones((2, 2)), r"h: entry \(0, 1\) above the diagonal is 1.0"),
        (np.ones(3), r"h: shape \(3,\) came"),
        (np.zeros((3, 3)), "h: a zero matrix came"),
        ([[np.inf]], r"h: inf at index \(0, 0\)"),
    ],
    ids=["not-square", "not-lower", "rank", "zero", "inf"],
)
def test_what_cannot_be_decomposed_is_refused(h, message):
    with pytest.raises(ValueError, match=message):
        decompose(h)


def test_probe_beyond_the_smallest_segment_is_refused():
    with pytest.raises(ValueError, match=r"probe: 3 came, at least 1 and at most 2 \(m_k\)"):
        ConvBasis([0, 1], [[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).nondegeneracy(probe=3)
