"""Masked low-rank products: every mask against n, prefix sums against the segment tree, features, attention."""

import time

import numpy as np

from refattn import Causal, dense_attention
from refattn.lowrank import (
    DistinctColumnsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product,
    masked_product_backward,
    masked_product_forward,
    paper,
    shifted_groups,
    sliding_window,
)

from .timing import seconds

RANK, WIDTH = 64, 64
LENGTHS = [4096, 16_384, 65_536, 262_144]
PATTERNS = 4


def mask_of(kind, n):
    group = np.arange(n) % PATTERNS
    patterns = group == np.arange(PATTERNS)[:, None]
    return {
        "causal": lambda: Causal(),
        "row change": lambda: shifted_groups(n, 512),
        "continuous rows": lambda: sliding_window(n, 512),
        "distinct columns": lambda: DistinctColumnsMask(patterns, group),
        "distinct rows": lambda: DistinctRowsMask(patterns, group),
    }[kind]()


KINDS = ["causal", "row change", "continuous rows", "distinct columns", "distinct rows"]


def factors(n, r=RANK, d=WIDTH):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, r)), rng.standard_normal((n, r)), rng.standard_normal((n, d))


class Products:
    """Forward and backward of each product, r = d = 64."""

    params = (KINDS, LENGTHS)
    param_names = ("mask", "n")
    timeout = 600
    version = "1"

    def setup(self, kind, n):
        self.inputs, self.mask = factors(n), mask_of(kind, n)
        _, self.cache = masked_product_forward(*self.inputs, mask=self.mask)
        self.upstream = self.inputs[2]

    def time_forward(self, kind, n):
        masked_product(*self.inputs, mask=self.mask)

    def time_backward(self, kind, n):
        masked_product_backward(self.upstream, self.cache)


class Memory:
    """Peak memory of a forward, inputs included, r = d = 64."""

    params = (KINDS, LENGTHS[:3])
    param_names = ("mask", "n")
    version = "1"

    def peakmem_forward(self, kind, n):
        masked_product(*factors(n), mask=mask_of(kind, n))


class Targets:
    """What the products have to reach: exponent 1.10 of the processor time over 4,096 … 262,144."""

    params = (KINDS,)
    param_names = ("mask",)
    timeout = 1200
    version = "1"

    def track_exponent_forward(self, kind):
        return self._exponent(kind, lambda inputs, mask: lambda: masked_product(*inputs, mask=mask))

    def track_exponent_backward(self, kind):
        def backward(inputs, mask):
            _, cache = masked_product_forward(*inputs, mask=mask)
            return lambda: masked_product_backward(inputs[2], cache)

        return self._exponent(kind, backward)

    def _exponent(self, kind, make):
        times = [
            seconds(make(factors(n), mask_of(kind, n)), 5 if n < 100_000 else 3, time.process_time) for n in LENGTHS
        ]
        return np.polyfit(np.log(LENGTHS), np.log(times), 1)[0]

    track_exponent_forward.unit = track_exponent_backward.unit = "exponent of n"


class Intervals:
    """Continuous rows: the paper's segment tree, prefix sums in the same NumPy style, and the compiled sweep."""

    params = ([4096, 65_536], ["segment tree", "prefix sums", "compiled"])
    param_names = ("n", "implementation")
    timeout = 600
    version = "1"

    def setup(self, n, implementation):
        u1, u2, v = factors(n, r=16, d=4)
        mask = sliding_window(n, 512)
        self.work = {
            "segment tree": lambda: paper.algorithm_6(mask, u1, u2, v),
            "prefix sums": lambda: paper.prefix_sums(mask, u1, u2, v),
            "compiled": lambda: masked_product(u1, u2, v, mask=mask),
        }[implementation]
        self.work()

    def time_product(self, n, implementation):
        self.work()


class TreeAgainstPrefixes:
    """How many times as long the segment tree takes as prefix sums, both in NumPy; at n = 65,536 at least 2."""

    params = ([4096, 65_536], ["window", "random"])
    param_names = ("n", "intervals")
    timeout = 600
    version = "1"

    def track_ratio(self, n, intervals):
        u1, u2, v = factors(n, r=16, d=4)
        mask = sliding_window(n, 512)
        if intervals == "random":
            ends = np.sort(np.random.default_rng(1).integers(0, n + 1, (2, n)), axis=0)
            mask = type(mask)(*ends)
        tree = seconds(lambda: paper.algorithm_6(mask, u1, u2, v), 5, time.process_time)
        return tree / seconds(lambda: paper.prefix_sums(mask, u1, u2, v), 5, time.process_time)

    track_ratio.unit = "times"


class Features:
    """Monomial and random features of 65,536 rows, d = 8."""

    params = (["degree 2", "degree 4", "495 random"],)
    param_names = ("features",)
    version = "1"

    def setup(self, kind):
        self.q = np.random.default_rng(0).uniform(-0.3, 0.3, (65_536, 8))
        self.features = {
            "degree 2": lambda: PolynomialFeatures(8, 2, 1.0),
            "degree 4": lambda: PolynomialFeatures(8, 4, 1.0),
            "495 random": lambda: RandomFeatures(8, 495, seed=0),
        }[kind]()
        self.features.factors(self.q[:2], self.q[:2])

    def time_factors(self, kind):
        self.features.factors(self.q, self.q)


class Attention:
    """Causal attention with small logits, d = 4: exact, and by features of relative error 10⁻³."""

    params = ([4096, 16_384], ["exact", "low rank", "low rank, with gradients"])
    param_names = ("n", "implementation")
    timeout = 300
    version = "1"

    def setup(self, n, implementation):
        q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, n, 4))

        def with_gradients():
            out, cache = lowrank_attention_forward(q, k, v, error=1e-3)
            lowrank_attention_backward(out, cache)

        self.inputs = q, k, v
        self.work = {
            "exact": lambda: dense_attention(q, k, v),
            "low rank": lambda: lowrank_attention(q, k, v, error=1e-3),
            "low rank, with gradients": with_gradients,
        }[implementation]
        self.work()

    def time_attention(self, n, implementation):
        self.work()

    def track_error(self, n, implementation):
        q, k, v = self.inputs
        return np.abs(lowrank_attention(q, k, v, error=1e-3) - dense_attention(q, k, v)).max()

    track_error.unit = "largest absolute error"
