"""Claims about conv products, the conv basis and its exp transform (arXiv 2405.05219, section 3)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refattn import ConvBasis, conv_attention, conv_attention_forward, decompose
from refattn.convbasis import (
    basis_from_starts,
    conv_matrix,
    conv_product,
    convolution_error,
    subconv_matrix,
    subconv_product,
)
from refattn.convbasis.paper import algorithm_1
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.testing import relative_error, rope_structured, row_errors

PAPER = "arXiv 2405.05219"


@claim("conv.fft-product", f"{PAPER}, conv(a) x by FFT",
       "The product conv(a) x by FFT, and that of conv(a, m), equal the dense product.",
       check="worst error in the Frobenius norm, FFT and direct against dense",
       planted="the product shifted by a row",
       covers=("convolution matrix conv(a)", "sub-convolution matrix conv(a, m)",
               "conv(a) x by FFT in O(n log n)"))  # fmt: skip
def _fft_product(quick: bool) -> Measurement:
    worst, rng = 0.0, np.random.default_rng(0)
    sizes = (1, 2, 63, 64, 65, 500) if quick else (1, 2, 63, 64, 65, 127, 500, 1009, 2000)
    for n in sizes:
        a, x = rng.standard_normal(n), rng.standard_normal((n, 4))
        dense = conv_matrix(a) @ x
        errors = [relative_error(conv_product(a, x, method=method), dense) for method in ("fft", "direct")]
        m = max(1, n // 2)
        errors.append(relative_error(subconv_product(a, m, x), subconv_matrix(a, m) @ x))
        worst = max(worst, *errors)
    return Measurement(f"normal, n = {', '.join(map(str, sizes))}, seed 0", worst, at_most=1e-13)


@claim("conv.additivity", f"{PAPER}, additivity of conv", "conv(a, m) + conv(b, m) = conv(a + b, m).",
       check="matrices that differ, in exact integers",
       planted="an entry of one conv matrix off by one",
       covers=("sub-convolution matrix conv(a, m)",
               "additivity, conv(a, m) + conv(b, m) = conv(a + b, m)"))  # fmt: skip
def _additivity(quick: bool) -> Measurement:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(50 if quick else 500):
        n = int(rng.integers(1, 40))
        m = int(rng.integers(1, n + 1))
        a, b = rng.integers(-9, 10, (2, n)).astype(float)
        wrong += int((subconv_matrix(a, m) + subconv_matrix(b, m) != subconv_matrix(a + b, m)).any())
    return Measurement("integers, n to 39, random m, seed 1", float(wrong), at_most=0.0)


def _random_sum(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer Σ conv(b_i, m_i) with neighbouring cumulative kernels that differ; the starts and the b_i."""
    starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, k - 1, replace=False))])
    vectors = rng.integers(-9, 10, (k, n)).astype(float)
    vectors[:, 0] = rng.integers(1, 10, k)
    vectors[np.arange(n) >= n - starts[:, None]] = 0
    dense = sum((subconv_matrix(b, n - int(c)) for b, c in zip(vectors, starts, strict=True)), np.zeros((n, n)))
    return dense, starts, vectors


@claim("conv.decomposition", f"{PAPER}, lemma on the conv basis",
       "Every non-zero lower-triangular matrix has exactly one conv basis with the fewest terms, and k ≤ n.",
       check="integer matrices made of known terms that come back with other terms",
       planted="the last column's entry forgotten",
       covers=("k-conv basis", "every lower-triangular matrix has one shortest conv basis"))  # fmt: skip
def _decomposition(quick: bool) -> Measurement:
    rng = np.random.default_rng(2)
    wrong, count = 0, 200 if quick else 1000
    for _ in range(count):
        n = int(rng.integers(1, 40))
        k = int(rng.integers(1, n + 1))
        h, starts, vectors = _random_sum(rng, n, k)
        basis = decompose(h)
        same = np.array_equal(basis.starts, starts) and np.array_equal(basis.vectors, vectors)
        wrong += int(not (same and np.array_equal(basis.to_dense(), h)))
    return Measurement(f"{count} integer matrices, n to 39, k to n, seed 2", float(wrong), at_most=0.0)


@claim("conv.decomposition-real", f"{PAPER}, lemma on the conv basis",
       "The decomposition of a real matrix adds up to the matrix.",
       check="largest absolute difference, from the cumulative kernels and as a sum of conv(b_i, m_i)",
       planted="the last column's entry forgotten",
       covers=("k-conv basis", "every lower-triangular matrix has one shortest conv basis"))  # fmt: skip
def _real_decomposition(quick: bool) -> Measurement:
    rng = np.random.default_rng(3)
    worst, count = 0.0, 100 if quick else 1000
    for _ in range(count):
        n = int(rng.integers(1, 40))
        h = np.tril(rng.standard_normal((n, n)))
        basis = decompose(h)
        total = sum(
            (subconv_matrix(b, int(m)) for b, m in zip(basis.vectors, basis.sizes, strict=True)), np.zeros((n, n))
        )
        worst = max(worst, float(np.abs(basis.to_dense() - h).max()), float(np.abs(total - h).max()))
    return Measurement(f"{count} normal matrices, n to 39, seed 3", worst, at_most=1e-13)


@claim("conv.exp-transform", f"{PAPER}, exp-transform lemma", "The exp transform of a basis is a basis of M ∘ exp(H).",
       check="worst error in the Frobenius norm against the entrywise exponential",
       planted="kernels off by a factor e^0.001",
       covers=("exp transform of a basis",))  # fmt: skip
def _exp_transform(quick: bool) -> Measurement:
    rng = np.random.default_rng(4)
    worst = 0.0
    for _ in range(50 if quick else 300):
        n = int(rng.integers(1, 40))
        h = np.tril(rng.standard_normal((n, n))) * 3
        h[:, : rng.integers(0, n)] = 0  # the first start need not be column 0
        if not h.any():
            continue
        exact = np.tril(np.exp(h))
        worst = max(worst, relative_error(decompose(h).exp_transform().to_dense(), exact))
    return Measurement("normal matrices of deviation 3, n to 39, seed 4", worst, at_most=1e-15)


@claim("conv.exp-transform-differences", f"{PAPER}, exp-transform lemma, in floating point",
       "The sums of b̃_i = exp(u_i) − exp(u_{i−1}) give back exp(u_i) to rounding.",
       check="worst relative error of an entry of the sum in float64 against rational arithmetic",
       planted="logits that vary much between segments",
       covers=("exp transform of a basis",), must_hold=False)  # fmt: skip
def _cancellation(quick: bool) -> Measurement:
    """Exact b̃ sums in rational arithmetic against the same sums in float64, for the worst entry."""

    def worst_entry(deviation: float) -> float:
        rng = np.random.default_rng(5)
        u = rng.standard_normal((6, 40)) * deviation
        g = np.exp(u - u.max())
        b = np.concatenate([g[:1], np.diff(g, axis=0)])
        floating = np.add.accumulate(b, axis=0)[-1]
        exact = [Fraction(float(x)) for x in g[-1]]
        return max(float(abs((Fraction(float(x)) - y) / y)) for x, y in zip(floating, exact, strict=True))

    return Measurement(
        "6 kernels of 40 normal entries, deviation 0.1 and 8, seed 5",
        worst_entry(0.1),
        at_most=1e-14,
        condition="logits vary little between segments",
        counterexample=worst_entry(8.0),
        detail={"relative error at deviation 8": worst_entry(8.0)},
    )


@claim("conv.rope", f"{PAPER}, rotary embeddings", "Logits under rotary embeddings are exactly k-conv.",
       check="largest difference between the logits and those of the basis",
       planted="a basis off by one part in a million",
       covers=("rotary embeddings make logits conv-like",))  # fmt: skip
def _rope(quick: bool) -> Measurement:
    n = 200 if quick else 600
    worst, prints = 0.0, []
    for k in (1, 4, 17):
        q, keys, _, starts = rope_structured(n, 32, starts=k, seed=k, deviation=3.0)
        prints += [q, keys]
        logits = np.tril(q @ keys.T) / np.sqrt(32)
        worst = max(worst, float(np.abs(basis_from_starts(q, keys, starts).to_dense() - logits).max()))
    rng = np.random.default_rng(6)
    free_k = rng.standard_normal(keys.shape)
    free = np.abs(basis_from_starts(q, free_k, starts).to_dense() - np.tril(q @ free_k.T) / np.sqrt(32)).max()
    return Measurement(
        f"rotary inputs, n = {n}, d = 32, k = 1, 4, 17; {fingerprint(*prints)}",
        worst,
        at_most=1e-12,
        condition="the contents under the rotation are constant within segments",
        counterexample=float(free),
    )


def _wide_kernel(deviation: float, n: int, seed: int) -> tuple[ConvBasis, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    basis = ConvBasis(np.array([0]), rng.standard_normal((1, n)) * deviation)
    v = rng.standard_normal((n, 4))
    dummy = np.zeros((n, 1))
    return basis, v, conv_attention(dummy, dummy, v, basis=basis, method="oracle")


@claim("conv.algorithm-1-rows", f"{PAPER}, Algorithm 1, in floating point",
       "Algorithm 1 as written, each product by one FFT, computes every row of the output.",
       check="worst relative row error against the oracle on the same basis, float64",
       planted="the output shifted by a row",
       covers=("algorithm 1",), must_hold=False)  # fmt: skip
def _plain_fft_rows(quick: bool) -> Measurement:
    n, seeds = 1024, range(4)
    errors: dict[float, float] = {}
    for deviation in (0.5, 1.0, 4.0, 8.0):
        cases = [_wide_kernel(deviation, n, seed) for seed in seeds]
        errors[deviation] = max(float(row_errors(algorithm_1(v, basis), exact).max()) for basis, v, exact in cases)
    return Measurement(
        f"one white kernel, n = {n}, deviation 0.5 and 8, seeds 0–3",
        errors[0.5],
        at_most=1e-11,
        condition="logits deviate by no more than about 1",
        counterexample=errors[8.0],
        detail={f"worst row error at deviation {deviation:g}": error for deviation, error in errors.items()},
    )


@claim("conv.guarded-rows", "ours", "With the row guard no row is lost: what an FFT cannot resolve is recomputed.",
       check="worst relative row error against the oracle on the same basis, float64",
       planted="the row guard switched off")  # fmt: skip
def _guarded_rows(quick: bool) -> Measurement:
    n, errors, recomputed = 1024, [], {}
    dummy = np.zeros((n, 1))
    for deviation in (0.5, 1.0, 4.0, 8.0, 16.0):
        for seed in range(2 if quick else 8):
            basis, v, exact = _wide_kernel(deviation, n, seed)
            out, cache = conv_attention_forward(dummy, dummy, v, basis=basis, method="paper")
            errors.append(float(row_errors(out, exact).max()))
            recomputed[f"rows recomputed at deviation {deviation:g}"] = int(cache.rows_recomputed)
    return Measurement(
        f"one white kernel, n = {n}, deviations 0.5 … 16, seeds 0 …", max(errors), at_most=1e-12, detail=recomputed
    )


@claim("conv.rounding-estimate", "ours",
       "The estimate of an FFT product's rounding error, by which the guard acts, covers the error of every entry.",
       check="largest measured error over its estimate",
       planted="an estimate 50 times too small")  # fmt: skip
def _rounding_estimate(quick: bool) -> Measurement:
    """Largest part of the estimate that a measured error used, over kernels smooth and rough."""
    worst = 0.0
    for n in (256, 1000) if quick else (256, 1000, 4096):
        t = np.arange(n)
        for seed in range(2 if quick else 4):
            rng = np.random.default_rng(seed)
            kernels = {
                "normal": np.exp(rng.standard_normal(n)),
                "wide": np.exp(8 * rng.standard_normal(n) - 30),
                "constant": np.ones(n),
                "decaying": np.exp(-60 * t / n),
                "rotary": np.exp(4 * np.cos(0.37 * t)),
            }
            for a in kernels.values():
                for x in (rng.standard_normal(n), np.ones(n), np.sin(10 * np.pi * t / n)):
                    a32, x32 = a.astype(np.float32), x.astype(np.float32)
                    product = np.convolve(a32.astype(np.float64), x32.astype(np.float64))
                    norms = float(np.linalg.norm(a32) * np.linalg.norm(x32))
                    estimate = convolution_error(2 * n, np.float32, norms, np.linalg.norm(product))
                    own = 4 * np.finfo(np.float32).eps * np.abs(product[:n])
                    error = np.abs(conv_product(a32, x32) - product[:n])
                    worst = max(worst, float((error / (estimate + own)).max()))
    return Measurement("5 kinds of kernel on 3 kinds of values, float32, seeds 0 …", worst, at_most=1.0)
