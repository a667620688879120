from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refattn.sparsek import (
    SupportIntervals,
    prefix_pullback,
    prefix_thresholds,
    selection_intervals,
    sparsek_jacobian,
    sparsek_operator,
    sparsek_threshold,
    support_intervals,
)
from refattn.testing import check_gradients, relative_error, tolerance


def _sequence(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "random": lambda: rng.standard_normal(n),
        "rising": lambda: np.sort(rng.standard_normal(n)),
        "falling": lambda: -np.sort(rng.standard_normal(n)),
        "constant": lambda: np.full(n, 0.3),
        "heavy-tailed": lambda: rng.standard_cauchy(n),
        "drifting": lambda: rng.standard_normal(n) + 0.01 * np.arange(n),
        "from far below": lambda: rng.standard_normal(n) + np.linspace(-1e6, 0, n),
        "tied": lambda: rng.integers(0, 5, n) * 0.5,
        "with holes": lambda: np.where(rng.random(n) < 0.2, -np.inf, rng.standard_normal(n)),
    }[kind]()


KINDS = ("random", "rising", "falling", "constant", "heavy-tailed", "drifting", "from far below", "tied", "with holes")
BUDGETS = [pytest.param(k, id=f"k={k}") for k in (0, 0.5, 1, 3, 7.25, 16)]


def _require_thresholds(tau: np.ndarray, naive: np.ndarray, rtol: float = 1e-12) -> None:
    """The checker: equal to the naive thresholds, and never falling, to the last bit."""
    assert (tau[1:] >= tau[:-1]).all(), "τ falls"
    same = tau == naive
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(tau - naive) / np.maximum(1, np.abs(naive)))
    assert error.max() <= rtol, f"τ is off by {error.max():.3g}"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS[:6])
def test_two_heaps_equal_sorting_every_prefix_for_five_thousand_scores(kind):
    z = _sequence(kind, 5000)
    for k in (16, 64.5):
        naive = prefix_thresholds(z, k, method="oracle")
        for method in ("paper", "fast"):
            _require_thresholds(prefix_thresholds(z, k, method=method), naive)


@pytest.mark.parametrize("k", BUDGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_heaps_equal_sorting_every_prefix_on_short_sequences(kind, k):
    for n in (1, 2, 3, 63, 64, 65):
        z = _sequence(kind, n, seed=n)
        _require_thresholds(prefix_thresholds(z, k), prefix_thresholds(z, k, method="oracle"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_heaps_give_the_bits_of_the_paper_form(kind):
    z = _sequence(kind, 3000, seed=1)
    for k in (0, 1, 8, 33.5):
        np.testing.assert_array_equal(prefix_thresholds(z, k), prefix_thresholds(z, k, method="paper"))


def test_a_million_drifting_steps_lose_nothing():
    n = 1_000_000
    z = _sequence("drifting", n, seed=2) - 5000
    tau = prefix_thresholds(z, 32)
    assert (tau[1:] >= tau[:-1]).all()
    for i in (31, 32, 999, 123_456, n - 1):  # scores more than 20 below the last cannot matter
        recent = z[max(0, i - 10_000) : i + 1]
        right = sparsek_threshold(recent, 32)
        assert tau[i] == right or abs(tau[i] - right) <= 1e-12 * abs(right)


def test_batches_are_independent_rows():
    z = np.stack([[_sequence("random", 40, s), _sequence("tied", 40, s)] for s in range(3)]).astype(np.float32)
    before = z.copy()
    tau = prefix_thresholds(z, 4)
    assert tau.shape == (3, 2, 40)
    assert tau.dtype == np.float64
    np.testing.assert_array_equal(tau[2, 1], prefix_thresholds(z[2, 1], 4))
    support, chosen = support_intervals(z, tau), selection_intervals(z, 4, 3)
    np.testing.assert_array_equal(support.exit[1, 0], support_intervals(z[1, 0], tau[1, 0]).exit)
    np.testing.assert_array_equal(chosen.exit[1, 0], selection_intervals(z[1, 0], 4, 3).exit)
    np.testing.assert_array_equal(z, before)


def _dense_gates(z: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Row i: the gates of the prefix of length i + 1, zero behind it, by definition."""
    with np.errstate(invalid="ignore"):
        gates = np.clip(z[None, :] - tau[:, None], 0, 1)
    gates[:, np.isneginf(z)] = 0
    return np.where(np.tri(z.size, dtype=bool), gates, 0)


def _inside_ranges(n: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    i = np.arange(n)[:, None]
    return (start <= i) & (i < stop)


def _require_support(z: np.ndarray, k: float, found) -> None:
    """The checker: intervals say where every dense gate is one, inside and zero, exactly."""
    gates = _dense_gates(z, prefix_thresholds(z, k, method="oracle"))
    n = z.size
    np.testing.assert_array_equal(_inside_ranges(n, found.enter, found.soften), gates == 1)
    np.testing.assert_array_equal(_inside_ranges(n, found.soften, found.exit), (gates > 0) & (gates < 1))
    assert ((found.enter <= found.soften) & (found.soften <= found.exit)).all()


@pytest.mark.parametrize("k", BUDGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_is_one_then_inside_then_zero_over_contiguous_ranges(kind, k):
    for n in (1, 2, 65):
        z = _sequence(kind, n, seed=3)
        _require_support(z, k, support_intervals(z, prefix_thresholds(z, k, method="oracle")))


def _require_selection(z: np.ndarray, n_select: int, window: int, found) -> None:
    """The checker: each query's choice, by ranking its candidates from the definition."""
    n = z.size
    chosen = _inside_ranges(n, found.enter, found.exit)
    for i in range(n):
        candidates = sorted((-z[j], j) for j in range(i - window + 1) if z[j] > -np.inf)
        assert set(np.nonzero(chosen[i])[0].tolist()) == {j for _, j in candidates[:n_select]}


@pytest.mark.parametrize("window", [0, 1, 5, 64, 65, 100], ids=lambda w: f"w={w}")
@pytest.mark.parametrize("n_select", [0, 1, 2, 7, 64, 100], ids=lambda k: f"k={k}")
def test_selection_intervals_are_the_best_scored_pairs_outside_the_window(n_select, window):
    for kind in KINDS:
        z = _sequence(kind, 65, seed=4)
        for method in ("paper", "fast"):
            _require_selection(z, n_select, window, selection_intervals(z, n_select, window, method=method))


@pytest.mark.parametrize("kind", KINDS)
def test_the_support_always_holds_the_hard_top_k_with_gates_bounded_below(kind):
    z, k = _sequence(kind, 300, seed=5), 8
    gates = _dense_gates(z, prefix_thresholds(z, k))
    chosen = _inside_ranges(300, *selection_intervals(z, k))
    candidates = np.cumsum(z > -np.inf)
    floor = 1 / np.maximum(candidates - k + 1, 1)
    slack = 4 * np.finfo(float).eps * np.abs(z[np.isfinite(z)]).max()  # the rounding of z − τ
    assert (gates >= floor[:, None] - slack)[chosen].all()
    assert (gates[chosen] > 0).all()


def _pull(z: np.ndarray, k: float, upstream: np.ndarray, pullback=prefix_pullback) -> np.ndarray:
    support = support_intervals(z, prefix_thresholds(z, k))
    inside = np.where(_inside_ranges(z.size, support.soften, support.exit), upstream, 0)
    return pullback(inside.sum(axis=1), inside.sum(axis=0), support)


def _require_pullback(z: np.ndarray, k: float, pullback) -> None:
    """The checker: fourth-order central differences through the operator of every prefix, sorted one by one."""

    def operators(z: np.ndarray) -> np.ndarray:
        return np.stack([np.pad(sparsek_operator(z[: i + 1], k), (0, z.size - i - 1)) for i in range(z.size)])

    check_gradients(
        operators,
        lambda upstream: {"z": _pull(z, k, upstream, pullback)},
        {"z": z},
        rtol=tolerance("differences").rtol,
        step=1e-4,
    )


@pytest.mark.parametrize("k", [0, 0.5, 1, 3, 4.25, 11, 12], ids=lambda k: f"k={k}")
def test_the_linear_time_backward_equals_central_differences(away_from_kinks, k):
    for seed in range(3):
        _require_pullback(away_from_kinks(seed, 12, k), k, prefix_pullback)


@pytest.mark.parametrize("kind", KINDS[:8])
def test_the_linear_time_backward_equals_the_dense_jacobians(kind):
    z = _sequence(kind, 200, seed=6)
    upstream = np.random.default_rng(7).standard_normal((200, 200))
    for k in (1, 5, 20.5):
        gates = _dense_gates(z, prefix_thresholds(z, k))
        dense = sum(sparsek_jacobian(row) @ g for row, g in zip(gates, upstream, strict=True))
        assert relative_error(_pull(z, k, upstream), dense) <= 1e-12


PREFIX_MUTANTS = [
    pytest.param(
        "total, lost = _add(total, lost, -heapq.heappop(interior))",
        "heapq.heappop(interior)",
        id="the interior's sum not updated when an entry falls to zero",
    ),
    pytest.param(
        "heapq.heappush(interior, moved)\n", "pass\n", id="the interior's heap not updated when an entry leaves one"
    ),
    pytest.param("tau = max(tau, min(solved, to_zero, from_one))", "tau = max(tau, solved)", id="events ignored"),
    pytest.param("if new - tau >= 1:", "if new - tau >= 2:", id="entries at one put in the interior"),
]


@pytest.mark.parametrize(("right", "wrong"), PREFIX_MUTANTS)
def test_an_error_planted_in_the_heaps_is_caught(plant, right, wrong):
    z = _sequence("drifting", 400)
    naive = prefix_thresholds(z, 16, method="oracle")
    _require_thresholds(prefix_thresholds(z, 16, method="paper"), naive)
    mutant = plant("refattn.sparsek.prefix", right, wrong)
    with pytest.raises(AssertionError, match="τ"):
        _require_thresholds(mutant.prefix_thresholds(z, 16, method="paper"), naive)


KERNEL_MUTANTS = [
    pytest.param("change = -to_zero", "change = 0.0", id="the interior's sum not updated when an entry falls to zero"),
    pytest.param("_push(interior, n_interior, new)", "interior[n_interior] = new", id="a new entry not sifted up"),
    pytest.param("_pop(ones, n_ones)", "pass", id="the heap of ones not updated when its top leaves"),
    pytest.param("child += heap[child + 1] < heap[child]", "pass", id="a heap that sinks to the wrong child"),
    pytest.param("(n_ones - k)", "(n_ones + 1 - k)", id="one entry at one too many"),
]


@pytest.mark.parametrize(("right", "wrong"), KERNEL_MUTANTS)
def test_an_error_planted_in_the_compiled_loop_is_caught(plant, monkeypatch, right, wrong):
    z = _sequence("drifting", 400)
    naive = prefix_thresholds(z, 16, method="oracle")
    _require_thresholds(prefix_thresholds(z, 16), naive)
    mutant = plant("refattn.sparsek._prefix_loops", right, wrong)
    monkeypatch.setattr("refattn.sparsek._prefix_loops.thresholds_of_prefixes", mutant.thresholds_of_prefixes)
    with pytest.raises(AssertionError, match="τ"):
        _require_thresholds(prefix_thresholds(z, 16), naive)


def test_an_interval_that_ends_one_too_late_is_caught(plant):
    mutant = plant("refattn.sparsek.prefix", "bounds[alive] = low", "bounds[alive] = np.minimum(low + 1, z.size)")
    z = _sequence("random", 65)
    tau = prefix_thresholds(z, 7)
    _require_support(z, 7, support_intervals(z, tau))
    with pytest.raises(AssertionError):
        _require_support(z, 7, mutant.support_intervals(z, tau))


SELECTION_MUTANTS = [
    pytest.param("exits[heap[0]] = i", "exits[heap[0]] = i + 1", id="an evicted pair kept for one query more"),
    pytest.param("elif z[i] <= z[heap[0]]:", "elif z[i] < z[heap[0]]:", id="ties to the later position"),
]


@pytest.mark.parametrize(("right", "wrong"), SELECTION_MUTANTS)
def test_an_error_planted_in_the_selection_is_caught(plant, monkeypatch, right, wrong):
    z = _sequence("tied", 65)
    _require_selection(z, 7, 3, selection_intervals(z, 7, 3))
    mutant = plant("refattn.sparsek._prefix_loops", right, wrong)
    monkeypatch.setattr("refattn.sparsek._prefix_loops.exits_from_the_best", mutant.exits_from_the_best)
    with pytest.raises(AssertionError):
        _require_selection(z, 7, 3, selection_intervals(z, 7, 3))


PULLBACK_MUTANTS = [
    pytest.param(
        "for x in (soften, exits))",
        "for x in (intervals.enter.reshape(-1, n), exits))",
        id="the mean over the wrong support",
    ),
    pytest.param(
        "sums[row, exits] - sums[row, soften]",
        "sums[row, exits] - sums[row, soften + 1]",
        id="the interval's start off by one",
    ),
    pytest.param(
        "sums[row, exits] - sums[row, soften]",
        "sums[row, exits - (exits > soften)] - sums[row, soften]",
        id="the interval's end off by one",
    ),
    pytest.param(
        "gradient = gradient.astype", "gradient = 1.001 * gradient.astype", id="a gradient off by a thousandth"
    ),
]


@pytest.mark.parametrize(("right", "wrong"), PULLBACK_MUTANTS)
def test_an_error_planted_in_the_backward_is_caught(plant, away_from_kinks, right, wrong):
    z = away_from_kinks(0, 12, 3)
    _require_pullback(z, 3, prefix_pullback)
    mutant = plant("refattn.sparsek.prefix", right, wrong)
    mutant.SupportIntervals = SupportIntervals  # those of the module that is not planted are passed to it
    with pytest.raises(AssertionError):
        _require_pullback(z, 3, mutant.prefix_pullback)


SCRIPT = """
import sys
import numpy as np
import refattn.sparsek as s
assert "numba" not in sys.modules, "importing the package imported numba"
z = np.random.default_rng(0).standard_normal(300) + 0.01 * np.arange(300)
print(repr(float(s.prefix_thresholds(z, 8)[8:].sum())))
print(s.selection_intervals(z, 8, 3).exit.sum())
"""


@pytest.mark.slow
def test_the_loops_give_the_same_without_compilation_and_the_import_does_not_need_numba(monkeypatch):
    def run() -> str:
        return subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout

    compiled = run()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert run() == compiled


BAD = [
    pytest.param(lambda z: prefix_thresholds([*z, np.nan], 1), r"z: nan at index \(4,\)", id="a NaN score"),
    pytest.param(lambda z: prefix_thresholds(z, np.inf), "k: inf came, a finite number", id="k infinite"),
    pytest.param(lambda z: prefix_thresholds(z, -1), "k: -1.0 came, at least 0", id="k negative"),
    pytest.param(lambda z: prefix_thresholds(z, 1, method="heap"), "one of 'fast', 'paper', 'oracle'", id="method"),
    pytest.param(lambda z: prefix_thresholds(np.zeros((0, 4)), 1), "empty axis", id="no rows"),
    pytest.param(lambda z: selection_intervals(z, -1), "n_select: -1 came, at least 0", id="n_select negative"),
    pytest.param(lambda z: selection_intervals(z, 1, method="oracle"), "one of 'fast', 'paper'", id="no such method"),
    pytest.param(lambda z: selection_intervals(z, 1, -2), "window: -2 came, at least 0", id="window negative"),
    pytest.param(lambda z: support_intervals(z, [0.0]), r"tau: shape \(1,\) came", id="tau of another shape"),
    pytest.param(lambda z: support_intervals(z, [3.0, 2, 1, 0]), "tau: thresholds that fall", id="tau falling"),
    pytest.param(
        lambda z: prefix_pullback([1.0], z, support_intervals(z, [0.0] * 4)),
        "by_position: shape",
        id="sums of another shape",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call([1.0, 0.5, 2.0, 0.25])


def test_counts_must_be_integers():
    with pytest.raises(TypeError, match=r"n_select: 1\.5 came, an integer was wanted"):
        selection_intervals([1.0, 2.0], 1.5)
