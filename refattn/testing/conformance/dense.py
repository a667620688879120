"""Exact softmax attention as an operation to check; the truth is its oracle, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import dense_attention_backward, dense_attention_forward
from refattn.testing.conformance import heads, options, sampled, softmax, tiles
from refattn.testing.conformance.crossed_cases import CROSSED
from refattn.testing.conformance.dense_cases import CASES
from refattn.testing.conformance.long_cases import LONG
from refattn.testing.conformance.operation import Arrays, Operation, Problem
from refattn.testing.conformance.option_cases import OPTIONS
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.property_cases import DENSE_PROPERTIES
from refattn.testing.conformance.rounding import (
    Attention,
    Pairs,
    Rows,
    Spread,
    attention_spread,
    bias_spread,
    key_spread,
    normalised,
)

OVERFLOW = "products overflow before the scale"

FAULTS = {
    OVERFLOW: "q·k is kept in float16, which ends at 65,504, and scaled afterwards",
    "missing scale": "the logits are not multiplied by the scale",
    "scale applied twice": "the logits are multiplied by the square of the scale",
    "scale argument ignored": "the logits are multiplied by 1/√d whatever the scale given",
    "scale by the width of the values": "the logits are multiplied by 1/√d_v",
    "future leak": "causal attention sees every later key",
    "mask off by one (sees one later key)": "query i sees the keys up to i + 1",
    "mask off by one (misses its own key)": "query i sees the keys up to i − 1",
    "mask argument ignored": "the mask given is not applied",
    "mask of the first batch for all": "the mask of the first batch hides keys from the others too",
    "mask inverted": "the mask hides what it should show; True means: may be seen",
    "causal where full was asked": "later keys are hidden though causal is False",
    "last key dropped": "no query sees the last key",
    "last row lost": "the last row of the output, and its share of the gradients, are zero",
    "transposed gradient": "dk = dS q where dSᵀ q was wanted",
    "gradients of q and k exchanged": "dq and dk are returned in the other order",
    "mask missing in the backward": "the backward computes the weights again without the mask",
    softmax.LOW_START: "the running maximum starts at a number, and rows of logits below it see nothing",
    **heads.FAULTS,
    **softmax.FAULTS,
    **tiles.FAULTS,
    **options.FAULTS,
}


def defaults(problem: Problem) -> dict[str, Any]:
    """Options of a function that takes none: causal, 1/√d, no mask."""
    return {"causal": True, "scale": 1 / math.sqrt(problem.arrays["q"].shape[-1]), "mask": None}


def truth(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """Exact attention and its gradients in float64, by the definition; of the sampled rows where there is a sample."""
    if problem.sample is not None:
        return _of_sample(problem, upstream, PRECISIONS["float64"], None, _truth_of_rows)
    return _truth_of_rows(problem, upstream)


def _truth_of_rows(problem: Problem, upstream: FloatArray | None) -> Arrays:
    if problem.rows is not None:  # some of the queries: what they see is said by a mask
        seen = allowed_keys(problem, None)
        problem = replace(problem, options={**problem.options, "causal": False, "mask": seen})
    q = problem.arrays["q"].astype(np.float64)
    k, v, rule, more = options.for_oracle(problem)
    out, cache = dense_attention_forward(q, k, v, mask=rule, scale=problem.options["scale"], method="oracle", **more)
    found = {"out": out, "lse": cache.log_sum_exp} if problem.lse else {"out": out}
    if upstream is None:
        return found
    gradients = dense_attention_backward(upstream.astype(np.float64), cache, dlse=problem.options.get("dlse"))
    found |= {"dq": gradients.q, "dk": gradients.k, "dv": gradients.v}
    return found | {f"d{x}": getattr(gradients, x) for x in options.WITH_GRADIENT if x in problem.options}


def whole(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """Exact attention and its gradients of all rows, by tiles: in float64 where that is soon done, or in float32."""
    n_q, n_k = problem.arrays["q"].shape[-2], problem.arrays["k"].shape[-2]
    work = np.float64 if math.prod(problem.arrays["q"].shape[:2]) * n_q * n_k <= 2**26 else np.float32
    q, k, v = (problem.arrays[x].astype(work) for x in ("q", "k", "v"))
    causal, mask = problem.options["causal"], problem.options["mask"]
    rule: tuple[Any, ...] = ("causal" if causal else "full",) + (() if mask is None else (mask,))
    out, cache = dense_attention_forward(q, k, v, mask=rule, scale=problem.options["scale"])
    found = {"out": out, "lse": cache.log_sum_exp} if problem.lse else {"out": out}
    if upstream is None:
        return found
    gradients = dense_attention_backward(upstream.astype(work), cache)
    return found | {"dq": gradients.q, "dk": gradients.k, "dv": gradients.v}


def _of_sample(
    problem: Problem,
    upstream: FloatArray | None,
    to: Precision,
    fault: str | None,
    of_rows: Callable[[Problem, FloatArray | None], Arrays],
) -> Arrays:
    """Rows of out and dq as those of a problem with these queries alone; rows of dk and dv by their columns."""
    assert problem.sample is not None
    part = problem.at_rows(problem.sample.queries)
    if upstream is None:
        return of_rows(part, None)
    found = of_rows(part, upstream[..., problem.sample.queries, :])
    by_key = sampled.key_gradients(problem, upstream, to, allowed_keys, scale_used(problem, fault), fault)
    return {x: found[x] for x in ("out", "lse", "dq") if x in found} | by_key


def spread(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """What rounding does to every result, from its own terms; of the sampled rows where there is a sample."""
    if problem.sample is not None:
        return _spread_of_sample(problem, upstream, to)
    found, pairs = attention_spread(_attention(problem, upstream), to)
    if upstream is not None and "bias" in problem.options:
        found["dbias"] = bias_spread(pairs, problem.options["bias"].shape)
    return found


def _attention(problem: Problem, upstream: FloatArray | None) -> Attention:
    problem = options.side_by_side(problem, None)
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    n_kv, scale = k.shape[1], float(problem.options["scale"])
    shared = heads.shared_heads(q.shape[1], n_kv, None)
    k, v = k[:, shared], v[:, shared]
    logits: FloatArray = scale * (q @ k.swapaxes(-1, -2))
    dout = None if upstream is None else upstream.astype(np.float64)
    if not options.are_given(problem):
        return Attention(q, k, v, scale, logits, normalised(logits, allowed_keys(problem, None)), dout, n_kv)
    raw, added, cap = logits, options.added(problem, lag(problem, None), None), problem.options.get("softcap")
    logits = options.capped(problem, raw / scale, raw, None)
    bend = 0.0 if cap is None else 2 * logits / cap**2
    logits = logits if added is None else logits + added
    weights, sink = options.with_sinks(
        normalised, logits, allowed_keys(problem, None), options.sink_logits(problem, None)
    )
    return Attention(
        q, k, v, scale, logits, weights, dout, n_kv,
        gate_k=options.slope_of_cap(problem, raw, None), gate_v=options.kept(problem, None),
        raw=None if cap is None and added is None else raw, added=np.zeros(()) if added is None else added,
        bend=bend, dlse=options.upstream_of_lse(problem, None), sink=sink,
    )  # fmt: skip


def _spread_of_sample(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """Rows by query as those of a problem with these queries alone; rows by key from the columns of these keys.

    Of the other rows the variances of L and δ are taken to be the largest of those sampled.
    """
    assert problem.sample is not None
    at = problem.sample.queries
    part = problem.at_rows(at)
    dout = None if upstream is None else upstream[..., at, :]
    found, pairs = attention_spread(_attention(part, dout), to)
    if upstream is None:
        return found
    held = sampled.row_sums(problem, upstream, allowed_keys)
    largest = [np.max(x, axis=-2, keepdims=True) for x in (pairs.rows.var_l, pairs.rows.var_delta)]
    keys = problem.sample.keys
    arrays = {x: a.astype(np.float64) for x, a in problem.arrays.items()}
    n_kv, scale = arrays["k"].shape[1], float(problem.options["scale"])
    shared = heads.shared_heads(arrays["q"].shape[1], n_kv, None)
    k, v = (arrays[x][:, shared][..., keys, :] for x in ("k", "v"))
    parts = []
    for rows in sampled.blocks(problem):
        q, dout = arrays["q"][..., rows, :], upstream[..., rows, :].astype(np.float64)
        logits = scale * (q @ k.swapaxes(-1, -2))
        seen = allowed_keys(problem.at_rows(rows), None)[..., keys]
        weights = np.where(seen, np.exp(np.where(seen, logits - held["lse"][..., rows, :], 0)), 0)
        own = Rows(held["mean_key"][..., rows, :], held["delta"][..., rows, :], *largest)
        pairs = Pairs(Attention(q, k, v, scale, logits, weights, dout, n_kv), own, to)
        pairs.backward(dout)
        parts.append(pairs.by_key(dout))
    return found | key_spread(pairs, parts, arrays["q"].shape[-2])


def allowed_keys(problem: Problem, fault: str | None) -> NDArray[np.bool_]:
    """Return which keys every query may see: (n_q, n_k), or with the leading axes of the mask."""
    behind, n_k = lag(problem, fault), problem.arrays["k"].shape[-2]
    latest = {"mask off by one (sees one later key)": -1, "mask off by one (misses its own key)": 1}.get(fault or "", 0)
    if fault == "future leak" or not (problem.options["causal"] or fault == "causal where full was asked"):
        latest = -n_k
    allowed = np.asarray(behind >= latest)
    mask = problem.options["mask"]
    if mask is not None and fault == "mask of the first batch for all" and mask.ndim == 4:
        mask = np.broadcast_to(mask[:1], mask.shape)
    if mask is not None and fault != "mask argument ignored":
        allowed = allowed & (~mask if fault == "mask inverted" else mask)
    allowed = options.hide(problem, allowed, behind, fault)
    if fault == "last key dropped":
        allowed[..., -1] = False
    return allowed


def lag(problem: Problem, fault: str | None) -> NDArray[np.int64]:
    """Return how far every key is behind every query, (n_q, n_k)."""
    n_q, n_k = problem.arrays["q"].shape[-2], problem.arrays["k"].shape[-2]
    place = np.arange(n_q) if problem.rows is None else problem.rows
    return (place + options.offset(problem, fault))[:, None] - np.arange(n_k)


def scale_used(problem: Problem, fault: str | None) -> float:
    """Return the factor of the logits."""
    scale = float(problem.options["scale"])
    return {
        "missing scale": 1.0,
        "scale applied twice": scale * scale,
        "scale argument ignored": 1 / math.sqrt(problem.arrays["q"].shape[-1]),
        "scale by the width of the values": 1 / math.sqrt(problem.arrays["v"].shape[-1]),
    }.get(fault or "", scale)


def plain(problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None) -> Arrays:
    """Attention as a beginner writes it, in the arithmetic of kernels; and, on request, with one mistake."""
    if problem.sample is not None:
        return _of_sample(problem, upstream, to, fault, lambda part, dout: plain(part, dout, to, fault))
    problem = options.side_by_side(problem, fault)
    q, k, v = to.round(problem.arrays["q"]), to.keys(problem.arrays["k"]), to.round(problem.arrays["v"])
    n_kv = k.shape[1]
    shared = heads.shared_heads(q.shape[1], n_kv, fault)
    keys, values = k[:, shared], v[:, shared]
    scale = np.asarray(scale_used(problem, fault), to.work)
    allowed = allowed_keys(problem, fault)

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = to.carry(q @ keys.swapaxes(-1, -2))
        if fault == OVERFLOW:
            products = np.where(
                np.abs(products) > PRECISIONS["float16"].largest, np.copysign(np.inf, products), products
            )
        scaled = to.carry(products * scale)
        logits = to.carry(options.capped(problem, products, scaled, fault))
        if (added := options.added(problem, lag(problem, fault), fault)) is not None:
            logits = to.carry(logits + added.astype(to.work))
        sinks, sink = options.sink_logits(problem, fault), None
        if fault in tiles.FORWARD:
            weights = to.carry(tiles.weights(logits, allowed, fault))
        else:
            weights, sink = options.with_sinks(
                lambda rows, seen: softmax.softmax(rows, seen, to, fault), logits, allowed, sinks
            )
        if fault == "last row lost":
            weights[..., -1, :] = 0
        dropped = to.work.type(1) * options.kept(problem, fault)
        out = to.result(to.round(weights * dropped.astype(to.work)) @ values)
        found = {"out": out}
        if problem.lse:
            found["lse"] = options.log_sum_exp(logits, allowed, sinks, to, fault)
        if upstream is None:
            return found
        if fault == "mask missing in the backward":
            weights = softmax.softmax(logits, np.ones_like(allowed), to, None)
        # forward: out = (weights ∘ dropped) @ values
        dropped = (to.work.type(1) * options.kept(problem, fault, backward=True)).astype(to.work)
        dvalues = to.carry(to.round(tiles.lost(weights * dropped, fault, "dk")).swapaxes(-1, -2) @ upstream)
        dweights = to.carry((upstream @ values.swapaxes(-1, -2)) * dropped)
        # forward: weights = softmax(logits), lse = log Σ exp(logits)
        dlse = (to.work.type(1) * options.upstream_of_lse(problem, fault)).astype(to.work)
        dlogits = softmax.softmax_backward(weights, dweights, to, fault) + weights * dlse
        delta = (weights * dweights).sum(axis=-1, keepdims=True) - dlse
        found |= options.gradients(problem, dlogits, sink, delta, to, fault)
        # forward: logits = cap(scaled) + added
        dlogits = to.round(dlogits * to.carry(options.slope_of_cap(problem, scaled, fault)))
        # forward: scaled = scale · q kᵀ
        dq = to.result(to.carry(tiles.lost(dlogits, fault, "dq") @ keys) * scale)
        square = dlogits.shape[-1] == dlogits.shape[-2]
        kept = tiles.lost(dlogits, fault, "dk")
        turned = dlogits if fault == "transposed gradient" and square else kept.swapaxes(-1, -2)
        dkeys = to.carry(to.carry(turned @ q) * scale)
        # forward: keys, values = k, v of the shared heads
        dk, dv = (to.result(heads.add_shared(x, shared, n_kv, to, fault)) for x in (dkeys, dvalues))
    if fault == "gradients of q and k exchanged" and dq.shape == dk.shape:
        dq, dk = dk, dq
    return found | {"dq": dq, "dk": dk, "dv": dv}


DENSE = Operation(
    name="dense",
    signature="fn(q, k, v, *, causal, scale, mask) -> out",
    backward_signature="backward(dout, q, k, v, *, causal, scale, mask) -> (dq, dk, dv)",
    axes={"q": "BHND", "k": "BHND", "v": "BHND", "out": "BHND"},
    differentiable=("q", "k", "v"),
    defaults=defaults,
    cases=(*CASES, *LONG, *CROSSED, *OPTIONS, *DENSE_PROPERTIES),
    truth=truth,
    plain=plain,
    spread=spread,
    faults=FAULTS,
    perturbed=("q", "k", "v"),
    mistakes=(
        "last tile of 32 keys skipped",
        "last tile of 32 keys not masked",
        "mask off by one (sees one later key)",
    ),
    whole=whole,
    empty_rows=lambda problem: np.asarray(~allowed_keys(problem, None).any(axis=-1)),
    can_make=options.can_make,
    more_options=options.NAMES,
    with_gradient=options.WITH_GRADIENT,
    of_backward=options.OF_BACKWARD,
)
