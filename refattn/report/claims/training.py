"""Claims about training with a conv basis: the loss and the two gradients (arXiv 2405.05219, section 5)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from refattn import (
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn._validation import FloatArray
from refattn.convbasis import Plan, basis_from_starts, oracle
from refattn.convbasis.bounds import ROW_TOLERANCE
from refattn.convbasis.training import loss_gradient_oracle, loss_gradient_paper
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import exponent, gradient_error, peak_memory, times
from refattn.testing import attention_inputs, check_gradients, relative_error, rope_structured, tolerance

PAPER = "arXiv 2405.05219"
NAMES = ("A1", "A2", "A3", "X", "W")


def _loss_arguments(n: int, d: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"A1": (n, d), "A2": (n, d), "A3": (n, d), "X": (d, d), "W": (d, d), "E": (n, d)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@claim("training.oracle", "ours",
       "The dense gradients of the attention loss, to X, W and the inputs, are its derivatives.",
       check="worst relative error against fourth-order central differences",
       planted="the gradient of X off by 0.1 %",
       covers=("attention loss", "closed form of the loss's gradient, A1ᵀ p A2"))  # fmt: skip
def _oracle(quick: bool) -> Measurement:
    given = _loss_arguments(16 if quick else 40, 3, seed=0)
    found = loss_gradient_oracle(**given)
    target = given["E"]
    errors = check_gradients(
        lambda **kw: np.array([loss_gradient_oracle(E=target, **kw).loss]),
        lambda g: {name: g[0] * getattr(found, name) for name in NAMES},
        {name: given[name] for name in NAMES},
        rtol=math.inf,
        step=3e-4,
    )
    return Measurement(
        f"normal, n = {len(target)}, d = 3, seed 0; {fingerprint(*given.values())}",
        max(errors.values()),
        at_most=tolerance("differences").rtol,
    )


@claim("training.loss-gradient", f"{PAPER}, theorem on training (5.6)",
       "The loss and its gradient, through d + 1 products with f for every column of p, equal the dense ones.",
       check="worst relative error of loss and gradients on an exact basis",
       planted="the gradient of X off by 0.1 %",
       covers=("closed form of the loss's gradient, A1ᵀ p A2", "products with q = c hᵀ as d products with f",
               "theorem 5.6"))  # fmt: skip
def _paper_loss(quick: bool) -> Measurement:
    n, worst = 60 if quick else 200, 0.0
    prints: list[np.ndarray] = []
    for terms in (1, 4, 17):
        q, k, v, _ = rope_structured(n, 4, starts=terms, seed=terms)
        given: dict[str, Any] = {**_loss_arguments(n, 4, seed=terms), "A1": q, "A2": k, "A3": v, "X": np.eye(4) / 2}
        prints += given.values()
        oracle = loss_gradient_oracle(**given)
        paper = loss_gradient_paper(**given, n_basis=terms, probe=1, delta=1e-9)
        worst = max(worst, *(relative_error(getattr(paper, x), getattr(oracle, x)) for x in ("loss", *NAMES)))
    return Measurement(f"rotary inputs, n = {n}, d = 4, k = 1, 4, 17; {fingerprint(*prints)}", worst, at_most=1e-10)


@claim("training.attention-gradient", f"{PAPER}, theorem on training (5.6)",
       "With an exact basis the paper's gradient equals exact attention's.",
       check="worst relative error of q, k and v, fast and paper",
       planted="the gradient of q off by 0.1 %",
       covers=("products with q = c hᵀ as d products with f", "theorem 5.6"))  # fmt: skip
def _attention(quick: bool) -> Measurement:
    n, worst, prints = 200 if quick else 1000, 0.0, []
    for terms in (1, 4, 17):
        q, k, v, _ = rope_structured(n, 8, starts=terms, seed=terms, deviation=2.0)
        prints += [q, k, v]
        upstream = np.random.default_rng(terms).standard_normal(v.shape)
        exact = dense_attention_backward(upstream, dense_attention_forward(q, k, v)[1])
        for method in ("fast", "paper"):
            _, cache = conv_attention_forward(q, k, v, n_basis=terms, probe=1, delta=1e-9, method=method)
            found = conv_attention_backward(upstream, cache, gradient="attention")
            worst = max(worst, *(relative_error(a, b) for a, b in zip(found, exact, strict=True)))
    return Measurement(f"rotary inputs, n = {n}, d = 8, k = 1, 4, 17; {fingerprint(*prints)}", worst, at_most=1e-10)


@claim("training.perturbed", f"{PAPER}, theorem on training (5.6), for ε-close logits",
       "The error of the paper's gradient is proportional to ε.",
       check="distance from 1 of the fitted slope of log error against log ε",
       planted="the gradient of q off by 0.1 %",
       covers=("theorem 5.6",))  # fmt: skip
def _perturbed(quick: bool) -> Measurement:
    """Error of the attention gradient against the noise ε, over four decades."""
    n, width, scale = 60 if quick else 200, 4, 0.5
    q, k, v, starts = rope_structured(n, width, starts=[0, n // 3, n // 2], seed=3)
    delta = basis_from_starts(q, k, starts, scale=scale).nondegeneracy(8) / 2
    rng = np.random.default_rng(3)
    noise, upstream = rng.uniform(-1, 1, (n, n)), rng.standard_normal(v.shape)
    sizes = np.logspace(-6, -2, 9)
    errors = []
    for eps in sizes:
        wide_q, wide_k = np.concatenate([q, eps * noise / scale], axis=1), np.concatenate([k, np.eye(n)], axis=1)
        _, cache = conv_attention_forward(wide_q, wide_k, v, n_basis=3, probe=8, delta=delta, scale=scale)
        found = conv_attention_backward(upstream, cache, gradient="attention")
        exact = dense_attention_backward(upstream, dense_attention_forward(wide_q, wide_k, v, scale=scale)[1])
        errors.append(relative_error(found.q[:, :width], exact.q[:, :width]))
    slope = exponent(dict(zip(sizes, errors, strict=True)))
    return Measurement(
        f"rotary inputs plus noise within ε, n = {n}, k = 3, ε = 1e-6 … 1e-2, seed 3; {fingerprint(q, k, v, noise)}",
        abs(slope - 1),
        at_most=0.1,
        detail={"slope": slope, "largest error over ε": max(e / s for e, s in zip(errors, sizes, strict=True))}
        | {f"relative error at ε = {s:.3g}": e for e, s in zip(errors, sizes, strict=True)},
    )


@claim("training.approximation-gradient", "ours",
       "The gradient of the approximation is the derivative of what the forward returns, on any input.",
       check="worst relative error of q, k and v against fourth-order central differences",
       planted="the gradient of q off by 0.1 %")  # fmt: skip
def _approximation(quick: bool) -> Measurement:
    worst, prints = 0.0, list[FloatArray]()
    for mask in ("causal", "full"):
        for n, terms in ((40, 1), (40, 3), (65, 17), (24, 24)):
            for method in ("fast", "paper"):
                inputs: dict[str, Any] = dict(zip("qkv", attention_inputs(n, 4, seed=n + terms), strict=True))
                prints += inputs.values()
                options: dict[str, Any] = {"n_basis": terms, "probe": 1, "delta": 0, "mask": mask, "method": method}
                _, cache = conv_attention_forward(**inputs, **options)
                forward, few = partial(conv_attention, **options), 1 if quick else 3
                error = gradient_error(forward, conv_attention_backward, cache, inputs, step=3e-4, directions=few)
                worst = max(worst, error)
    return Measurement(
        f"normal, n = 24 … 65, d = 4, k = 1, 3, 17, n, causal and full, fast and paper; {fingerprint(*prints)}",
        worst,
        at_most=tolerance("differences").rtol,
    )


@claim("training.fast-equals-paper", "ours",
       "Both gradients by the block transform equal the paper's form, rows recomputed or not.",
       check="worst relative error of q, k and v, float64",
       planted="the fast path's gradient of v off by 0.1 %")  # fmt: skip
def _fast_equals_paper(quick: bool) -> Measurement:
    n, worst, prints = 150 if quick else 500, 0.0, []
    for deviation in (1.0, 4.0, 8.0):
        q, k, v = attention_inputs(n, 4, seed=5, deviation=deviation)
        prints += [q, k, v]
        upstream = np.random.default_rng(5).standard_normal(v.shape)
        caches = [
            conv_attention_forward(q, k, v, n_basis=6, probe=4, delta=0.5, method=method)[1]
            for method in ("fast", "paper")
        ]
        for gradient in ("approximation", "attention"):
            fast, paper = (conv_attention_backward(upstream, cache, gradient=gradient) for cache in caches)
            worst = max(worst, *(relative_error(a, b) for a, b in zip(fast, paper, strict=True)))
    return Measurement(
        f"normal, n = {n}, d = 4, k = 6, deviations 1, 4, 8; {fingerprint(*prints)}", worst, at_most=1e-10
    )


NO_GUARD = 1e300
"""A tolerance that keeps every row."""


def _hard_rows(n: int, dtype: Any) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray, dict[str, Any]]]:
    """Inputs, upstream gradients and options in which small rows stand beside large ones."""
    shapes = (("causal", 1), ("full", 2), ("causal", 2), ("full", 1))
    for kind in range(4):
        for number, deviation in enumerate((1.0, 4.0, 8.0, 16.0)):
            mask, terms = shapes[(kind + number) % 4]
            starts, seed = [0, n // 4][:terms], 4 * kind + number
            q, k, v, _ = rope_structured(
                n, 8, starts=starts, seed=seed, deviation=deviation, d_v=3 if kind == 3 else 8, dtype=dtype
            )
            rng = np.random.default_rng(seed)
            v, upstream = v.copy(), rng.standard_normal(v.shape).astype(dtype)
            if kind == 0:  # padding
                v[: n // 4] = 0
            elif kind == 1:  # decades
                v *= (10.0 ** rng.uniform(-4, 4, (n, 1))).astype(dtype)
                upstream *= (10.0 ** rng.uniform(-4, 4, (n, 1))).astype(dtype)
            elif kind == 2:  # a loss that masks the end
                upstream[5 * n // 8 :] *= dtype(1e-8)
            else:  # an odd number of columns, small beside one
                v *= dtype(1e-6)
            options = {"n_basis": terms, "probe": 8, "delta": 1e-2, "mask": mask, "plan": Plan("block transform", 64)}
            yield (q, k, v), upstream, options


def _row_excess(
    inputs: tuple[np.ndarray, ...], upstream: np.ndarray, options: dict[str, Any]
) -> tuple[dict[str, float], int]:
    """Worst error of a row of each gradient over what it may be, and how many rows and lags were recomputed.

    What it may be: the tolerance of its natural size; weights below the smallest normal number count as nothing.
    """
    q, k, v = inputs
    try:
        _, cache = conv_attention_forward(q, k, v, **options)
        found = conv_attention_backward(upstream, cache)
    except ValueError:  # every one of these gradients fits
        return dict.fromkeys("qkv", math.inf), 0
    right, size = oracle.approximation_gradient(upstream, q, k, v, cache.basis, cache.upper, cache.scale)
    G, tol, tiny = upstream.astype(np.float64), ROW_TOLERANCE[upstream.dtype.name], float(np.finfo(upstream.dtype).tiny)
    natural = {name: getattr(size, name).max(axis=1, keepdims=True) for name in "qk"}
    natural["v"] = oracle.natural_size(oracle.dense_weights(cache.basis, cache.upper).T, G)
    floor = {"q": tiny, "k": tiny, "v": tiny * (1 + len(G) * np.abs(G).max())}
    excess = {
        name: float(np.max(np.abs(getattr(found, name) - getattr(right, name)) / (tol * natural[name] + floor[name])))
        for name in "qkv"
    }
    return excess, sum(int(count) for count in found.recomputed)


@claim("training.gradient-rows", "ours",
       "Every row of dq, dk, dv and of every kernel's gradient is within the tolerance of its natural size or"
       " computed directly.",
       check="worst row error over the row tolerance, 1e-13 and 1e-5 of what the row would be if no sum cancelled;"
             " with one term a row of dq is a lag of the kernel's gradient times a key",
       planted="the forward's list of lost rows used again; a column of another size in a transform; no lag guarded;"
               " the tolerance of the array for every row")  # fmt: skip
def _gradient_rows(quick: bool) -> Measurement:
    """Worst error of a row of a gradient over its tolerance, guarded; beside it, with every row kept."""
    n, prints = 192 if quick else 1024, []
    worst, unguarded, detail = 0.0, 0.0, {}
    for dtype in (np.float64, np.float32):
        name, guarded, counts = np.dtype(dtype).name, [], 0
        for inputs, upstream, options in _hard_rows(n, dtype):
            prints += [*inputs, upstream]
            excess, count = _row_excess(inputs, upstream, options)
            guarded.append(excess)
            counts += count
            kept, _ = _row_excess(inputs, upstream, {**options, "tol": NO_GUARD})
            unguarded = max(unguarded, *kept.values())
        for gradient in "qkv":
            detail[f"{name}: worst row of d{gradient} over its tolerance"] = max(one[gradient] for one in guarded)
        detail[f"{name}: rows and lags recomputed"] = counts
        worst = max(worst, *(one[gradient] for one in guarded for gradient in "qkv"))
    return Measurement(
        f"rotary inputs, n = {n}, d = 8, k = 1, 2, causal and full, deviations 1, 4, 8, 16, both dtypes, blocks of 64:"
        " values that are padding; values and upstream rows over 8 decades; late upstream rows of 1e-8; three columns"
        f" of 1e-6; {fingerprint(*prints)}",
        worst,
        at_most=1.0,
        condition="rows and lags are guarded",
        counterexample=unguarded,
        detail=detail,
    )


def _both_ways(gradient: str, n: int) -> Callable[[], object]:
    """Forward and backward at a length, to be timed."""
    q, k, v, _ = rope_structured(n, 16, starts=4, seed=0, dtype=np.float32)

    def run() -> None:
        _, cache = conv_attention_forward(q, k, v, n_basis=4, probe=1, delta=1e-3)
        conv_attention_backward(np.ones_like(v), cache, gradient=gradient)

    return run


@claim("training.time", f"{PAPER}, theorem on training (5.6)", "Forward and backward take near-linear time in n.",
       check="fitted exponent in n of the paper's gradient, fast path; depends on the machine and its load",
       planted="times that grow like n^1.5",
       covers=("theorem 5.6",), must_hold=False, timed=True)  # fmt: skip
def _time(quick: bool) -> Measurement:
    sizes = (2048, 4096, 8192) if quick else (4096, 8192, 16384, 32768, 65536)
    found = times(partial(_both_ways, "attention"), sizes, runs=3, clock=time.perf_counter)
    detail = {f"seconds at n = {n}": t for n, t in found.items()}
    if not quick:
        other = times(partial(_both_ways, "approximation"), sizes, runs=3, clock=time.perf_counter)
        detail["exponent of the approximation's gradient"] = exponent(other)
    inputs = f"rotary inputs, n = {sizes[0]} … {sizes[-1]}, d = 16, k = 4, float32"
    return Measurement(inputs, exponent(found), at_most=1.15, detail=detail)


@claim("training.memory", "ours",
       "Forward and backward of the approximation take O(kn + nd) memory: at most 10 times V.",
       check="peak beyond inputs, output and gradients, over the size of V",
       planted="a backward that holds 40 copies of V", timed=True)  # fmt: skip
def _memory(quick: bool) -> Measurement:
    """Peak memory of forward and backward over the size of V, beyond inputs, output and gradients."""
    n = 16384 if quick else 262144
    q, k, v, _ = rope_structured(n, 64, starts=16, seed=0, dtype=np.float32)
    upstream = np.ones_like(v)

    def run() -> None:
        _, cache = conv_attention_forward(q, k, v, n_basis=16, probe=1, delta=1e-3)
        conv_attention_backward(upstream, cache)

    run()  # plans and compiled code are not counted
    peak = peak_memory(run)
    return Measurement(
        f"rotary inputs, n = {n}, d = 64, k = 16, float32; NumPy's memory, without FFTW's buffers",
        round((peak - 4 * v.nbytes) / v.nbytes, 2),
        at_most=10.0,
    )
