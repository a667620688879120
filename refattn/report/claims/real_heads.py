"""Claims about heads of a real language model, on the shipped queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn import conv_attention, dense_attention
from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts, closeness, logit_residual, sharp_bound
from refattn.experiments.conv.error_against_k import STARTS, chosen_starts, error_against_k, represented_attention
from refattn.report.ledger import Measurement, claim
from refattn.testing.real_heads import load_real_heads

PAPER = "arXiv 2405.05219"


def _describe(heads: int, n: int, sha256: str) -> str:
    return f"{heads} heads of SmolLM2-135M on Hamlet, n = {n}; sha256 {sha256[:12]}"


@claim("real.conv-structure", "ours: what error against k asks at the scale 1/√d, with which the heads were trained",
       "A quarter of the columns as basis terms (k = n/4) represents trained attention, logits q·k/√d, to 10 %.",
       check="median over heads, first and uniform starts, of ‖Y − Ỹ‖_F / ‖Y‖_F at k = 512",
       planted="heads cut to 512 tokens, each a start of its own: the claim then holds",
       covers=("relative error and FLOPs against k on a language model",
               "heat maps of attention with visible diagonals"),
       must_hold=False)  # fmt: skip
def _error_curve(quick: bool) -> Measurement:
    """Median over heads of the relative error, for k = 1 … n/2."""
    real = load_real_heads()
    n = real.q.shape[-2]
    group = 1 if quick else real.q.shape[1]
    counts = [512] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, n // 2]
    records = list(error_against_k(real.q[:, :group], real.k, real.v, real.layers, counts))
    curve = {
        f"{kind} starts, k = {count}": float(
            np.median([r.relative_error for r in records if (r.starts, r.k) == (kind, count)])
        )
        for kind in STARTS
        for count in counts
    }
    at_quarter = [r.relative_error for r in records if r.k == 512]
    return Measurement(
        _describe(len(real.layers) * group, n, real.sha256),
        float(np.median(at_quarter)),
        at_most=0.1,
        detail={"median relative error": curve, "heads below 0.1 at k = 512": sum(e < 0.1 for e in at_quarter)},
    )


def _first_heads(quick: bool) -> tuple[str, int, Iterator[tuple[FloatArray, FloatArray, FloatArray]]]:
    """What they are, their length, and queries, keys and values of the first head of every layer."""
    real = load_real_heads(dtype=np.float64)
    n = 512 if quick else real.q.shape[-2]
    heads = zip(real.q[:, 0, :n], real.k[:, 0, :n], real.v[:, 0, :n], strict=True)
    return _describe(len(real.layers), n, real.sha256), n, heads


@claim("real.theorem-condition", f"{PAPER}, the condition of theorem 4.4 on a language model",
       "Some head is ε-close to a (T, δ)-non-degenerate k-conv matrix with k ≤ n/8, as the inference theorem asks.",
       check="smallest 5 T ε/δ over heads, T = 8, k = n/64, n/16 and n/8 uniform starts",
       planted="a deviation from k-conv a millionth of what is measured: the claim then holds",
       covers=("ε-close (T, δ)-non-degenerate k-conv basis", "theorem 4.4",
               "heat maps of attention with visible diagonals"),
       must_hold=False)  # fmt: skip
def _theorem_condition(quick: bool) -> Measurement:
    """Smallest 5 T ε / δ of any head: at most 1 where the inference theorem applies."""
    inputs, n, heads = _first_heads(quick)
    probe, found = 8, []
    for q, k, _ in heads:
        for count in (n // 64, n // 16, n // 8):
            basis = basis_from_starts(q, k, chosen_starts("uniform", n, count))
            measured = closeness(q, k, basis, probe=probe)
            found.append(5 * probe * measured.eps / measured.delta)
    return Measurement(
        inputs,
        min(found),
        at_most=1.0,
        detail={"largest": max(found)},
    )


@claim("real.a-posteriori", f"{PAPER}, the argument of theorem 4.4; the sharp form is ours",
       "On real heads the error of every row is within 2 tanh(r/2) ‖V‖_∞.",
       check="largest row error over the bound, uniform starts, k = n/16 and n/2",
       planted="a bound ten times too small",
       covers=("an error of the logits carried to the output",))  # fmt: skip
def _posterior(quick: bool) -> Measurement:
    inputs, n, heads = _first_heads(quick)
    worst, residuals = 0.0, []
    for q, k, v in heads:
        exact, v_max = dense_attention(q, k, v, method="oracle"), float(np.abs(v).max())
        for count in (n // 16, n // 2):
            starts = chosen_starts("uniform", n, count)
            residual = logit_residual(q, k, basis_from_starts(q, k, starts))
            residuals.append(float(residual.max()))
            error = np.abs(represented_attention(q, k, v, starts) - exact).max(axis=-1)
            bound = np.array([sharp_bound(r, v_max) for r in residual]) + 1e-12 * v_max
            worst = max(worst, float((error / bound).max()))
    return Measurement(
        inputs,
        worst,
        at_most=1.0,
        detail={"smallest r": min(residuals), "largest r": max(residuals)},
    )


@claim("real.paper-equals-oracle", "ours",
       "On real heads the products by FFT, rows guarded, equal the same basis applied densely.",
       check="largest difference relative to ‖V‖_∞, 32 uniform starts, float64",
       planted="the last segment's columns dropped",
       covers=("algorithm 1",))  # fmt: skip
def _paper_on_real(quick: bool) -> Measurement:
    inputs, _, heads = _first_heads(quick)
    worst = 0.0
    for q, k, v in heads:
        starts = chosen_starts("uniform", len(q), 32)
        out = conv_attention(q, k, v, basis=basis_from_starts(q, k, starts), method="paper")
        exact = represented_attention(q, k, v, starts)
        worst = max(worst, float(np.abs(out - exact).max() / np.abs(v).max()))
    return Measurement(inputs, worst, at_most=1e-12)
