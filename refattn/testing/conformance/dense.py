"""Exact softmax attention as an operation to check; the truth is its oracle, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import dense_attention_backward, dense_attention_forward
from refattn.testing.conformance import heads, softmax
from refattn.testing.conformance.dense_cases import CASES
from refattn.testing.conformance.operation import Arrays, Operation, Problem
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.rounding import Attention, Spread, attention_spread, normalised

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
    "mask inverted": "the mask hides what it should show; True means: may be seen",
    "causal where full was asked": "later keys are hidden though causal is False",
    "last key dropped": "no query sees the last key",
    "last row lost": "the last row of the output, and its share of the gradients, are zero",
    "transposed gradient": "dk = dS q where dSᵀ q was wanted",
    "gradients of q and k exchanged": "dq and dk are returned in the other order",
    "mask missing in the backward": "the backward computes the weights again without the mask",
    **heads.FAULTS,
    **softmax.FAULTS,
}


def defaults(problem: Problem) -> dict[str, Any]:
    """Options of a function that takes none: causal, 1/√d, no mask."""
    return {"causal": True, "scale": 1 / math.sqrt(problem.arrays["q"].shape[-1]), "mask": None}


def truth(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """Exact attention and its gradients in float64."""
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    causal, mask = problem.options["causal"], problem.options["mask"]
    rule: tuple[Any, ...] = (
        ("causal" if causal else "full",) if mask is None else ("causal" if causal else "full", mask)
    )
    out, cache = dense_attention_forward(q, k, v, mask=rule, scale=problem.options["scale"], method="oracle")
    if upstream is None:
        return {"out": out}
    gradients = dense_attention_backward(upstream.astype(np.float64), cache)
    return {"out": out, "dq": gradients.q, "dk": gradients.k, "dv": gradients.v}


def spread(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """What rounding does to every result, from its own terms."""
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    n_kv = k.shape[1]
    shared = heads.shared_heads(q.shape[1], n_kv, None)
    k, v = k[:, shared], v[:, shared]
    scale = float(problem.options["scale"])
    logits = scale * (q @ k.swapaxes(-1, -2))
    weights = normalised(logits, allowed_keys(problem, None))
    dout = None if upstream is None else upstream.astype(np.float64)
    return attention_spread(Attention(q, k, v, scale, logits, weights, dout, n_kv), to)


def allowed_keys(problem: Problem, fault: str | None) -> NDArray[np.bool_]:
    """Return which keys every query may see, shape (n_q, n_k)."""
    n_q, n_k = problem.arrays["q"].shape[-2], problem.arrays["k"].shape[-2]
    lag = np.arange(n_q)[:, None] - np.arange(n_k)
    latest = {"mask off by one (sees one later key)": -1, "mask off by one (misses its own key)": 1}.get(fault or "", 0)
    if fault == "future leak" or not (problem.options["causal"] or fault == "causal where full was asked"):
        latest = -n_k
    allowed = np.asarray(lag >= latest)
    mask = problem.options["mask"]
    if mask is not None and fault != "mask argument ignored":
        allowed &= ~mask if fault == "mask inverted" else mask
    if fault == "last key dropped":
        allowed[:, -1] = False
    return allowed


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
        logits = to.carry(products * scale)
        weights = softmax.softmax(logits, allowed, to, fault)
        if fault == "last row lost":
            weights[..., -1, :] = 0
        out = to.result(to.round(weights) @ values)
        if upstream is None:
            return {"out": out}
        if fault == "mask missing in the backward":
            weights = softmax.softmax(logits, np.ones_like(allowed), to, None)
        # forward: out = weights @ values
        dvalues = to.carry(to.round(weights).swapaxes(-1, -2) @ upstream)
        dweights = to.carry(upstream @ values.swapaxes(-1, -2))
        # forward: weights = softmax(logits)
        dlogits = to.round(softmax.softmax_backward(weights, dweights, to, fault))
        # forward: logits = scale · q kᵀ
        dq = to.result(to.carry(dlogits @ keys) * scale)
        square = dlogits.shape[-1] == dlogits.shape[-2]
        turned = dlogits if fault == "transposed gradient" and square else dlogits.swapaxes(-1, -2)
        dkeys = to.carry(to.carry(turned @ q) * scale)
        # forward: keys, values = k, v of the shared heads
        dk, dv = (to.result(heads.add_shared(x, shared, n_kv, to, fault)) for x in (dkeys, dvalues))
    if fault == "gradients of q and k exchanged" and dq.shape == dk.shape:
        dq, dk = dk, dq
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


DENSE = Operation(
    name="dense",
    signature="fn(q, k, v, *, causal, scale, mask) -> out",
    backward_signature="backward(dout, q, k, v, *, causal, scale, mask) -> (dq, dk, dv)",
    axes={"q": "BHND", "k": "BHND", "v": "BHND", "out": "BHND"},
    differentiable=("q", "k", "v"),
    defaults=defaults,
    cases=CASES,
    truth=truth,
    plain=plain,
    spread=spread,
    faults=FAULTS,
    perturbed=("q", "k", "v"),
)
