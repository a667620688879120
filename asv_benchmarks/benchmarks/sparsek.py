"""SparseK: the operator, the thresholds of all prefixes against one sort of the scores, the linear-time backward."""

import numpy as np

from refattn.sparsek import (
    prefix_pullback,
    prefix_thresholds,
    selection_intervals,
    sparsek_by_bisection,
    sparsek_operator,
    sparsek_vjp,
    support_intervals,
)

from .timing import seconds

BUDGET = 128
LENGTHS = [10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000]


def scores_of(kind, n):
    """Seeded scores: independent, drifting upwards (every score enters), or sorted upwards."""
    rng = np.random.default_rng(0)
    independent = rng.standard_normal(n)
    return {
        "random": lambda: independent,
        "drifting": lambda: independent + 1e-3 * np.arange(n),
        "rising": lambda: np.sort(independent),
    }[kind]()


class Thresholds:
    """Thresholds of all prefixes, by compiled heaps, beside one sort of the same scores."""

    params = (["random", "drifting", "rising"], [4096, 65_536, 1_048_576], ["heaps", "numpy.sort"])
    param_names = ("scores", "n", "implementation")
    version = "1"

    def setup(self, kind, n, implementation):
        z = scores_of(kind, n)
        self.work = {"heaps": lambda: prefix_thresholds(z, BUDGET), "numpy.sort": lambda: np.sort(z)}[implementation]
        self.work()

    def time_thresholds(self, kind, n, implementation):
        self.work()

    def peakmem_thresholds(self, kind, n, implementation):
        self.work()


class ThresholdTargets:
    """What the thresholds have to reach: 20 sorts at n = 65,536, exponent 1.15 over 10⁴ … 10⁷."""

    params = (["random", "drifting", "rising"],)
    param_names = ("scores",)
    timeout = 600
    version = "1"

    def setup(self, kind):
        prefix_thresholds(scores_of(kind, 100), BUDGET)

    def track_times_one_sort(self, kind):
        z = scores_of(kind, 65_536)
        return seconds(lambda: prefix_thresholds(z, BUDGET), 15) / seconds(lambda: np.sort(z), 15)

    def track_exponent(self, kind):
        times = []
        for n in LENGTHS:
            z = scores_of(kind, n)
            times.append(seconds(lambda z=z: prefix_thresholds(z, BUDGET), 5 if n <= 1_000_000 else 2))
        return np.polyfit(np.log(LENGTHS), np.log(times), 1)[0]

    track_times_one_sort.unit = "sorts"
    track_exponent.unit = "exponent of n"


class Intervals:
    """Selection by intervals, support intervals, and the backward through all prefixes."""

    params = (["random", "drifting"], [4096, 65_536, 1_048_576])
    param_names = ("scores", "n")
    version = "1"

    def setup(self, kind, n):
        self.z = scores_of(kind, n)
        self.tau = prefix_thresholds(self.z, BUDGET)
        self.support = support_intervals(self.z, self.tau)
        self.sums = np.random.default_rng(1).standard_normal((2, n))
        selection_intervals(self.z, BUDGET, BUDGET)

    def time_selection(self, kind, n):
        selection_intervals(self.z, BUDGET, BUDGET)

    def time_support(self, kind, n):
        support_intervals(self.z, self.tau)

    def time_pullback(self, kind, n):
        prefix_pullback(*self.sums, self.support)


class Operator:
    """One projection of m scores, by sorting and by bisection, and its pullback."""

    params = ([64, 4096, 262_144],)
    param_names = ("m",)
    version = "1"

    def setup(self, m):
        self.z = np.random.default_rng(2).standard_normal(m)
        self.k = m / 8
        self.p = sparsek_operator(self.z, self.k)

    def time_sorting(self, m):
        sparsek_operator(self.z, self.k)

    def time_bisection(self, m):
        sparsek_by_bisection(self.z, self.k)

    def time_pullback(self, m):
        sparsek_vjp(self.p, self.z)

    def track_difference_of_solvers(self, m):
        return np.abs(self.p - sparsek_by_bisection(self.z, self.k)[0]).max()
