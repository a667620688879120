"""Claims about the lemmas and the costs behind the inference theorem (arXiv 2405.05219, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from refattn import conv_attention
from refattn.convbasis import basis_from_starts, conv_product, logit_residual
from refattn.report.claims.recover import Noisy, problems
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import exponent, times
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
