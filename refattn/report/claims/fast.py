"""Claims about the fast path of conv attention: what holds of every row, and of the bits (ours)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn import conv_attention, dense_attention
from refattn.convbasis import Plan
from refattn.convbasis.fast.blocks import BlockProduct
from refattn.experiments.conv.numerical_domain import numerical_domain
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import entries_that_change
from refattn.testing import rope_structured


@claim("fast.numerical-domain", "ours",
       "Every row of the fast path is within its tolerance, whatever the deviation of the logits.",
       check="worst row error over the row tolerance (1e-13 and 1e-5 of ‖V‖_∞); one long FFT of the same kernel"
             " beside it",
       planted="the guard's estimates all zero")  # fmt: skip
def _numerical_domain(quick: bool) -> Measurement:
    """Worst error of a guarded row over its tolerance; beside it, what one long FFT makes of the same kernel."""
    n = 1024 if quick else 4096
    records = numerical_domain(n=n)
    return Measurement(
        f"causal Toeplitz attention, kernel exp(N(0, σ)), n = {n}, σ = 1, 4, 8, 16, float64 and float32, seed 0",
        max(r.guarded_error / r.tolerance for r in records),
        at_most=1.0,
        condition="rows are guarded",
        counterexample=max(r.plain_error / r.tolerance for r in records),
        detail={
            f"{r.dtype}: {what} at deviation {r.deviation:g}": value
            for r in records
            for what, value in (
                ("error of one long FFT", r.plain_error),
                ("error of the guarded path", r.guarded_error),
                ("rows recomputed", r.rows_recomputed),
            )
        },
    )


@claim("fast.exact-basis", "arXiv 2405.05219, theorem on inference (4.4) at ε = 0",
       "The block transform equals exact attention where the basis is exact, for any block length.",
       check="worst error against exact attention in float64, over what is allowed",
       planted="logits without their 1/√d",
       covers=("theorem 4.4",))  # fmt: skip
def _exact(quick: bool) -> Measurement:
    worst, prints = 0.0, []
    n = 1000 if quick else 4096
    for dtype, tol in ((np.float64, 1e-12), (np.float32, 2e-5)):
        for k in (1, 16):
            for block in (256,) if quick else (32, 256, 1024):
                q, keys, v, _ = rope_structured(n, 64, starts=k, seed=k, deviation=2.0, dtype=dtype)
                prints += [q, keys, v]
                out = conv_attention(q, keys, v, n_basis=k, probe=8, delta=1e-2, plan=Plan("block transform", block))
                exact = dense_attention(*(x.astype(np.float64) for x in (q, keys, v)), method="oracle")
                worst = max(worst, float(np.abs(out - exact).max() / np.abs(v).max()) / tol)
    blocks = "256" if quick else "32, 256, 1024"
    return Measurement(
        f"rotary inputs, n = {n}, d = 64, k = 1, 16, B = {blocks}, both dtypes; {fingerprint(*prints)}",
        worst,
        at_most=1.0,
        detail={"measured is over": "1e-12 of ‖V‖_∞ in float64, 2e-5 in float32"},
    )


@claim("fast.adjoint", "ours", "The transposed product is the adjoint of the product: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩.",
       check="difference of the two, relative to ‖A |x|‖ ‖y‖",
       planted="the transposed product shifted by a row")  # fmt: skip
def _adjoint(quick: bool) -> Measurement:
    rng = np.random.default_rng(0)
    worst = 0.0
    for n, starts, block in ((300, [0, 70, 200], 32), (1000, [0], 64), (777, [0, 1, 2, 700], 128)):
        kernels = rng.standard_normal((len(starts), n)) * 3
        kernels[np.arange(n) >= n - np.array(starts)[:, None]] = 0
        product = BlockProduct(np.array(starts), kernels, block)
        x, y = rng.standard_normal((2, n, 6))
        forward, backward = (product.product(x) * y).sum(), (x * product.product(y, transposed=True)).sum()
        size = np.linalg.norm(product.product(np.abs(x))) * np.linalg.norm(y)
        worst = max(worst, float(abs(forward - backward) / size))
    return Measurement("three bases, n = 300, 1000, 777, deviation 3, seed 0", worst, at_most=1e-13)


@claim("fast.threads", "ours", "The result has the same bits for any number of threads, and from run to run.",
       check="entries that differ between 1, 2, 3 and 2 threads",
       planted="a last digit that depends on the number of threads")  # fmt: skip
def _threads(quick: bool) -> Measurement:
    q, k, v, _ = rope_structured(3000 if quick else 20_000, 32, starts=5, seed=2, deviation=3.0, dtype=np.float32)
    options: dict[str, Any] = {"n_basis": 5, "probe": 8, "delta": 1e-2, "plan": Plan("block transform", 256)}
    changed = entries_that_change(lambda: [conv_attention(q, k, v, **options)], (1, 2, 3, 2))
    return Measurement(f"rotary inputs, n = {len(q)}, d = 32, k = 5; {fingerprint(q, k, v)}", changed, at_most=0.0)
