"""Claims about the lemmas and the costs behind the inference theorem (arXiv 2405.05219, sections 3 and 4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from refattn import conv_attention
from refattn.convbasis import basis_from_starts, conv_product, logit_residual
from refattn.report.claims.recover import Noisy, noisy
from refattn.report.ledger import Claim, Measurement, fingerprint
from refattn.testing import rope_structured

PAPER = "arXiv 2405.05219"


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


def _monotone(quick: bool) -> Measurement:
    seeds = range(5 if quick else 40)
    inside = [noisy(fraction, seed) for seed in seeds for fraction in (0.1, 0.5, 0.99)]
    beyond = [noisy(8.0, seed) for seed in seeds]
    return Measurement(
        f"rotary inputs plus noise of ±ε, n = 160, k = 4, T = 6, {len(seeds)} seeds; {fingerprint(inside[0].q)}",
        float(sum(map(_wrong_answers, inside))),
        at_most=0.0,
        condition="ε ≤ δ/(5T)",
        counterexample=float(sum(map(_wrong_answers, beyond))),
    )


def _logits(quick: bool) -> Measurement:
    worst, seeds = 0.0, range(5 if quick else 40)
    for seed in seeds:
        for fraction in (0.1, 0.5, 0.99):
            problem = noisy(fraction, seed)
            basis = basis_from_starts(problem.q, problem.k, problem.starts, scale=problem.scale)
            residual = logit_residual(problem.q, problem.k, basis, scale=problem.scale)
            worst = max(worst, float(residual.max()) / (2 * problem.eps))
    return Measurement(
        f"rotary inputs plus noise of ±ε, ε to 0.99 δ/(5T), n = 160, k = 4, T = 6, {len(seeds)} seeds",
        worst,
        at_most=1 + 1e-9,
    )


def _seconds(function: Callable[[], Any], repeat: int = 4) -> float:
    """Least processor time of several runs, in which other programs do not count; the first only plans and compiles."""
    function()
    least = np.inf
    for _ in range(repeat):
        begun = time.process_time()
        function()
        least = min(least, time.process_time() - begun)
    return float(least)


def _exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _product_time(quick: bool) -> Measurement:
    sizes = [4096 << step for step in range(6 if quick else 9)]
    rng, fft, direct = np.random.default_rng(0), {}, {}
    for n in sizes:
        a, x = rng.standard_normal(n), rng.standard_normal((n, 1))
        fft[n] = _seconds(partial(conv_product, a, x, method="fft"))
        if n <= (16_384 if quick else 32_768):
            direct[n] = _seconds(partial(conv_product, a, x, method="direct"), 2)
    detail = {f"seconds by FFT at n = {n}": t for n, t in fft.items()}
    detail |= {f"seconds directly at n = {n}": t for n, t in direct.items()}
    return Measurement(
        f"normal, n = {sizes[0]} … {sizes[-1]}, one column, float64, seed 0",
        _exponent(sizes, list(fft.values())),
        at_most=1.3,
        detail=detail | {"exponent of the direct product": _exponent(list(direct), list(direct.values()))},
    )


def _time(quick: bool) -> Measurement:
    sizes = [4096 << step for step in range(4 if quick else 6)]
    seconds = []
    for n in sizes:
        q, k, v, _ = rope_structured(n, 16, starts=4, seed=0, dtype=np.float32)
        seconds.append(_seconds(partial(conv_attention, q, k, v, n_basis=4, probe=1, delta=1e-3)))
    return Measurement(
        f"rotary inputs, n = {sizes[0]} … {sizes[-1]}, d = 16, k = 4, float32, fast path",
        _exponent(sizes, seconds),
        at_most=1.15,
        detail={f"seconds at n = {n}": t for n, t in zip(sizes, seconds, strict=True)},
    )


CLAIMS = (
    Claim("recover.monotone", f"{PAPER}, the lemma behind Algorithm 3 (Search)",
          "Search's predicate is false up to the next start and true from it on.",
          "columns at which it is not, every column tried for every segment, from dense logits", _monotone),
    Claim("recover.logits", f"{PAPER}, the lemma behind the theorem on inference (4.4)",
          "With the true starts and ε-close logits, the basis represents the logits to within 2ε.",
          "largest |H − H'| over 2ε", _logits),
    Claim("conv.product-time", f"{PAPER}, conv(a) x by FFT, and its figure",
          "conv(a) x by FFT takes near-linear time.",
          "exponent of the processor time in n; beside it the times of the direct product", _product_time,
          must_hold=False, timed=True),
    Claim("inference.time", f"{PAPER}, theorem on inference (4.4)", "Conv attention takes near-linear time in n.",
          "exponent of the forward's processor time in n, all threads together", _time,
          must_hold=False, timed=True),
)  # fmt: skip
