"""Claims about low rank with structured masks (arXiv 2405.05219, section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import dense_attention
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    RowChangeMask,
    StructuredMask,
    as_row_change,
    degree_for,
    document_blocks,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product,
    masked_product_backward,
    masked_product_forward,
    monomial_rank,
    paper_rank,
    polynomial_coefficients,
    polynomial_error,
    prefix_lm,
    shifted_groups,
    sliding_window,
)
from refattn.lowrank.masks import CausalStructure
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import exponent, gradient_error, times
from refattn.testing import relative_error, tolerance
from refattn.testing.real_heads import load_real_heads

PAPER = "arXiv 2405.05219, section 6"
Boolean = NDArray[np.bool_]
_KINDS = (CausalStructure, RowChangeMask, ContinuousRowsMask, DistinctColumnsMask, DistinctRowsMask)


def _bounded_pairs(count: int, bound: float, seed: int) -> NDArray[np.float64]:
    """Rows q_i and k_i of width 3 with ‖q_i‖ ‖k_i‖ ≤ bound, most of them nearly parallel or opposite."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, count, 3))
    k[count // 4 :] = rng.choice([-1, 1], (count - count // 4, 1)) * q[count // 4 :] + 0.05 * k[count // 4 :]
    q, k = (math.sqrt(bound) * x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    return np.stack([q * rng.random((count, 1)) ** 0.3, k])


def _shares_of_bound() -> list[float]:
    """Worst relative error on 10,000 bounded pairs over the bound, for each of several polynomials."""
    shares = []
    for kind in ("taylor", "chebyshev"):
        for bound, degree in ((0.5, 2), (1.0, 5), (2.0, 6), (2.0, 9), (4.0, 14)):
            features = PolynomialFeatures(3, degree, bound, scale=1.0, kind=kind)
            q, k = _bounded_pairs(10_000, bound, seed=degree)
            u1, u2 = features.factors(q, k)
            error = np.abs((u1 * u2).sum(axis=1) / np.exp((q * k).sum(axis=1)) - 1).max()
            shares.append(float(error / polynomial_error(degree, bound, kind=kind)))
    return shares


_PAIRS = "10,000 pairs of width 3, B = 0.5 … 4, g = 2 … 14, Taylor and Chebyshev, seeds g"


@claim("lowrank.feature-bound", f"{PAPER}, after Alman and Song",
       "On bounded logits the polynomial is near exp as stated.",
       check="worst relative error over the bound; outside the bound, the same number",
       planted="the last feature counted twice",
       covers=("low rank from a polynomial, after Alman and Song",))  # fmt: skip
def _feature_bound(quick: bool) -> Measurement:
    p = np.polynomial.polynomial.polyval(-3.0, polynomial_coefficients(5, 1.0))
    outside = abs(p / math.exp(-3.0) - 1) / polynomial_error(5, 1.0)
    return Measurement(
        _PAIRS, max(_shares_of_bound()), at_most=1.0 + 1e-6,
        condition="the logits are inside the bound B that the polynomial is made for", counterexample=float(outside),
    )  # fmt: skip


@claim("lowrank.feature-tightness", "ours", "The bound on the polynomial's error is within a factor of 10 of it.",
       check="least share of the bound that the worst error reaches",
       planted="a bound 50 times too large")  # fmt: skip
def _feature_tightness(quick: bool) -> Measurement:
    return Measurement(_PAIRS, min(_shares_of_bound()), at_least=0.1)


@claim("lowrank.features", f"{PAPER}, after Alman and Song", "A polynomial of q·k is U1 U2ᵀ with rank C(2(d + g), 2g).",
       check="worst relative error of an entry, at rank C(d + g, g), which is not more",
       planted="every feature but the constant one dropped",
       covers=("low rank from a polynomial, after Alman and Song",))  # fmt: skip
def _features_and_rank(quick: bool) -> Measurement:
    """Worst difference of U1 U2ᵀ from the polynomial; infinite if the rank is above the paper's."""
    worst, rng = 0.0, np.random.default_rng(0)
    for width, degree in ((1, 6), (2, 5), (5, 4), (8, 3)):
        q, k = rng.uniform(-0.4, 0.4, (2, 20, width))
        features = PolynomialFeatures(width, degree, 1.3, kind="taylor")
        u1, u2 = features.factors(q, k)
        exact = sum((features.scale * q @ k.T) ** m / math.factorial(m) for m in range(degree + 1))
        inside = u1.shape[1] == monomial_rank(width, degree) <= paper_rank(width, degree)
        worst = max(worst, float(np.abs(u1 @ u2.T / exact - 1).max()) if inside else math.inf)
    return Measurement("uniform, n = 20, d = 1 … 8, g = 3 … 6, seed 0", worst, at_most=1e-13)


@claim("lowrank.real-heads", PAPER, "The rank that real heads need for a relative error of 1/2 is below n.",
       check="rank over n, by the largest logit of the head where it is smallest",
       planted="heads whose logits are nearly zero: the claim then holds",
       covers=("low rank from a polynomial, after Alman and Song", "masked low-rank attention in near-linear time"),
       must_hold=False)  # fmt: skip
def _rank_of_real_heads(quick: bool) -> Measurement:
    heads = load_real_heads(dtype=np.float64)
    n, d = heads.q.shape[-2:]
    largest = [float(np.abs(q @ k[0].T).max()) / math.sqrt(d) for q, k in zip(heads.q[:, 0], heads.k, strict=True)]
    bound = min(largest)
    degree = degree_for(0.5, bound)
    return Measurement(
        f"shipped heads of {len(largest)} layers, the one of smallest logits; {heads.sha256[:12]}",
        monomial_rank(d, degree) / n, at_most=1.0, detail={"B": bound, "degree": degree},
    )  # fmt: skip


@claim("lowrank.causal", f"{PAPER}, Algorithm 4", "A running sum gives the causal product, and its gradients.",
       check="worst relative error against dense, paper and compiled",
       planted="the last row of the compiled product off by 1e-10",
       covers=("algorithm 4",))  # fmt: skip
def _causal(quick: bool) -> Measurement:
    return _product(CausalStructure, quick)


@claim("lowrank.row-change", f"{PAPER}, Definition 6.1 and Algorithm 5",
       "Adding and removing what changes gives the product for row changes, and its gradients.",
       check="worst relative error against dense, paper and compiled",
       planted="the last row of the compiled product off by 1e-10",
       covers=("definition 6.1", "algorithm 5"))  # fmt: skip
def _row_change(quick: bool) -> Measurement:
    return _product(RowChangeMask, quick)


@claim("lowrank.continuous-rows", f"{PAPER}, Definition 6.2 and Algorithm 6",
       "A segment tree, and prefix differences, give the product for continuous rows, and its gradients.",
       check="worst relative error against dense, tree and compiled",
       planted="the last row of the compiled product off by 1e-10",
       covers=("definition 6.2", "algorithm 6"))  # fmt: skip
def _continuous_rows(quick: bool) -> Measurement:
    return _product(ContinuousRowsMask, quick)


@claim("lowrank.distinct-columns", f"{PAPER}, Definition 6.3 and its lemma",
       "Grouping equal columns gives the product for distinct columns, and its gradients.",
       check="worst relative error against dense, paper and compiled",
       planted="the last row of the compiled product off by 1e-10",
       covers=("definition 6.3", "product for r distinct columns"))  # fmt: skip
def _distinct_columns(quick: bool) -> Measurement:
    return _product(DistinctColumnsMask, quick)


@claim("lowrank.distinct-rows", f"{PAPER}, Definition 6.4 and its lemma",
       "Grouping equal rows gives the product for distinct rows, and its gradients.",
       check="worst relative error against dense, paper and compiled",
       planted="the compiled gradient of v off by 1e-6",
       covers=("definition 6.4", "product for r distinct rows"))  # fmt: skip
def _distinct_rows(quick: bool) -> Measurement:
    return _product(DistinctRowsMask, quick)


def _random_dense(kind: type[StructuredMask], n: int, rng: np.random.Generator) -> Boolean:
    if kind is CausalStructure:
        return np.tri(n, dtype=bool)
    if kind is RowChangeMask:
        return np.asarray(np.logical_xor.accumulate(rng.random((n, n)) < 2 / n, axis=0))
    if kind is ContinuousRowsMask:
        start, stop = np.sort(rng.integers(0, n + 1, (2, n)), axis=0)
        return np.asarray((start[:, None] <= np.arange(n)) & (np.arange(n) < stop[:, None]))
    patterns = rng.random((4, n)) < 0.5
    dense = patterns[rng.integers(4, size=n)]
    return np.asarray(dense if kind is DistinctRowsMask else dense.T)


def _product(kind: Any, quick: bool) -> Measurement:
    """Worst error of a product or gradient by the paper's and the compiled method, against dense."""
    rng, worst, count = np.random.default_rng(1), 0.0, 25 if quick else 1000
    for number in range(count):
        n = round(500 ** rng.random()) if number else 500
        mask = kind.from_dense(_random_dense(kind, n, rng))
        inputs = {
            "u1": rng.standard_normal((n, 4)),
            "u2": rng.standard_normal((n, 4)),
            "v": rng.standard_normal((n, 3)),
        }
        found = {}
        for method in ("oracle", "paper", "fast"):
            out, cache = masked_product_forward(**inputs, mask=mask, method=method)
            found[method] = (out, *masked_product_backward(inputs["v"], cache))
        for method in ("paper", "fast"):
            errors = [relative_error(*pair) for pair in zip(found[method], found["oracle"], strict=True)]
            worst = max(worst, *errors)
    return Measurement(f"{count} random masks, n to 500, r = 4, d = 3, seed 1", worst, at_most=1e-12)


@claim("lowrank.product-gradients", "ours", "The gradients of masked products are products, and the derivatives.",
       check="worst relative error against central differences of the oracle",
       planted="the gradient of U1 off by 0.1 %")  # fmt: skip
def _product_gradients(quick: bool) -> Measurement:
    rng, worst = np.random.default_rng(2), 0.0
    for kind in _KINDS:
        mask: Any = kind.from_dense(_random_dense(kind, 12, rng))
        inputs = dict(zip(("u1", "u2", "v"), rng.standard_normal((3, 12, 3)), strict=True))
        _, cache = masked_product_forward(**inputs, mask=mask)
        function = partial(masked_product, mask=mask, method="oracle")
        worst = max(worst, gradient_error(function, masked_product_backward, cache, inputs))
    return Measurement("one mask of each kind, n = 12, seed 2", worst, at_most=tolerance("differences").rtol)


@claim("lowrank.first-bad-row", "ours", "A mask that is not of its kind is refused at the first row that breaks it.",
       check="broken masks not refused, or at another row",
       planted="causal masks taken unseen")  # fmt: skip
def _first_bad_row(quick: bool) -> Measurement:
    """Masks broken in one place or two that are not refused, or not at the first row (or column) that is broken."""
    rng, wrong, count = np.random.default_rng(3), 0, 100 if quick else 1000
    for _ in range(count):
        n = int(rng.integers(4, 40))
        rows = np.sort(rng.choice(np.arange(2, n), 2, replace=False))
        causal, gaps, two = np.tri(n), np.tri(n), np.zeros((n, n))
        two[1] = 1
        for i in rows:
            causal[i, rng.integers(i + 1)] = 0
            gaps[i, rng.integers(1, i)] = 0
            two[i, : rng.integers(1, n - 1)] = 1
        columns = np.where(np.arange(n) == rows[0], 0, np.arange(n))  # that row enters column 0 once more
        cases: tuple[tuple[Callable[[], Any], str], ...] = (
            (partial(CausalStructure.from_dense, causal), "row"),
            (partial(ContinuousRowsMask.from_dense, gaps), "row"),
            (partial(RowChangeMask, np.arange(n + 1), columns, np.ones(n, np.int8)), "row"),
            (partial(DistinctRowsMask.from_dense, two, most=2), "row"),
            (partial(DistinctColumnsMask.from_dense, two.T, most=2), "column"),
        )
        for case, what in cases:
            try:
                case()
                wrong += 1
            except ValueError as error:
                wrong += f"mask: {what} {rows[0]} " not in str(error)
    return Measurement(f"{5 * count} broken masks, n to 39, seed 3", float(wrong), at_most=0.0)


@claim("lowrank.layouts", PAPER, "LongLoRA's shifted groups and sliding windows change few places a row, amortized.",
       check="largest Σ B_i / n, of masks that equal their descriptions",
       planted="groups one column short",
       covers=("definition 6.1", "LongLoRA's shifted groups and sliding windows change few places a row"))  # fmt: skip
def _layouts(quick: bool) -> Measurement:
    """Largest changes per row, ``Σ B_i / n``, of masks with natural descriptions; infinite if one is not the mask."""
    worst, detail, n = 0.0, {}, 240 if quick else 2400
    i, j = np.arange(n)[:, None], np.arange(n)
    group = ((j - 10) % n) // 20
    cases = {
        "sliding window": (sliding_window(n, 16), (j <= i) & (i - j < 16)),
        "shifted groups": (shifted_groups(n, 20), (group[:, None] == group) & (j <= i)),
        "shifted groups, both ways": (shifted_groups(n, 20, causal=False), group[:, None] == group),
        "documents": (document_blocks([n // 3, n // 2, n // 6]), (j <= i) & ((i < n // 3) == (j < n // 3))
                      & ((i < n // 3 + n // 2) == (j < n // 3 + n // 2))),
        "prefix-LM": (prefix_lm(n, 50), (j <= i) | (j < 50)),
    }  # fmt: skip
    for name, (mask, dense) in cases.items():
        changes = as_row_change(mask)
        same = np.array_equal(changes.to_dense(), dense) and np.array_equal(mask.to_dense(), dense)
        detail[name] = float(changes.changes.sum() / n)
        worst = max(worst, detail[name] if same else math.inf)
    return Measurement(f"n = {n}; window 16, groups of 20", worst, at_most=2.2, detail=detail)


@claim("lowrank.linear-time", PAPER, "The products take time linear in n.",
       check="largest exponent of the processor time in n, compiled",
       planted="times that grow like n^1.5",
       covers=("masked low-rank attention in near-linear time",), must_hold=False, timed=True)  # fmt: skip
def _linear_time(quick: bool) -> Measurement:
    lengths = [1024, 4096, 16_384] if quick else [4096, 16_384, 65_536, 262_144]
    exponents = {}
    makers: dict[str, Callable[[int], StructuredMask]] = {
        "causal": CausalStructure,
        "continuous rows": lambda n: sliding_window(n, 512),
        "row change": lambda n: shifted_groups(n, 512),
        "distinct rows": lambda n: DistinctRowsMask(np.arange(n) % 4 == np.arange(4)[:, None], np.arange(n) % 4),
    }
    for name, make in makers.items():

        def product(n: int, make: Callable[[int], StructuredMask] = make) -> Callable[[], object]:
            return partial(masked_product, *np.random.default_rng(4).standard_normal((3, n, 32)), mask=make(n))

        exponents[name] = exponent(times(product, lengths))
    inputs = f"normal, n = {lengths[0]:,} … {lengths[-1]:,}, r = d = 32, seed 4"
    return Measurement(inputs, max(exponents.values()), at_most=1.3, detail=exponents)


@claim("lowrank.attention-bound", "ours",
       "With exponentials within 1 ± δ the output is within 2δ/(1 + √(1 − δ²)) ‖V‖_∞.",
       check="largest error over the bound",
       planted="a bound ten times too small",
       covers=("masked low-rank attention in near-linear time",))  # fmt: skip
def _attention_bound(quick: bool) -> Measurement:
    """Largest share of the bound that the error of an output reaches."""
    rng, worst, n, prints = np.random.default_rng(5), 0.0, 60 if quick else 300, []
    for kind in _KINDS:
        q, k = rng.uniform(-0.7, 0.7, (2, n, 3))
        v = rng.standard_normal((n, 3))
        prints += [q, k, v]
        mask: Any = kind.from_dense(_random_dense(kind, n, rng))
        exact = dense_attention(q, k, v, mask=mask.to_dense())
        for error in (0.5, 1e-2, 1e-6):
            out, cache = lowrank_attention_forward(q, k, v, error=error, mask=mask)
            worst = max(worst, float(np.abs(out - exact).max()) / (cache.bound or math.nan))
    return Measurement(f"uniform, n = {n}, d = 3, δ to 0.5, every mask; {fingerprint(*prints)}", worst, at_most=1.0)


@claim("lowrank.attention-gradients", "ours", "The gradients of low-rank attention are its derivatives.",
       check="worst relative error against central differences of the oracle",
       planted="the gradient of q off by 0.1 %")  # fmt: skip
def _attention_gradients(quick: bool) -> Measurement:
    rng, worst = np.random.default_rng(6), 0.0
    inputs = dict(zip("qkv", rng.uniform(-0.6, 0.6, (3, 10, 3)), strict=True))
    for features in (PolynomialFeatures(3, 5, 3.0), RandomFeatures(3, 9, seed=0)):
        for mask in ("causal", sliding_window(10, 3), shifted_groups(10, 4)):
            options: dict[str, Any] = {"features": features, "mask": mask}
            _, cache = lowrank_attention_forward(**inputs, **options)
            function = partial(lowrank_attention, **options, method="oracle")
            worst = max(worst, gradient_error(function, lowrank_attention_backward, cache, inputs))
    return Measurement("uniform, n = 10, d = 3, seed 6", worst, at_most=tolerance("differences").rtol)


def _random_feature_moments(quick: bool) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Ratios to the exact exponentials over many draws, the stated relative variance, and the number of draws."""
    q, k = 0.4 * np.random.default_rng(7).standard_normal((2, 4, 5))
    exact, draws = np.exp(q @ k.T / math.sqrt(5)), 2000 if quick else 20_000
    ratios = []
    for seed in range(draws):
        u1, u2 = RandomFeatures(5, 5, seed=seed, orthogonal=False).factors(q, k)
        ratios.append(u1 @ u2.T / exact)
    return np.array(ratios), RandomFeatures(5, 5, seed=0).relative_variance(q, k), draws


@claim("lowrank.random-unbiased", "arXiv 2009.14794", "Positive random features are unbiased.",
       check="largest deviation of a mean from exp, in standard errors",
       planted="queries' features too large by 10 %")  # fmt: skip
def _unbiased(quick: bool) -> Measurement:
    ratios, variance, draws = _random_feature_moments(quick)
    deviations = np.abs(ratios.mean(axis=0) - 1) / np.sqrt(variance / draws)
    return Measurement(f"{draws} draws of 5 features, 16 entries, seed 7", float(deviations.max()), at_most=4.5)


@claim("lowrank.random-variance", "arXiv 2009.14794", "Their relative variance is (exp(‖x + y‖²) − 1)/r.",
       check="relative difference of the measured mean variance",
       planted="a variance overstated by half")  # fmt: skip
def _variance(quick: bool) -> Measurement:
    ratios, variance, draws = _random_feature_moments(quick)
    off = np.abs(ratios.var(axis=0).mean() / variance.mean() - 1)
    return Measurement(f"{draws} draws of 5 features, mean of 16 entries, seed 7", float(off), at_most=0.15)
