"""The dynamic programme finds the best starts: against every partition there is, and costs by the definition."""

from itertools import combinations

import numpy as np
import pytest

from refattn.convbasis import BestStarts, best_starts, best_starts_of_matrix
from refattn.convbasis.starts.partition import all_diagonals, segment_costs, some_diagonals
from refattn.testing import attention_inputs, rope_structured


def naive_cost(h, a, b):
    """Squared error of the columns a … b − 1 about the mean of each diagonal, by the definition."""
    n = len(h)
    entries = [[h[j + t, j] for j in range(a, b) if j + t < n] for t in range(n - a)]
    return sum(float(np.sum((np.array(e) - np.mean(e)) ** 2)) for e in entries)


def naive_best(h, k, places):
    """The least squared error of k starts among the places, over all choices; columns before the first are zero."""
    n = len(h)
    costs = {(a, b): naive_cost(h, a, b) for a, b in combinations([*places, n], 2)}
    return min(
        float(np.sum(h[:, : chosen[0]] ** 2)) + sum(costs[pair] for pair in zip(chosen, [*chosen[1:], n], strict=True))
        for chosen in combinations(places, k)
    )


def logits(q, k):
    return np.tril(q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[-1]))


def error_of(h, starts):
    """Squared error of starts with diagonal means as kernels, by the definition."""
    return float(np.sum(h[:, : starts[0]] ** 2)) + sum(
        naive_cost(h, a, b) for a, b in zip(starts, [*starts[1:], len(h)], strict=True)
    )


@pytest.mark.parametrize("kind", ["normal", "structured", "first columns zero"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 11], ids="n={}".format)
def test_no_choice_of_starts_does_better(n, kind):
    rng = np.random.default_rng(n)
    h = np.tril(rng.standard_normal((n, n)) + 3)
    if kind == "structured" and n > 2:
        h = logits(*rope_structured(n, 4, starts=2, seed=n)[:2]) + 0.01 * h
    if kind == "first columns zero":
        h[:, : n // 2] = 0
    best = best_starts_of_matrix(h, n)
    for k in range(1, n + 1):
        assert len(best.starts[k - 1]) == k
        least = naive_best(h, k, range(n))
        assert best.squared_error[k - 1] == pytest.approx(least, rel=0, abs=1e-12 * best.energy)
        assert error_of(h, best.starts[k - 1]) == pytest.approx(least, rel=0, abs=1e-12 * best.energy)


@pytest.mark.parametrize("grid", [2, 3, 5, 12, 13], ids="grid={}".format)
def test_on_a_grid_no_choice_of_its_places_does_better(grid):
    n = 13
    q, k, _ = attention_inputs(n, 4, seed=grid)
    places = range(0, n, grid)
    best = best_starts(q, k, len(places), grid=grid)
    assert best.grid == grid
    for count in range(1, len(places) + 1):
        assert (best.starts[count - 1] % grid == 0).all()
        least = naive_best(logits(q, k), count, places)
        assert best.squared_error[count - 1] == pytest.approx(least, rel=1e-11)
        assert error_of(logits(q, k), best.starts[count - 1]) == pytest.approx(least, rel=1e-11)


@pytest.mark.parametrize("deviation", [1.0, 100.0], ids="deviation={}".format)
@pytest.mark.parametrize("grid", [1, 7], ids="grid={}".format)
def test_segment_costs_are_those_of_the_definition(grid, deviation):
    n = 140  # more columns than are worked on at once
    q, k, _ = attention_inputs(n, 8, seed=1, deviation=deviation)
    h = logits(q, k) + deviation  # far from a mean of zero
    offset = np.array([h.diagonal(-t).mean() for t in range(n)])
    diagonals = all_diagonals(lambda first, end: h[first:, first:end].T, offset, n, grid)
    costs = segment_costs(diagonals)
    bounds = diagonals.bounds
    for a in range(0, len(bounds) - 1, 3):
        for b in range(a + 1, len(bounds), 5):
            expected = naive_cost(h, bounds[a], bounds[b])
            assert costs[a, b] == pytest.approx(expected, rel=1e-11, abs=1e-13 * np.sum(h**2))
    assert np.isinf(costs[np.tril_indices_from(costs)]).all()


def test_costs_over_some_diagonals_count_only_these():
    n, lags = 40, np.array([0, 1, 7, 20, 39])
    q, k, _ = attention_inputs(n, 8, seed=2)
    h = logits(q, k)
    kept = sum(np.diag(h.diagonal(-t), -t) for t in lags)
    costs = segment_costs(some_diagonals(q, k, 1 / np.sqrt(8), lags))
    for a in range(n):
        for b in range(a + 1, n + 1):
            assert costs[a, b] == pytest.approx(naive_cost(kept, a, b), rel=0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_exact_structure_is_found(dtype):
    q, k, _, starts = rope_structured(400, 16, starts=9, seed=5, dtype=dtype)
    best = best_starts(q, k, 12)
    np.testing.assert_array_equal(best.starts[8], starts)
    assert best.relative_error[7] > 0.05
    assert best.relative_error[8] < (1e-6 if dtype == np.float64 else 1e-5)


def test_the_error_never_rises_and_ends_at_zero():
    q, k, _ = attention_inputs(150, 8, seed=7)
    best = best_starts(q, k, 150)
    assert (np.diff(best.squared_error) <= 0).all()
    assert best.squared_error[-1] == 0.0
    assert best.energy == pytest.approx(np.sum(logits(q, k) ** 2), rel=1e-12)


def test_scale_is_a_factor_of_the_logits():
    q, k, _ = attention_inputs(60, 4, seed=8)
    one, three = best_starts(q, k, 5), best_starts(q, k, 5, scale=1.5)
    np.testing.assert_allclose(three.squared_error, 9 * one.squared_error, rtol=1e-11)


def test_zero_logits_have_no_error():
    best = best_starts(np.zeros((5, 2)), np.ones((5, 2)), 3)
    assert best.relative_error.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_basis": 0}, ValueError, "n_basis: 0 came, at least 1 and at most 6"),
        ({"n_basis": 7}, ValueError, "n_basis: 7 came"),
        ({"n_basis": 4, "grid": 2}, ValueError, r"at most 3 \(places for a start\)"),
        ({"n_basis": 1, "grid": 0}, ValueError, "grid: 0 came"),
        ({"n_basis": 1.5}, TypeError, "n_basis: 1.5 came"),
        ({"n_basis": 1, "scale": "x"}, TypeError, "scale"),
        ({"n_basis": 1, "q": np.full((6, 2), np.nan)}, ValueError, "q: nan at index"),
        ({"n_basis": 1, "q": np.full((6, 2), 1e200), "k": np.full((6, 2), 1e200)}, ValueError, "logits: .* finite"),
        ({"n_basis": 1, "q": np.full((6, 2), 1e160)}, ValueError, "squares of logits: inf"),
        ({"n_basis": 1, "q": np.ones((2, 6, 2))}, ValueError, r"q, k: shapes \(2, 6, 2\)"),
    ],
    ids=lambda x: str(sorted(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"q": np.ones((6, 2)), "k": np.ones((6, 2)), **arguments}
    with pytest.raises(error, match=message):
        best_starts(**arguments)


def test_a_matrix_with_entries_above_the_diagonal_is_refused():
    with pytest.raises(ValueError, match=r"h: entry \(0, 1\) above the diagonal"):
        best_starts_of_matrix(np.ones((3, 3)), 1)


def test_tables_that_do_not_fit_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("refattn._memory.available_bytes", lambda: 2.0**26)
    q = np.zeros((6000, 1))
    with pytest.raises(MemoryError, match="prefix sums of the diagonals"):
        best_starts(q, q, 2)


def test_the_result_is_plain_data():
    best = best_starts_of_matrix(np.eye(3), 2)
    assert isinstance(best, BestStarts)
    assert best.starts[0].dtype == np.int64
    assert best.squared_error.shape == (2,)


@pytest.mark.parametrize("lags", [[0], [3, 5, 20], list(range(21))], ids=str)
def test_sums_along_some_diagonals_are_those_of_the_definition(lags):
    n = 21
    q, k, _ = attention_inputs(n, 4, seed=n)
    found = some_diagonals(q, k, 0.7, np.array(lags))
    np.testing.assert_array_equal(found.bounds, np.arange(n + 1))
    h = 0.7 * q @ k.T
    centred = {t: h.diagonal(-t) - h.diagonal(-t).mean() for t in lags}
    for b in range(n + 1):
        np.testing.assert_allclose(found.sums[b], [centred[t][:b].sum() for t in lags], rtol=0, atol=1e-13)
        assert found.energy[b] == pytest.approx(sum((centred[t][:b] ** 2).sum() for t in lags), abs=1e-12)
        assert found.plain_energy[b] == pytest.approx(sum((h.diagonal(-t)[:b] ** 2).sum() for t in lags), abs=1e-12)
