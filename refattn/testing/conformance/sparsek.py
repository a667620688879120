"""SparseK attention with a sliding window as an operation to check (arXiv 2406.16747); the truth is the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.sparsek.attention import sparsek_attention_backward, sparsek_attention_forward
from refattn.testing.conformance import heads, softmax
from refattn.testing.conformance.operation import Arrays, Operation, Problem, Shape
from refattn.testing.conformance.operator import prefixes, threshold
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.property_cases import properties
from refattn.testing.conformance.rounding import Attention, Spread, attention_spread, normalised
from refattn.testing.conformance.sparsek_cases import CASES, Selective

FAULTS = {
    "threshold stale": "the gates of a query use the threshold of the query before",
    "threshold of the whole sequence": "every query's gates use the last threshold: a future leak",
    "gate dropped": "selected pairs have gate one",
    "gate dropped from the keys": "the gate does not multiply the keys",
    "gate dropped from the values": "the gate does not multiply the values",
    "window too long by one": "the window holds window + 1 positions",
    "window too short by one": "the window holds window − 1 positions",
    "window among the candidates": "scores inside the window compete for the budget",
    "budget off by one (n_select + 1)": "one pair more is selected, and the budget is one more",
    "budget off by one (n_select − 1)": "one pair fewer is selected, and the budget is one less",
    "ties to the later": "of two equal scores the later is selected",
    "every pair in the support": "the selection is all pairs with a gate above zero, more than n_select",
    "selection ignored": "all candidates are attended to, with their gates",
    "future leak": "every later pair is attended to, with gate one",
    "missing scale": "the logits are not multiplied by the scale",
    "gradient of the scores dropped": "the scores get no gradient",
    "mean dropped from the gradient of the scores": "the mean over the interior is not subtracted",
    "gate of the values without gradient": "the gradient of the scores misses the way through the values",
    "gate of the keys without gradient": "the gradient of the scores misses the way through the keys",
    "gate missing in the gradient of the keys": "dk is not multiplied by the gate",
    "gate missing in the gradient of the values": "dv is not multiplied by the gate",
    "straight-through ignored": "with hard=True the gates are soft in the forward",
    **heads.FAULTS,
    **softmax.FAULTS,
}


def truth(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """The oracle in float64."""
    q, k, v, scores = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v", "scores"))
    out, cache = sparsek_attention_forward(q, k, v, scores, **problem.options, method="oracle")
    if upstream is None:
        return {"out": out}
    found = sparsek_attention_backward(upstream.astype(np.float64), cache)
    return {"out": out, **{f"d{x}": gradient for x, gradient in found._asdict().items()}}


def spread(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """That of attention to the pairs attended to, with gates that are off by the rounding of scores.

    A score's gradient is that of a gate less the mean over the interior, added up over the queries that use it. The
    algorithm of the paper does so by cumulative sums, whose errors are those of all they passed.
    """
    options = problem.options
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    n_kv, scale = k.shape[1], float(options["scale"])
    shared = heads.shared_heads(q.shape[1], n_kv, None)
    z = problem.arrays["scores"].astype(np.float64)[:, shared]
    soft, chosen, near = gates_of(z, options, None)
    gate = np.where(chosen & (not options["hard"]), soft, 1.0)
    size = np.abs(z).max(axis=-1, keepdims=True)[..., None]  # a threshold is a mean of scores
    var_gate = np.where(chosen, (to.unit * gate) ** 2 + 4 * (to.inner * size) ** 2, 0) / 3 * (not options["hard"])
    on_keys, on_values = ("k" in options["gate"], "v" in options["gate"])
    gate_k, var_k = (gate, var_gate) if on_keys else (1.0, 0.0)
    gate_v, var_v = (gate, var_gate) if on_values else (1.0, 0.0)
    k, v = k[:, shared], v[:, shared]
    logits = scale * (q @ k.swapaxes(-1, -2)) * gate_k
    dout = None if upstream is None else upstream.astype(np.float64)
    weights = normalised(logits, chosen | near)
    found, pairs = attention_spread(
        Attention(q, k, v, scale, logits, weights, dout, n_kv, gate_k, gate_v, var_k, var_v), to
    )
    if dout is None:
        return found
    inside = (soft > 0) & (soft < 1)
    count = np.maximum(inside.sum(axis=-1, keepdims=True), 1)
    gates = pairs.gates()
    variance = np.where(chosen, gates.deviation**2, 0)
    mean = np.where(inside, variance, 0).sum(axis=-1, keepdims=True) / count**2
    right = truth(problem, upstream)["dscores"]
    added = np.where(inside, variance + mean, 0).sum(axis=-2)
    sizes = np.where(chosen, gates.last**2, 0).sum(axis=(-2, -1))[..., None]
    added += to.inner**2 / 3 * z.shape[-1] * sizes  # sums over queries are differences of sums over all up to one
    added = added.reshape(right.shape[0], n_kv, -1, right.shape[-1]).sum(axis=2)
    return {**found, "dscores": Spread(np.sqrt(added), PRECISIONS[to.results].unit * np.abs(right))}


def gates_of(
    z: FloatArray, options: dict[str, Any], fault: str | None
) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the gates of all pairs, which pairs are chosen, and which are in the window, each (…, n, n)."""
    n = z.shape[-1]
    moved = {"window too long by one": 1, "window too short by one": -1}.get(fault or "", 0)
    window = max(options["window"] + moved, 0)
    added = {"budget off by one (n_select + 1)": 1, "budget off by one (n_select − 1)": -1}.get(fault or "", 0)
    budget = max(options["n_select"] + added, 0)
    lag = np.arange(n)[:, None] - np.arange(n)
    candidate, near = lag >= window, (lag >= 0) & (lag < window)
    tau = threshold(prefixes(z), budget)  # of z[: i + 1]
    if fault == "threshold of the whole sequence":
        tau = np.broadcast_to(tau[..., -1:], tau.shape)
    late = 0 if fault == "window among the candidates" else window
    late += 1 if fault == "threshold stale" else 0
    used = np.concatenate([np.full((*tau.shape[:-1], late), -np.inf, tau.dtype), tau], axis=-1)[..., :n, None]
    gates = np.where(candidate, np.clip(z[..., None, :] - used, 0, 1), 0)
    better = (z[..., :, None] > z[..., None, :]) | ((z[..., :, None] == z[..., None, :]) & (lag < 0))
    if fault == "ties to the later":
        better = (z[..., :, None] > z[..., None, :]) | ((z[..., :, None] == z[..., None, :]) & (lag > 0))
    rivals = lag >= 0 if fault == "window among the candidates" else candidate
    rank = rivals.astype(np.float64) @ better.astype(np.float64)  # exact, and faster than of integers
    chosen = candidate & (rank < budget)
    if fault == "every pair in the support":
        chosen = candidate & (gates > 0)
    if fault == "selection ignored":
        chosen = np.broadcast_to(candidate, gates.shape)
    return gates, chosen, near


def plain(problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None) -> Arrays:
    """SparseK attention by masks, the gates in at least float32; and, on request, with one mistake."""
    options = problem.options
    q, k, v = to.round(problem.arrays["q"]), to.keys(problem.arrays["k"]), to.round(problem.arrays["v"])
    n_kv = k.shape[1]
    shared = heads.shared_heads(q.shape[1], n_kv, fault)
    keys, values, z = k[:, shared], v[:, shared], to.round(problem.arrays["scores"])[:, shared]
    scale = np.asarray(1.0 if fault == "missing scale" else options["scale"], to.work)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        soft, chosen, near = gates_of(z, options, fault)
        one = np.ones_like(soft)
        hard = options["hard"] and fault != "straight-through ignored"
        applied = to.round(one if hard or fault == "gate dropped" else np.where(chosen, soft, 1))
        on_keys = "k" in options["gate"] and fault != "gate dropped from the keys"
        on_values = "v" in options["gate"] and fault != "gate dropped from the values"
        gate_k, gate_v = applied if on_keys else one, applied if on_values else one
        attended = chosen | near
        if fault == "future leak":
            attended = attended | (np.arange(z.shape[-1]) > np.arange(z.shape[-1])[:, None])
        products = to.carry(q @ keys.swapaxes(-1, -2))
        logits = to.carry(to.carry(products * gate_k) * scale)
        weights = softmax.softmax(logits, attended, to, fault)
        out = to.result(to.round(weights * gate_v) @ values)
        if upstream is None:
            return {"out": out}
        # forward: out = (weights ∘ gate_v) @ values
        through = weights if fault == "gate missing in the gradient of the values" else weights * gate_v
        dvalues = to.carry(to.round(through).swapaxes(-1, -2) @ upstream)
        dgated = to.carry(upstream @ values.swapaxes(-1, -2))
        # forward: weights = softmax(logits)
        dlogits = softmax.softmax_backward(weights, to.carry(dgated * gate_v), to, fault) * scale
        # forward: logits = scale · (q kᵀ) ∘ gate_k
        dq = to.result(to.round(dlogits * gate_k) @ keys)
        through = dlogits if fault == "gate missing in the gradient of the keys" else dlogits * gate_k
        dkeys = to.carry(to.round(through).swapaxes(-1, -2) @ q)
        # forward: gate_k, gate_v = gates, or one where hard
        dgates = np.zeros_like(soft)
        if on_keys and fault != "gate of the keys without gradient":
            dgates = dgates + dlogits * products
        if on_values and fault != "gate of the values without gradient":
            dgates = dgates + weights * dgated
        dz = _scores_gradient(soft, np.where(chosen, dgates, 0), fault)
        # forward: keys, values, scores of the shared heads
        dk, dv, dscores = (
            to.result(heads.add_shared(x, shared, n_kv, to, fault)) for x in (dkeys, dvalues, to.carry(dz))
        )
    return {"out": out, "dq": dq, "dk": dk, "dv": dv, "dscores": dscores}


def _scores_gradient(soft: FloatArray, dgates: FloatArray, fault: str | None) -> FloatArray:
    """``Σ_i J_iᵀ dgates_i``, J_i the Jacobian of SparseK of the prefix i."""
    if fault in ("gradient of the scores dropped", "gate dropped"):
        return np.zeros_like(soft[..., 0, :])
    inside = (soft > 0) & (soft < 1)
    mean = np.where(inside, dgates, 0).sum(axis=-1, keepdims=True) / np.maximum(inside.sum(axis=-1, keepdims=True), 1)
    if fault == "mean dropped from the gradient of the scores":
        mean = np.zeros_like(mean)
    return np.asarray(np.where(inside, dgates - mean, 0).sum(axis=-2))


def defaults(problem: Problem) -> dict[str, Any]:
    """Options of a function that takes none."""
    return {"window": 0, "gate": "kv", "hard": False, "scale": 1 / math.sqrt(problem.arrays["q"].shape[-1])}


SPARSEK = Operation(
    name="sparsek",
    signature="fn(q, k, v, scores, *, n_select, window, gate, hard, scale) -> out",
    backward_signature="backward(dout, q, k, v, scores, *, …) -> (dq, dk, dv, dscores)",
    axes={"q": "BHND", "k": "BHND", "v": "BHND", "scores": "BHN", "out": "BHND"},
    differentiable=("q", "k", "v", "scores"),
    defaults=defaults,
    cases=(*CASES, *properties(Selective(), Shape(60, d=8, heads=4, kv_heads=2))),
    truth=truth,
    plain=plain,
    spread=spread,
    faults=FAULTS,
    perturbed=("q", "k", "v"),
    mistakes=("missing scale", "window too long by one"),
)
