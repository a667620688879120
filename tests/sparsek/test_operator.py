from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn.sparsek import (
    sparsek_by_bisection,
    sparsek_jacobian,
    sparsek_jvp,
    sparsek_operator,
    sparsek_threshold,
    sparsek_vjp,
)
from refattn.testing import relative_error

SCALES = [10.0**e for e in range(-12, 13, 2)]
LENGTHS = (1, 2, 3, 7, 40)
KINDS = ("normal", "ties", "heavy tails", "integers")
BATCH = 5


def _draw(kind: str, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    if kind == "normal":
        return scale * rng.standard_normal(shape)
    if kind == "ties":  # equal large values, a spread of order one around them
        return scale * rng.choice(rng.standard_normal(3), shape) + rng.choice([0.0, 0.25, 0.5], shape)
    if kind == "heavy tails":
        return scale * rng.standard_cauchy(shape)
    return scale * rng.integers(-3, 4, shape)


def _grid():
    """Yield more than 10,000 problems: (z of shape (BATCH, m), k)."""
    rng = np.random.default_rng(5)
    for scale in SCALES:
        for m in LENGTHS:
            for kind in KINDS:
                for k in sorted({0.0, 0.3, 1.0, 1.5, 2.0, m / 3, m / 2, max(m - 1.0, 0.0), m - 0.5, float(m), m + 1.0}):
                    yield _draw(kind, rng, (BATCH, m), scale), k


def _threshold_error(got: np.ndarray, right: np.ndarray) -> float:
    same = got == right  # also −∞
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0, np.abs(got - right) / np.maximum(1, np.abs(right))).max())


def _kkt_residual(z: np.ndarray, p: np.ndarray, k: float) -> float:
    """Feasibility, and stationarity: one τ with z − p = τ inside, ≥ τ at one, ≤ τ at zero, relative to the scores."""
    feasible = max(abs(p.sum(axis=-1) - min(k, z.shape[-1])).max() / max(k, 1), -p.min(initial=0), p.max(initial=0) - 1)
    residual = z - p
    size = np.maximum(1, np.abs(z))
    low = np.where(p > 0, residual, np.inf).min(axis=-1)  # τ is at most this
    high = np.where(p < 1, residual, -np.inf).max(axis=-1)  # and at least this
    gap = (high - low) / size.max(axis=-1)
    return float(max(feasible, gap.max()))


@pytest.mark.slow
def test_sorting_and_bisection_agree_on_ten_thousand_problems_of_every_scale():
    worst_p = worst_tau = problems = 0
    for z, k in _grid():
        p, tau = sparsek_by_bisection(z, k)
        worst_p = max(worst_p, np.abs(sparsek_operator(z, k) - p).max())
        worst_tau = max(worst_tau, _threshold_error(sparsek_threshold(z, k), tau))
        problems += len(z)
    assert problems >= 10_000
    assert worst_p <= 1e-12
    assert worst_tau <= 1e-12


@pytest.mark.slow
def test_the_solution_satisfies_the_optimality_conditions():
    assert max(_kkt_residual(z, sparsek_operator(z, k), k) for z, k in _grid()) <= 1e-12


@pytest.mark.slow
@given(
    z=st.lists(st.floats(-1e12, 1e12) | st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=1, max_size=30),
    fraction=st.floats(0, 1),
    whole=st.booleans(),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_the_solvers_agree_and_are_optimal_on_whatever_hypothesis_finds(z, fraction, whole):
    scores = np.array([z])
    k = round(fraction * len(z)) if whole else fraction * len(z)
    p, tau = sparsek_by_bisection(scores, k)
    assert np.abs(sparsek_operator(scores, k) - p).max() <= 1e-12
    assert _threshold_error(sparsek_threshold(scores, k), tau) <= 1e-12
    assert _kkt_residual(scores, sparsek_operator(scores, k), k) <= 1e-12


def _exact(z: np.ndarray, k: float) -> list[Fraction]:
    """Solve in rational numbers: try every pair (u, w), keep the consistent one."""
    ordered = sorted((Fraction(x) for x in z), reverse=True)
    budget = Fraction(k)
    for u in range(len(z) + 1):
        for w in range(u + 1, len(z) + 1):
            tau = (sum(ordered[u:w]) + u - budget) / (w - u)
            p = [min(max(x - tau, Fraction(0)), Fraction(1)) for x in ordered]
            if sum(p) == budget:
                return [min(max(Fraction(x) - tau, Fraction(0)), Fraction(1)) for x in z]
    raise AssertionError("no consistent pair of sets")


@pytest.mark.parametrize("k", [0.3, 1, 2, 2.5, 5.75], ids=lambda k: f"k={k}")
@pytest.mark.parametrize("scale", [1e-12, 0.3, 1.0, 1e4, 1e12], ids=lambda s: f"scale={s:g}")
def test_the_operator_equals_rational_arithmetic(scale, k):
    rng = np.random.default_rng(11)
    for _ in range(5):
        z = scale * np.round(rng.standard_normal(6), 2)
        right = np.array([float(x) for x in _exact(z, k)])
        assert np.abs(sparsek_operator(z, k) - right).max() <= 4e-16 * 6
        assert np.abs(sparsek_by_bisection(z, k)[0] - right).max() <= 4e-16 * 6


@pytest.mark.parametrize("k", [0.5, 1, 3, 6.25], ids=lambda k: f"k={k}")
def test_a_general_quadratic_solver_finds_the_same_projection(k):
    rng = np.random.default_rng(3)
    for _ in range(5):
        z = rng.standard_normal(9)
        found = scipy.optimize.minimize(
            lambda p, z=z: 0.5 * ((p - z) ** 2).sum(),
            np.full(9, k / 9),
            jac=lambda p, z=z: p - z,
            bounds=[(0, 1)] * 9,
            constraints={"type": "eq", "fun": lambda p: p.sum() - k, "jac": lambda p: np.ones(9)},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert np.abs(sparsek_operator(z, k) - found.x).max() <= 1e-7


def test_a_budget_of_one_is_sparsemax():
    rng = np.random.default_rng(7)
    z = rng.standard_normal((200, 12))
    ordered = -np.sort(-z, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    size = (1 + np.arange(1, 13) * ordered > sums).sum(axis=-1, keepdims=True)  # Martins and Astudillo (2016)
    tau = (np.take_along_axis(sums, size - 1, axis=-1) - 1) / size
    np.testing.assert_allclose(sparsek_operator(z, 1), np.maximum(z - tau, 0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("k", [0, 1, 4, 9, 10], ids=lambda k: f"k={k}")
def test_cooling_the_scores_gives_the_hard_top_k(k):
    z = np.random.default_rng(1).standard_normal((50, 10))
    top = np.argsort(np.argsort(-z, axis=-1), axis=-1) < k
    distances = [np.abs(sparsek_operator(z / t, k) - top).max() for t in (1.0, 0.1, 1e-9)]
    assert distances[0] >= distances[1] >= distances[2] == 0


def test_no_entry_inside_takes_the_smallest_threshold():
    assert sparsek_threshold([5.0, 3.0, 1.0], 1) == 3.0
    assert sparsek_threshold([5.0, 3.0, 1.0], 0) == 5.0
    assert sparsek_threshold([5.0, 3.0, 1.0], 3) == -np.inf
    np.testing.assert_array_equal(sparsek_operator([5.0, 3.0, 1.0], 1), [1, 0, 0])


def test_a_score_of_minus_infinity_is_as_if_it_were_not_there():
    z = np.random.default_rng(2).standard_normal((30, 8))
    with_holes = np.insert(z, [0, 3, 8], -np.inf, axis=-1)
    kept = np.isfinite(with_holes[0])
    for k in (0, 1.5, 7.9, 8, 10):
        p = sparsek_operator(with_holes, k)
        np.testing.assert_array_equal(p[:, ~kept], 0)
        np.testing.assert_allclose(p[:, kept], sparsek_operator(z, k), rtol=0, atol=1e-15)
        np.testing.assert_allclose(sparsek_by_bisection(with_holes, k)[0], p, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(sparsek_operator(np.full(3, -np.inf), 2), 0)


def test_equal_scores_get_equal_entries_and_shifts_and_permutations_pass_through():
    rng = np.random.default_rng(4)
    z = rng.choice([0.0, 0.25, 0.5, 2.0], (40, 9))
    p = sparsek_operator(z, 3)
    assert all(len(set(row[z_row == value])) <= 1 for row, z_row in zip(p, z, strict=True) for value in np.unique(z))
    np.testing.assert_array_equal(sparsek_operator(z + 1024.0, 3), p)  # the shift is exact in binary
    order = rng.permutation(9)
    np.testing.assert_array_equal(sparsek_operator(z[:, order], 3), p[:, order])


def test_any_axis_and_single_precision():
    z = np.random.default_rng(6).standard_normal((3, 5, 4)).astype(np.float32)
    before = z.copy()
    right = sparsek_operator(z.astype(np.float64), 1.5)
    p = sparsek_operator(z, 1.5)
    assert p.dtype == np.float32
    np.testing.assert_array_equal(p, right.astype(np.float32))
    np.testing.assert_array_equal(sparsek_operator(np.moveaxis(z, -1, 1), 1.5, axis=1), np.moveaxis(p, -1, 1))
    dz = np.moveaxis(z, -1, 0)
    pulled = sparsek_vjp(np.moveaxis(p, -1, 0), dz, axis=0)
    np.testing.assert_array_equal(pulled.z, np.moveaxis(sparsek_vjp(p, z).z, -1, 0))
    np.testing.assert_array_equal(sparsek_jvp(np.moveaxis(p, -1, 0), dz, axis=0), np.moveaxis(sparsek_jvp(p, z), -1, 0))
    assert pulled.k.shape == (3, 5)
    np.testing.assert_array_equal(z, before)


def _smooth_point(rng: np.random.Generator, m: int, k: float) -> np.ndarray:
    """Scores whose entries all stay 5e-3 away from the kinks at τ and τ + 1."""
    while True:
        z = 0.6 * rng.standard_normal(m)
        above = z - sparsek_threshold(z, k)
        if min(np.abs(above).min(), np.abs(above - 1).min()) > 5e-3:
            return z


@pytest.mark.parametrize("k", [0.4, 1, 2.5, 3, 7], ids=lambda k: f"k={k}")
def test_derivatives_equal_central_differences_away_from_kinks(k):
    rng = np.random.default_rng(8)
    h = 1e-4
    for _ in range(10):
        z = _smooth_point(rng, 8, k)
        p, dz, dp = sparsek_operator(z, k), rng.standard_normal(8), rng.standard_normal(8)
        dz /= np.linalg.norm(dz)
        along = (sparsek_operator(z + h * dz, k) - sparsek_operator(z - h * dz, k)) / (2 * h)
        in_k = (sparsek_operator(z, k + h) - sparsek_operator(z, k - h)) / (2 * h)
        columns = np.array(
            [(sparsek_operator(z + h * e, k) - sparsek_operator(z - h * e, k)) / (2 * h) for e in np.eye(8)]
        ).T
        np.testing.assert_allclose(sparsek_jacobian(p), columns, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sparsek_jvp(p, dz), along, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sparsek_vjp(p, dp).z, columns.T @ dp, rtol=0, atol=1e-8 * np.abs(dp).sum())
        if ((p > 0) & (p < 1)).any():
            np.testing.assert_allclose(sparsek_jvp(p, 0 * dz, 1.0), in_k, rtol=0, atol=1e-8)
            np.testing.assert_allclose(sparsek_vjp(p, dp).k, in_k @ dp, rtol=0, atol=1e-8 * np.abs(dp).sum())


def test_pulling_back_is_the_adjoint_of_pushing_forward_and_both_are_the_dense_jacobian():
    rng = np.random.default_rng(9)
    for k in (0.5, 1, 3.25, 6):
        p = sparsek_operator(rng.standard_normal((300, 10)), k)
        dz, dp, dk = rng.standard_normal((300, 10)), rng.standard_normal((300, 10)), rng.standard_normal(300)
        forward = sparsek_jvp(p, dz, dk)
        pulled = sparsek_vjp(p, dp)
        left, right = (dp * forward).sum(axis=-1), (pulled.z * dz).sum(axis=-1) + pulled.k * dk
        size = np.linalg.norm(dp, axis=-1) * (np.linalg.norm(dz, axis=-1) + np.abs(dk))
        assert (np.abs(left - right) / size).max() <= 1e-13
        jacobian = sparsek_jacobian(p)
        assert relative_error(sparsek_jvp(p, dz), np.einsum("bij,bj->bi", jacobian, dz)) <= 1e-13
        assert relative_error(pulled.z, np.einsum("bij,bi->bj", jacobian, dp)) <= 1e-13


KINKS = [
    pytest.param([0.75, 0.25, 0.0], 1, 2, -1, id="an entry exactly at zero"),
    pytest.param([1.0, 0.75, 0.25], 2, 0, +1, id="an entry exactly at one"),
]


@pytest.mark.parametrize(("z", "k", "at_kink", "outwards"), KINKS)
def test_at_a_kink_the_derivative_is_the_one_sided_one_of_directions_that_push_the_entry_out(z, k, at_kink, outwards):
    z = np.array(z)
    p = sparsek_operator(z, k)
    assert p[at_kink] in (0, 1)
    assert sparsek_threshold(z, k) == 0
    rng = np.random.default_rng(10)
    h = 2.0**-20
    seen = {True: 0, False: 0}
    for dz in rng.standard_normal((40, 3)):
        free = np.delete(np.arange(3), at_kink)
        out = bool(outwards * (dz[at_kink] - dz[free].mean()) > 0)  # against the motion of τ
        one_sided = (sparsek_operator(z + h * dz, k) - p) / h
        assert bool(np.abs(one_sided - sparsek_jvp(p, dz)).max() <= 1e-8) == out
        seen[out] += 1
    assert min(seen.values()) > 0


def test_without_an_entry_inside_every_derivative_is_zero():
    p = sparsek_operator([5.0, 3.0, 1.0], 1)
    np.testing.assert_array_equal(sparsek_jacobian(p), np.zeros((3, 3)))
    np.testing.assert_array_equal(sparsek_jvp(p, [1.0, 2.0, 3.0], 1.0), 0)
    assert sparsek_vjp(p, [1.0, 2.0, 3.0]).k == 0


MUTANTS = [
    pytest.param("total + at_one - k", "total - k", id="entries at one forgotten in the threshold"),
    pytest.param("keepdims=True) - 1, 0)", "keepdims=True) - 2, 0)", id="the piece above the right one"),
    pytest.param("interior = (y > middle) & (y < middle + 1)", "interior = y > middle", id="ones counted as inside"),
]


@pytest.mark.parametrize(("right", "wrong"), MUTANTS)
def test_an_error_planted_in_the_solver_is_caught(plant, right, wrong):
    mutant = plant("refattn.sparsek.operator", right, wrong)
    z = np.random.default_rng(12).normal(0, 0.5, (50, 9))
    assert _kkt_residual(z, sparsek_operator(z, 4.5), 4.5) <= 1e-12
    assert _kkt_residual(z, mutant.sparsek_operator(z, 4.5), 4.5) > 1e-6


BAD = [
    pytest.param([1.0, np.nan], 1, r"z: nan at index \(1,\), finite scores or −inf were wanted", id="a NaN score"),
    pytest.param([np.inf, 1.0], 1, r"z: inf at index \(0,\)", id="a score of plus infinity"),
    pytest.param([1.0, 2.0], np.nan, "k: nan came, a finite number was wanted", id="k is NaN"),
    pytest.param([1.0, 2.0], np.inf, "k: inf came, a finite number was wanted", id="k is infinite"),
    pytest.param([1.0, 2.0], -0.5, "k: -0.5 came, at least 0", id="k is negative"),
    pytest.param([], 1, "z: shape .* came with an empty axis", id="no scores"),
    pytest.param(1.0, 1, r"z: shape \(\) came", id="a scalar"),
]


@pytest.mark.parametrize(("z", "k", "message"), BAD)
def test_bad_problems_are_refused_by_name(z, k, message):
    for function in (sparsek_operator, sparsek_threshold, sparsek_by_bisection):
        with pytest.raises(ValueError, match=message):
            function(z, k)


def test_bad_axes_types_and_tangents_are_refused_by_name():
    with pytest.raises(ValueError, match="axis: 2 came"):
        sparsek_operator([[1.0, 2.0]], 1, axis=2)
    with pytest.raises(TypeError, match="z: dtype complex128 came"):
        sparsek_operator([1j, 2.0], 1)
    with pytest.raises(TypeError, match="k: 'two' came, a real number was wanted"):
        sparsek_operator([1.0, 2.0], "two")
    with pytest.raises(ValueError, match=r"dp: shape \(3,\) came, that of p \(2,\) was wanted"):
        sparsek_vjp([0.5, 0.5], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"dz: nan at index \(0,\)"):
        sparsek_jvp([0.5, 0.5], [np.nan, 0.0])
    with pytest.raises(ValueError, match=r"p: entries in \[0.5, 1.5\] came"):
        sparsek_jacobian([0.5, 1.5])
