"""Claims about Recover, Search and the inference theorem, its lemmas and its costs (arXiv 2405.05219, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn import ConvBasis, conv_attention, dense_attention, recover
from refattn._validation import FloatArray
from refattn.convbasis import (
    basis_from_starts,
    conv_product,
    inference_bound,
    logit_residual,
    posterior_bound,
    sharp_bound,
)
from refattn.convbasis.recovery import search
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import exponent, peak_memory, times
from refattn.testing import attention_inputs, rope_structured, row_errors

PAPER = "arXiv 2405.05219"


@claim("recover.known-starts", f"{PAPER}, Algorithms 2 and 3 (Recover, Search)",
       "Recover finds the starts of a (T, δ)-non-degenerate k-conv matrix exactly.",
       check="inputs whose starts come back wrong",
       planted="every start found one column late",
       covers=("(T, δ)-non-degenerate k-conv basis", "algorithm 2", "algorithm 3"))  # fmt: skip
def _known_starts(quick: bool) -> Measurement:
    wrong, cases, prints = 0, 0, []
    for seed in range(4 if quick else 20):
        for k in (1, 2, 4, 17):
            n, probe = 300 + 7 * seed, 5
            rng = np.random.default_rng(seed)
            starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - probe - 1, k - 1, replace=False))])
            q, keys, _, _ = rope_structured(n, 16, starts=starts, seed=seed)
            prints += [q, keys]
            delta = basis_from_starts(q, keys, starts).nondegeneracy(probe)
            found = recover(q, keys, n_basis=k, probe=probe, delta=delta / 2)
            wrong += int(not np.array_equal(found.starts, starts))
            cases += 1
    return Measurement(
        f"{cases} rotary inputs, n ≥ 300, k = 1, 2, 4, 17; {fingerprint(*prints)}", float(wrong), at_most=0.0
    )


class Noisy(NamedTuple):
    """Logits that are ε-close to a k-conv matrix of known starts, as queries and keys."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    starts: NDArray[np.int64]
    delta: float
    eps: float
    probe: int
    scale: float


def noisy(fraction: float, seed: int) -> Noisy:
    """Rotary inputs with noise of ``fraction · δ/(5T)``, entries ±ε."""
    n, probe, width = 160, 6, 8
    starts = np.array([0, 30, 70, 120])
    q, k, v, _ = rope_structured(n, width, starts=starts, seed=seed, deviation=2.0)
    delta = basis_from_starts(q, k, starts).nondegeneracy(probe)
    eps = fraction * delta / (5 * probe)
    noise = np.random.default_rng(seed).choice([-eps, eps], (n, n)) * math.sqrt(width)
    # Any matrix is a product of wider queries and keys: [q, R] [k, I]ᵀ = q kᵀ + R.
    q, k = np.concatenate([q, noise], axis=1), np.concatenate([k, np.eye(n)], axis=1)
    return Noisy(q, k, v, starts, delta, eps, probe, 1 / math.sqrt(width))


def problems(quick: bool, *fractions: float) -> Iterator[Noisy]:
    """Yield logits with noise of these fractions of the theorem's limit, by default inside it, for every seed."""
    for seed in range(5 if quick else 40):
        yield from (noisy(fraction, seed) for fraction in fractions or (0.1, 0.5, 0.99))


def _recovered(given: Noisy) -> ConvBasis:
    q, k, _, _, delta, eps, probe, scale = given
    return recover(q, k, n_basis=4, probe=probe, delta=delta, eps=eps, scale=scale)


def _starts_found(given: Noisy) -> bool:
    return np.array_equal(_recovered(given).starts, given.starts)


@claim("recover.noise", f"{PAPER}, Algorithm 2 with ε-close logits",
       "Recover finds the starts exactly in the presence of noise ε.",
       check="inputs whose starts come back wrong",
       planted="every start found one column late",
       covers=("ε-close (T, δ)-non-degenerate k-conv basis", "algorithm 2"))  # fmt: skip
def _noisy_starts(quick: bool) -> Measurement:
    inside, beyond = [*problems(quick)], [_starts_found(given) for given in problems(quick, 8.0)]
    return Measurement(
        f"rotary inputs plus noise of ±ε, n = 160, k = 4, T = 6, {len(beyond)} seeds; {fingerprint(inside[0].q)}",
        float(sum(not _starts_found(given) for given in inside)),
        at_most=0.0,
        condition="ε ≤ δ/(5T)",
        counterexample=float(beyond.count(False)),
        detail={"wrong at ε = 8 δ/(5T)": beyond.count(False)},
    )


@claim("recover.probes", f"{PAPER}, Algorithm 3 (Search)",
       "A search among n columns probes at most ⌈log₂ n⌉ + 1 of them (the last probe is ours).",
       check="most probes of a search, less ⌈log₂ n⌉",
       planted="every start found one column late",
       covers=("algorithm 3",))  # fmt: skip
def _search_probes(quick: bool) -> Measurement:
    worst = -math.inf
    for length in (1, 2, 3, 64, 1000, 1 << 20):
        for target in np.random.default_rng(length).integers(0, length, 20 if quick else 200):
            calls: list[int] = []

            def predicate(j: int, target: int = int(target), calls: list[int] = calls) -> bool:
                calls.append(j)
                return j >= target

            if search(predicate, 0, length - 1) != target:
                worst = math.inf
            worst = max(worst, len(calls) - math.ceil(math.log2(length)))
    return Measurement("every length 1 … 2²⁰ tried, random starts, seeds by length", worst, at_most=1.0)


@claim("recover.first-columns", "ours",
       "With T = 1 and a tiny δ, Recover returns the first k columns of any generic input.",
       check="inputs for which it returns others",
       planted="every start found one column late",
       covers=("(T, δ)-non-degenerate k-conv basis", "algorithm 2"))  # fmt: skip
def _first_columns(quick: bool) -> Measurement:
    wrong = 0
    seeds = range(5 if quick else 50)
    for seed in seeds:
        q, k, _ = attention_inputs(200, 16, seed=seed)
        starts = recover(q, k, n_basis=30, probe=1, delta=1e-12).starts
        wrong += int(not np.array_equal(starts, np.arange(30)))
    return Measurement(f"normal, n = 200, d = 16, k = 30, {len(seeds)} seeds", float(wrong), at_most=0.0)


@claim("recover.memory", f"{PAPER}, theorem on inference (4.4)",
       "Conv attention takes O(kn + nd) memory: n × n is never formed.",
       check="fitted exponent in n of the peak memory of method='paper', row guard off",
       planted="an n × n array held for a moment",
       covers=("theorem 4.4",))  # fmt: skip
def _memory(quick: bool) -> Measurement:
    """Exponent in n of the peak memory of recover and attention."""
    sizes = (1024, 2048, 4096) if quick else (1024, 2048, 4096, 8192, 16384)
    peaks = {}
    for n in sizes:
        q, k, v, _ = rope_structured(n, 16, starts=4, seed=0, deviation=0.5)
        run = partial(conv_attention, q, k, v, n_basis=4, probe=1, delta=1e-6, method="paper", tol=1e300)
        run()  # plans are not counted
        peaks[n] = peak_memory(run)
    return Measurement(
        f"rotary inputs, n = {sizes[0]} … {sizes[-1]}, d = 16, k = 4",
        exponent(peaks),
        at_most=1.1,
        detail={f"peak MB at n = {n}": peak / 1e6 for n, peak in peaks.items()},
    )


@claim("inference.exact-basis", f"{PAPER}, theorem on inference (4.4) at ε = 0",
       "With an exact basis conv attention equals exact attention.",
       check="worst relative row error of method='paper' against exact attention, float64",
       planted="the last segment's columns dropped; logits without their 1/√d",
       covers=("algorithm 1", "theorem 4.4"))  # fmt: skip
def _exact_basis(quick: bool) -> Measurement:
    worst, prints = 0.0, []
    n = 500 if quick else 2000
    for k in (1, 4, 17):
        for deviation in (1.0, 4.0, 8.0):
            starts = np.linspace(0, n, k, endpoint=False).astype(np.int64)
            q, keys, v, _ = rope_structured(n, 64, starts=starts, seed=k, deviation=deviation)
            prints += [q, keys, v]
            out = conv_attention(q, keys, v, n_basis=k, probe=3, delta=1e-6, method="paper")
            worst = max(worst, float(row_errors(out, dense_attention(q, keys, v)).max()))
    return Measurement(
        f"rotary inputs, n = {n}, d = 64, k = 1, 4, 17, deviations 1, 4, 8; {fingerprint(*prints)}",
        worst,
        at_most=1e-12,
    )


@claim("inference.k-equals-n", f"{PAPER}, corollary for any input",
       "With k = n, T = 1 and δ = 0 conv attention is exact for any input, causal and full.",
       check="worst relative row error of method='paper' against exact attention, float64",
       planted="the last segment's columns dropped",
       covers=("k = n is exact for any input", "full (non-causal) attention by two bases"))  # fmt: skip
def _all_columns(quick: bool) -> Measurement:
    worst = 0.0
    sizes = (1, 2, 65, 130) if quick else (1, 2, 3, 65, 200, 501)
    for n in sizes:
        for mask in ("causal", "full"):
            for deviation in (1.0, 8.0):
                q, k, v = attention_inputs(n, 16, seed=n, deviation=deviation)
                out = conv_attention(q, k, v, n_basis=n, probe=1, delta=0, mask=mask, method="paper")
                worst = max(worst, float(row_errors(out, dense_attention(q, k, v, mask=mask)).max()))
    return Measurement(
        f"normal, n = {', '.join(map(str, sizes))}, d = 16, causal and full, deviations 1, 8", worst, at_most=1e-12
    )


@claim("inference.theorem", f"{PAPER}, theorem on inference (4.4)",
       "For ε-close logits the output is within 2 (e^{2ε} − 1) ‖V‖_∞ of exact attention.",
       check="largest error over the bound",
       planted="a bound 20 times too small",
       covers=("an error of the logits carried to the output", "theorem 4.4"))  # fmt: skip
def _theorem(quick: bool) -> Measurement:
    ratios = []
    for given in problems(quick):
        out = conv_attention(given.q, given.k, given.v, basis=_recovered(given))
        error = np.abs(out - dense_attention(given.q, given.k, given.v, scale=given.scale)).max()
        ratios.append(float(error) / inference_bound(given.eps, float(np.abs(given.v).max())))
    return Measurement(
        f"rotary inputs plus noise of ±ε, ε to 0.99 δ/(5T), n = 160, k = 4, {len(ratios) // 3} seeds",
        max(ratios),
        at_most=1.0,
        detail={"smallest error over bound": min(ratios), "largest error over bound": max(ratios)},
    )


@claim("inference.a-posteriori", f"{PAPER}, the argument of theorem 4.4; the sharp form is ours",
       "For any input and starts, with r = ‖H − H'‖_∞, the error is at most 2 (eʳ − 1) ‖V‖_∞, and 2 tanh(r/2) ‖V‖_∞.",
       check="largest error over either bound, row by row",
       planted="a bound 20 times too small",
       covers=("an error of the logits carried to the output",))  # fmt: skip
def _posterior(quick: bool) -> Measurement:
    ratios, sharp = [], []
    for seed in range(4 if quick else 30):
        for deviation in (0.01, 0.3, 1.0, 4.0):
            q, k, v = attention_inputs(100, 8, seed=seed, deviation=deviation)
            basis = recover(q, k, n_basis=1 + 10 * (seed % 5), probe=1, delta=1e-9)
            error = np.abs(conv_attention(q, k, v, basis=basis) - dense_attention(q, k, v)).max(axis=-1)
            v_max = float(np.abs(v).max())
            for row, residual in enumerate(logit_residual(q, k, basis)):
                if residual > 1e-9:  # below, both sides are rounding
                    ratios.append(error[row] / posterior_bound(residual, v_max))
                    sharp.append(error[row] / sharp_bound(residual, v_max))
    return Measurement(
        "normal, n = 100, d = 8, deviations 0.01 … 4, first columns as starts, row by row",
        float(max(*ratios, *sharp)),
        at_most=1.0,
        detail={
            "largest error over 2 (eʳ − 1) ‖V‖": float(max(ratios)),
            "largest error over 2 tanh(r/2) ‖V‖": float(max(sharp)),
        },
    )


def _wrong_answers(problem: Noisy) -> int:
    """Columns at which Search's predicate is not "false up to the next start, true from it on", of all segments."""
    n, probe, starts = len(problem.q), problem.probe, problem.starts
    h = (problem.q @ problem.k.T) * problem.scale
    columns = np.arange(n - probe + 1)
    heads = np.stack([h[j : j + probe, j] for j in columns])
    wrong = 0
    for here, following in zip(starts, [*starts[1:], n], strict=True):
        answers = np.abs(heads - heads[here]).sum(axis=1) >= problem.delta - 2 * probe * problem.eps
        wrong += int((answers != (columns >= following))[columns > here].sum())
    return wrong


@claim("recover.monotone", f"{PAPER}, the lemma behind Algorithm 3 (Search)",
       "Search's predicate is false up to the next start and true from it on.",
       check="columns at which it is not, every column tried for every segment, from dense logits",
       planted="a δ three times too large",
       covers=("(T, δ)-non-degenerate k-conv basis", "the predicate of Search is monotone"))  # fmt: skip
def _monotone(quick: bool) -> Measurement:
    inside, beyond = [*problems(quick)], [*problems(quick, 8.0)]
    return Measurement(
        f"rotary inputs plus noise of ±ε, n = 160, k = 4, T = 6, {len(beyond)} seeds; {fingerprint(inside[0].q)}",
        float(sum(map(_wrong_answers, inside))),
        at_most=0.0,
        condition="ε ≤ δ/(5T)",
        counterexample=float(sum(map(_wrong_answers, beyond))),
    )


@claim("recover.logits", f"{PAPER}, the lemma behind the theorem on inference (4.4)",
       "With the true starts and ε-close logits, the basis represents the logits to within 2ε.",
       check="largest |H − H'| over 2ε",
       planted="the last true start moved by a column",
       covers=("the recovered logits are within 2ε",))  # fmt: skip
def _logits(quick: bool) -> Measurement:
    shares = []
    for problem in problems(quick):
        basis = basis_from_starts(problem.q, problem.k, problem.starts, scale=problem.scale)
        residual = logit_residual(problem.q, problem.k, basis, scale=problem.scale)
        shares.append(float(residual.max()) / (2 * problem.eps))
    return Measurement(
        f"rotary inputs plus noise of ±ε, ε to 0.99 δ/(5T), n = 160, k = 4, T = 6, {len(shares) // 3} seeds",
        max(shares),
        at_most=1 + 1e-9,
    )


@claim("conv.product-time", f"{PAPER}, conv(a) x by FFT, and its figure", "conv(a) x by FFT takes near-linear time.",
       check="exponent of the processor time in n; beside it the times of the direct product",
       planted="times that grow like n^1.5",
       covers=("conv(a) x by FFT in O(n log n)", "conv(a) x by FFT against the naive product: time and FLOPs"),
       must_hold=False, timed=True)  # fmt: skip
def _product_time(quick: bool) -> Measurement:
    sizes = [4096 << step for step in range(6 if quick else 9)]
    a, x = np.random.default_rng(0).standard_normal((2, sizes[-1], 1))
    fft = times(lambda n: partial(conv_product, a[:n, 0], x[:n], method="fft"), sizes)
    few = [n for n in sizes if n <= (16_384 if quick else 32_768)]
    direct = times(lambda n: partial(conv_product, a[:n, 0], x[:n], method="direct"), few, runs=2)
    detail = {f"seconds by FFT at n = {n}": t for n, t in fft.items()}
    detail |= {f"seconds directly at n = {n}": t for n, t in direct.items()}
    return Measurement(
        f"normal, n = {sizes[0]} … {sizes[-1]}, one column, float64, seed 0",
        exponent(fft),
        at_most=1.3,
        detail=detail | {"exponent of the direct product": exponent(direct)},
    )


@claim("inference.time", f"{PAPER}, theorem on inference (4.4)", "Conv attention takes near-linear time in n.",
       check="exponent of the forward's processor time in n, all threads together",
       planted="times that grow like n^1.5",
       covers=("theorem 4.4",), must_hold=False, timed=True)  # fmt: skip
def _time(quick: bool) -> Measurement:
    sizes = [4096 << step for step in range(4 if quick else 6)]

    def forward(n: int) -> Callable[[], object]:
        q, k, v, _ = rope_structured(n, 16, starts=4, seed=0, dtype=np.float32)
        return partial(conv_attention, q, k, v, n_basis=4, probe=1, delta=1e-3)

    found = times(forward, sizes)
    return Measurement(
        f"rotary inputs, n = {sizes[0]} … {sizes[-1]}, d = 16, k = 4, float32, fast path",
        exponent(found),
        at_most=1.15,
        detail={f"seconds at n = {n}": t for n, t in found.items()},
    )
