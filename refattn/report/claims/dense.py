"""Claims about exact attention, definition and tiles: it has to be beyond doubt before anything is compared with it."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np

from refattn import SlidingWindow, dense_attention, dense_attention_backward, dense_attention_forward
from refattn._validation import FloatArray
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import gradient_error, rows_that_see_the_future
from refattn.testing import attention_inputs, row_errors, tolerance

_BY_TILES = 300
"""A length that `refattn.dense_attention` computes by tiles: at 256 and below it is its definition."""


@claim("dense.definition", "ours", "Exact attention equals its definition, rounding apart.",
       check="worst row error against 50-digit scalar arithmetic, over the logit deviation where that is above 1",
       planted="logits without their 1/√d",
       covers=("definition 1.1",))  # fmt: skip
def _exact_digits(quick: bool) -> Measurement:
    """Softmax of every row in 50-digit arithmetic, one scalar at a time."""
    n, d = (10, 4) if quick else (24, 8)
    worst, prints = 0.0, []
    for deviation in (1.0, 8.0, 1e4):
        q, k, v = attention_inputs(n, d, seed=1, deviation=deviation)
        prints += [q, k, v]
        exact = np.empty_like(v)
        with localcontext() as context:
            context.prec = 50
            scale = 1 / Decimal(d).sqrt()
            for i in range(n):
                weights = []
                for j in range(i + 1):
                    products = (Decimal(float(a)) * Decimal(float(b)) for a, b in zip(q[i], k[j], strict=True))
                    weights.append((scale * sum(products)).exp())
                total = sum(weights)
                for column in range(d):
                    entries = (w * Decimal(float(x)) for w, x in zip(weights, v[:, column], strict=False))
                    exact[i, column] = float(sum(entries) / total)
        # Rounding a logit s costs an error of |s| u in the weight: relative to that, the result is exact.
        worst = max(worst, row_errors(dense_attention(q, k, v), exact).max() / max(deviation, 1.0))
    return Measurement(
        f"normal, n = {n}, d = {d}, deviations 1, 8, 1e4, seed 1; {fingerprint(*prints)}",
        worst,
        at_most=1e-13,
    )


@claim("dense.gradients", "ours", "The hand-derived gradients of q, k and v are the derivatives of the forward.",
       check="worst relative error against fourth-order central differences, each input alone",
       planted="the gradient of q off by 0.1 %")  # fmt: skip
def _gradients(quick: bool) -> Measurement:
    worst, prints = 0.0, list[FloatArray]()
    masks = ("causal", "full", SlidingWindow(3, sinks=1))
    for seed, mask in enumerate(masks if not quick else masks[:2]):
        inputs: dict[str, Any] = dict(
            zip("qkv", attention_inputs(12, 4, seed=seed, lead=(4,), kv_lead=(2,)), strict=True)
        )
        prints += inputs.values()
        function = partial(dense_attention, mask=mask, softcap=5.0)
        _, cache = dense_attention_forward(**inputs, mask=mask, softcap=5.0)
        worst = max(worst, gradient_error(function, dense_attention_backward, cache, inputs, seed=seed))
    return Measurement(
        f"normal, 4 heads on 2, n = 12, d = 4, softcap 5, seeds 0 …; {fingerprint(*prints)}",
        worst,
        at_most=tolerance("differences").rtol,
    )


@claim("dense.masked-rows", "ours",
       "Rows with no allowed key give zeros, and zero gradients, and disturb no other row.",
       check="largest absolute entry of those rows, and change of any other; infinite if anything is not finite",
       planted="a masked row that gets a little of the values' mean",
       covers=("causal mask",))  # fmt: skip
def _masked_rows(quick: bool) -> Measurement:
    q, k, v = attention_inputs(8, 4, seed=2)
    mask = np.tril(np.ones((8, 8), dtype=bool))
    mask[[2, 5]] = False
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    gradients = dense_attention_backward(np.ones_like(out), cache)
    stray = np.abs(np.concatenate([out[[2, 5]].ravel(), gradients.q[[2, 5]].ravel()])).max()
    others = np.delete(np.arange(8), [2, 5])
    stray = max(stray, np.abs(out - dense_attention(q, k, v))[others].max())
    finite = all(np.isfinite(x).all() for x in (out, *gradients))
    return Measurement(
        f"n = 8 with rows 2 and 5 masked, seed 2; {fingerprint(q, k, v)}", stray if finite else np.inf, at_most=0.0
    )


@claim("dense.causality", "ours", "Changing the future changes no past row, bit for bit.",
       check="rows changed before the first changed token",
       planted="every row sees the future",
       covers=("causal mask",))  # fmt: skip
def _causality(quick: bool) -> Measurement:
    n = _BY_TILES if quick else 1000
    inputs = dict(zip("qkv", attention_inputs(n, 16, seed=3), strict=True))
    changed = rows_that_see_the_future(dense_attention, inputs, range(1, n, 7), seed=3)
    return Measurement(f"normal, n = {n}, d = 16, seed 3; {fingerprint(*inputs.values())}", changed, at_most=0.0)


@claim("dense.float32", "ours", "In float32 the error is at most twice that of a plain float32 implementation.",
       check="ratio of the worst row errors, both against float64",
       planted="the output rounded to half precision")  # fmt: skip
def _float32(quick: bool) -> Measurement:
    n = _BY_TILES if quick else 1000
    worst, prints = 0.0, []
    for deviation in (1.0, 4.0, 8.0):
        q, k, v = attention_inputs(n, 64, seed=4, deviation=deviation, dtype=np.float32)
        prints += [q, k, v]
        exact = dense_attention(*(x.astype(np.float64) for x in (q, k, v)), method="oracle")
        logits = np.where(np.tri(n, dtype=bool), (q @ k.T) * np.float32(0.125), np.float32(-np.inf))
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        plain = (weights / weights.sum(axis=1, keepdims=True)) @ v
        ratio = row_errors(dense_attention(q, k, v), exact).max() / row_errors(plain, exact).max()
        worst = max(worst, float(ratio))
    return Measurement(
        f"normal, n = {n}, d = 64, deviations 1, 4, 8, float32, seed 4; {fingerprint(*prints)}", worst, at_most=2.0
    )


@claim("dense.tiles", "ours", "By tiles, exact attention and its gradients are what its definition gives.",
       check="worst difference of the output and the three gradients, relative to the largest entry",
       planted="the gradient of q by tiles off by 0.1 %")  # fmt: skip
def _tiles(quick: bool) -> Measurement:
    n = 600 if quick else 1500
    q, k, v = attention_inputs(n, 16, seed=6, lead=(4,), kv_lead=(2,))
    upstream = np.random.default_rng(6).standard_normal(q.shape)
    worst = 0.0
    for mask in ("causal", "full", SlidingWindow(300, sinks=4)):
        one, other = (_out_and_gradients(q, k, v, upstream, mask, method) for method in ("fast", "oracle"))
        worst = max(worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(one, other, strict=True)))
    return Measurement(f"normal, 4 heads on 2, n = {n}, d = 16, seed 6; {fingerprint(q, k, v)}", worst, at_most=1e-12)


def _out_and_gradients(
    q: FloatArray, k: FloatArray, v: FloatArray, upstream: FloatArray, mask: Any, method: str
) -> tuple[FloatArray, ...]:
    out, cache = dense_attention_forward(q, k, v, mask=mask, method=method)
    return out, *dense_attention_backward(upstream, cache)


@claim("dense.torch", "ours",
       "Forward and backward agree with PyTorch's scaled_dot_product_attention on grouped heads.",
       check="worst difference of the output and the three gradients, relative to the largest entry",
       planted="the gradient of q off by 0.1 %",
       covers=("definition 1.1",), needs=("torch",))  # fmt: skip
def _torch(quick: bool) -> Measurement:
    import torch

    n = _BY_TILES
    q, k, v = attention_inputs(n, 32, seed=5, lead=(6,), kv_lead=(2,))
    upstream = np.random.default_rng(5).standard_normal(q.shape)
    out, cache = dense_attention_forward(q, k, v)
    gradients = dense_attention_backward(upstream, cache)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
    theirs.backward(torch.tensor(upstream))
    pairs = [(out, theirs.detach().numpy())] + [(g, x.grad.numpy()) for g, x in zip(gradients, leaves, strict=True)]
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    return Measurement(f"normal, 6 heads on 2, n = {n}, d = 32, seed 5; {fingerprint(q, k, v)}", worst, at_most=1e-12)
