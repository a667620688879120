"""`recover_to_tolerance` finds known starts, meets its tolerance on every row, and says no where it has to."""

import numpy as np
import pytest

from refattn import ConvBasis, recover_to_tolerance
from refattn.convbasis import basis_from_starts, best_starts, least_squares_basis
from refattn.convbasis.starts import fewest
from refattn.convbasis.starts.sampled import sampled_lags, sampled_starts
from refattn.convbasis.starts.term_search import RowErrors, TermSearch, row_differences
from refattn.testing import attention_inputs, rope_structured
from refattn.testing.real_heads import load_real_heads


def row_errors_by_definition(q, k, basis):
    """``‖a_i − ã_i‖₁`` and ``max |H − H'|`` of every row, densely."""
    n = len(q)
    seen = np.tri(n, dtype=bool)
    h = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[-1])
    weights = []
    for logits in (h, basis.to_dense().astype(np.float64)):
        e = np.where(seen, np.exp(logits - np.where(seen, logits, -np.inf).max(axis=1, keepdims=True)), 0)
        weights.append(e / e.sum(axis=1, keepdims=True))
    return np.abs(weights[0] - weights[1]).sum(axis=1), np.abs((h - basis.to_dense()) * seen).max(axis=1)


def noisy(n, starts, noise, seed):
    """Exactly k-conv logits plus noise of ±`noise`, as queries and keys, with scale 1."""
    q, k, _, _ = rope_structured(n, 8, starts=starts, seed=seed, deviation=2.0)
    signs = np.random.default_rng(seed).choice([-noise, noise], (n, n))
    return np.concatenate([q / np.sqrt(8), signs], axis=1), np.concatenate([k, np.eye(n)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["column", "least-squares"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("count", [1, 2, 5, 40], ids="k={}".format)
def test_exact_structure_is_found_with_exactly_its_starts(count, dtype, tolerance, kernels):
    q, k, _, starts = rope_structured(700, 16, starts=count, seed=count, dtype=dtype, deviation=2.0)
    result = recover_to_tolerance(q, k, tolerance, kernels=kernels)
    assert result.found
    np.testing.assert_array_equal(result.basis.starts, starts)
    assert result.basis.kernels.dtype == dtype
    assert row_errors_by_definition(q, k, result.basis)[0].max() <= tolerance


@pytest.mark.parametrize("seed", range(5), ids="seed={}".format)
def test_noise_below_the_tolerance_leaves_the_starts_exact(seed):
    starts = [0, 60, 155, 290]
    q, k = noisy(400, starts, 0.01, seed)  # logits of the columns are within 0.02, so rows are within 2 tanh(0.01)
    for kernels in ("column", "least-squares"):
        result = recover_to_tolerance(q, k, 0.021, kernels=kernels, scale=1.0)
        np.testing.assert_array_equal(result.basis.starts, starts)


def test_least_squares_kernels_need_fewer_terms_in_noise():
    """A tolerance between the noise of one column and of two: only means of columns meet it."""
    q, k = noisy(400, [0, 200], 0.1, 0)
    wanted = 0.11  # ±0.1 in the logits, seen through the mean of the diagonals
    means = recover_to_tolerance(q, k, wanted, kernels="least-squares", scale=1.0, n_basis=32)
    columns = recover_to_tolerance(q, k, wanted, kernels="column", scale=1.0, n_basis=32)
    assert means.found
    assert not columns.found


@pytest.mark.parametrize("place", range(5), ids="place={}".format)
def test_heads_of_a_language_model_get_a_plain_no_and_the_curve(place):
    real = load_real_heads()
    result = recover_to_tolerance(real.q[place, 0], real.k[place, 0], 0.1)
    assert not result.found
    assert result.basis is None
    assert [point.k for point in result.curve] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert all(point.error > 0.1 for point in result.curve)
    assert result.exceeding == 1.0
    assert str(result).startswith("Not conv-like: with 128 terms a sampled row is off by")


def test_with_n_terms_anything_is_within_rounding():
    q, k, _ = attention_inputs(90, 8, seed=0)
    result = recover_to_tolerance(q, k, 1e-12, n_basis=90)
    assert result.found
    assert result.basis.starts.size <= 90
    assert row_errors_by_definition(q, k, result.basis)[0].max() <= 1e-12


def test_one_term_less_fails_and_the_curve_says_so():
    q, k = noisy(300, [0, 50, 100, 200], 0.02, 1)
    result = recover_to_tolerance(q, k, 0.1, scale=1.0)
    curve = dict(result.curve)
    count = result.basis.starts.size
    assert curve[count] <= 0.1 < curve[count - 1]
    assert list(curve) == sorted(curve)


@pytest.mark.parametrize("kernels", ["column", "least-squares"])
def test_the_error_and_the_residual_are_those_of_the_rows_looked_at(kernels):
    q, k = noisy(200, [0, 50, 100], 0.02, 2)
    result = recover_to_tolerance(q, k, 0.1, kernels=kernels, scale=1.0, samples=200)  # every row
    errors, residual = row_errors_by_definition(q * np.sqrt(q.shape[1]), k, result.basis)
    assert result.error == pytest.approx(errors.max(), rel=1e-12)
    assert result.residual == pytest.approx(residual.max(), rel=1e-12)
    assert result.error <= result.sharp_bound <= result.posterior_bound
    assert result.exceeding == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_row_differences_are_those_of_the_definition(dtype):
    q, k, _ = attention_inputs(150, 8, seed=3, deviation=5.0, dtype=dtype)
    basis = basis_from_starts(q, k, [0, 7, 100, 149])
    errors, residual = row_errors_by_definition(q, k, basis)
    wide = q.astype(np.float64), k.astype(np.float64)
    for row in (0, 1, 6, 7, 50, 149):
        found = row_differences(*wide, 1 / np.sqrt(8), basis, np.array([row]))
        assert found.error == pytest.approx(errors[row], rel=1e-10, abs=1e-14)
        assert found.residual == pytest.approx(residual[row], rel=1e-10, abs=1e-13)
    found = row_differences(*wide, 1 / np.sqrt(8), basis, np.arange(150))
    assert found.error == pytest.approx(errors.max(), rel=1e-10)


@pytest.mark.slow
def test_the_statement_about_unseen_rows_is_right_more_often_than_it_says():
    """One row in ten is beyond the tolerance in a way that few samples may miss: count how often the claim is wrong."""
    n, wrong = 500, 0
    q, k, _, _ = rope_structured(n, 8, starts=2, seed=0)
    rng = np.random.default_rng(0)
    spoiled = rng.choice(n, n // 10, replace=False)
    q = q.copy()
    q[spoiled] += rng.standard_normal((n // 10, 8))
    trials = 200
    for seed in range(trials):
        result = recover_to_tolerance(q, k, 1e-9, samples=8, confidence=0.6, n_basis=2, seed=seed)
        if result.found:
            beyond = (row_errors_by_definition(q, k, result.basis)[0] > 1e-9).mean()
            wrong += beyond > result.exceeding
    assert wrong <= 0.4 * trials


def test_a_row_that_the_search_did_not_see_sends_it_on():
    """A basis that fails only on fresh rows is not accepted: more terms are tried."""
    bad = set(range(50, 100))

    def measure(count, rows):
        return RowErrors(float(count < 6 and bool(bad & set(rows.tolist()))), 0.0)

    search = TermSearch(measure, 10, 0.5, np.arange(50))
    assert search.fewest() == 1
    assert not search.confirmed(1, np.arange(40, 60))
    assert search.fewest() == 6
    assert search.confirmed(6, np.arange(100))


@pytest.mark.parametrize("first", [1, 2, 3, 7, 8, 9, 64], ids="first={}".format)
def test_the_search_finds_the_first_number_that_serves(first):
    calls = []

    def measure(count, rows):
        calls.append(count)
        return RowErrors(float(count < first), 0.0)

    assert TermSearch(measure, 64, 0.5, np.arange(3)).fewest() == first
    assert len(calls) <= 2 * np.ceil(np.log2(first + 1)) + 1


def test_the_search_gives_up_at_the_most():
    search = TermSearch(lambda count, rows: RowErrors(1.0, 1.0), 10, 0.5, np.arange(3))
    assert search.fewest() is None
    assert sorted(search.tried) == [1, 2, 4, 8, 10]
    assert search.fewest() is None


def test_without_the_means_the_least_squares_kernels_would_not_be_used(monkeypatch):
    """Planted: the wrong kernels under the right name change what is found."""
    q, k = noisy(400, [0, 200], 0.1, 0)
    monkeypatch.setitem(fewest.KERNELS, "least-squares", basis_from_starts)
    assert not recover_to_tolerance(q, k, 0.11, kernels="least-squares", scale=1.0, n_basis=32).found


def test_a_planted_error_in_a_kernel_is_seen_by_the_sampled_rows(monkeypatch):
    def off(q, k, starts, scale):
        basis = basis_from_starts(q, k, starts, scale=scale)
        kernels = basis.kernels.copy()
        kernels[0, 0] += 1e-6
        return ConvBasis(basis.starts, kernels)

    q, k, _, _ = rope_structured(300, 8, starts=3, seed=0)
    assert recover_to_tolerance(q, k, 1e-9, n_basis=8).found
    monkeypatch.setitem(fewest.KERNELS, "column", off)
    assert not recover_to_tolerance(q, k, 1e-9, n_basis=8).found


def test_splitting_and_choosing_come_near_the_best_starts():
    """On structure in noise, the squared error of the sampled choice is within 5 % of the optimum, for every k."""
    q, k = noisy(300, [0, 40, 90, 140, 230], 0.3, 5)
    h = np.tril(q @ k.T)
    best = best_starts(q, k, 10, scale=1.0)
    found = sampled_starts(q, k, 1.0, 10, np.random.default_rng(0))
    for count in range(1, 11):
        error = np.sum((h - least_squares_basis(q, k, found.starts[count - 1], scale=1.0).to_dense()) ** 2)
        assert best.squared_error[count - 1] <= error * (1 + 1e-12)
        if count >= 5:
            assert error <= 1.05 * best.squared_error[count - 1]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 5000], ids="n={}".format)
def test_sampled_lags_are_ascending_lags_with_the_diagonal(n):
    lags = sampled_lags(n, np.random.default_rng(0))
    assert lags[0] == 0
    assert (np.diff(lags) > 0).all()
    assert lags[-1] < n


@pytest.mark.parametrize("n", [1, 2, 3], ids="n={}".format)
def test_the_smallest_inputs(n):
    q, k, _ = attention_inputs(n, 2, seed=0)
    result = recover_to_tolerance(q, k, 1e-12)
    assert result.found
    assert row_errors_by_definition(q, k, result.basis)[0].max() <= 1e-12


def test_constant_logits_are_one_term():
    result = recover_to_tolerance(np.ones((100, 2)), np.ones((100, 2)), 1e-12)
    assert result.basis.starts.tolist() == [0]


def test_a_seed_repeats_itself():
    q, k = noisy(300, [0, 100], 0.1, 3)
    one, two = (recover_to_tolerance(q, k, 0.15, scale=1.0, seed=7, kernels="least-squares") for _ in range(2))
    assert one.curve == two.curve
    assert one.error == two.error


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance: 0.0 came, a number above 0"),
        ({"tolerance": np.nan}, ValueError, "tolerance"),
        ({"tolerance": "x"}, TypeError, "tolerance"),
        ({"kernels": "mean"}, ValueError, "kernels: 'mean' came, one of 'column', 'least-squares'"),
        ({"n_basis": 0}, ValueError, "n_basis: 0 came"),
        ({"samples": 0}, ValueError, "samples: 0 came"),
        ({"confidence": 1.0}, ValueError, "confidence: 1.0 came, a number below 1"),
        ({"confidence": 0.0}, ValueError, "confidence: 0.0 came"),
        ({"seed": -1}, ValueError, "seed: -1 came"),
        ({"q": np.ones((6, 3))}, ValueError, "q, k: shapes"),
        ({"q": np.full((6, 2), np.nan)}, ValueError, "q: nan at index"),
        ({"q": np.full((6, 2), 1e300), "k": np.full((6, 2), 1e300)}, ValueError, "q, k: .*logit"),
    ],
    ids=lambda x: str(sorted(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"q": np.ones((6, 2)), "k": np.ones((6, 2)), "tolerance": 0.1, **arguments}
    with pytest.raises(error, match=message):
        recover_to_tolerance(arguments.pop("q"), arguments.pop("k"), arguments.pop("tolerance"), **arguments)
