"""Conv attention with given starts as an operation to check (arXiv 2405.05219; the truth is the oracle in float64).

The kernels are columns of the logits, ``u_i[t] = scale · q_{c_i+t} · k_{c_i}``, so the operation is a function of q, k
and v, and its gradient is the derivative with the starts held fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis.attention import conv_attention
from refattn.convbasis.basis import ConvBasis, basis_from_starts
from refattn.testing.conformance import heads, softmax
from refattn.testing.conformance.dense_cases import REAL, case, real_arrays, too_long
from refattn.testing.conformance.operation import Arrays, Operation, Problem, Shape
from refattn.testing.conformance.precision import PRECISIONS, Precision
from refattn.testing.conformance.property_cases import properties
from refattn.testing.conformance.rounding import Attention, Spread, attention_spread, normalised
from refattn.testing.inputs import attention_inputs, rope_structured

FAULTS = {
    "start off by one (late)": "every segment but the first starts one column late",
    "start off by one (early)": "every segment but the first starts one column early",
    "kernel shifted": "entry t of a kernel stands t + 1 below the diagonal, the diagonal getting entry 0 too",
    "kernel of the segment before": "the columns of a segment use the kernel of the one before it",
    "last segment dropped": "the columns of the last segment weigh nothing",
    "exponentials added": "the exponentials of the kernels b_i are added where exp of their sum was wanted",
    "circular convolution": "products wrap around: the FFT is not padded to twice the length",
    "missing scale": "the logits are not multiplied by the scale",
    "exact attention returned": "the output is exact attention, not that of the basis",
    "future leak": "rows see later columns, at kernel entry 0",
    "gradient of exact attention": "the derivative with respect to the logits is not summed over the segments",
    "gradient of the first column": "only the first column of a segment passes its gradient to the kernel",
    "query gradient dropped": "the gradient that reaches q through the kernels is zero",
    **heads.FAULTS,
    **{name: sentence for name, sentence in softmax.FAULTS.items() if "empty rows" not in name},
}


def truth(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """The oracle's output; its gradients by the plain implementation in float64."""
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    starts, scale = problem.options["starts"], problem.options["scale"]
    lead = q.shape[:2]
    shared = heads.shared_heads(q.shape[1], k.shape[1], None)
    bases = [[basis_from_starts(q[b, h], k[b, shared[h]], starts, scale=scale) for h in range(lead[1])]
             for b in range(lead[0])]  # fmt: skip
    basis = ConvBasis(
        np.stack([[basis.starts for basis in row] for row in bases]),
        np.stack([[basis.kernels for basis in row] for row in bases]),
    )
    out = conv_attention(q, k, v, basis=basis, method="oracle")
    if upstream is None:
        return {"out": out}
    return {**plain(problem, upstream.astype(np.float64), PRECISIONS["float64"]), "out": out}


def spread(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """That of attention with these logits, and what products by FFT of length 2n are excused, whose errors are shared.

    An FFT's error is a few units of the size of all it transforms, times ``1 + log₂(2n) / 2``.
    """
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    n, n_kv, scale = q.shape[-2], k.shape[1], float(problem.options["scale"])
    group = heads.shared_heads(q.shape[1], n_kv, None)
    k, v = k[:, group], v[:, group]
    columns = np.arange(n)
    start, lag = segment_columns(problem, None), columns[:, None] - columns
    row = np.minimum(start + np.maximum(lag, 0), n - 1)
    allowed = lag >= 0
    there: Any = (..., row[allowed], np.broadcast_to(start, row.shape)[allowed])

    def products(pairs: FloatArray) -> FloatArray:
        total = np.zeros_like(pairs)
        np.add.at(total, there, pairs[..., allowed])
        return total

    exact = scale * (q @ k.swapaxes(-1, -2))
    logits = exact[..., row, np.broadcast_to(start, row.shape)]
    dout = None if upstream is None else upstream.astype(np.float64)
    weights = normalised(logits, allowed)
    found, _ = attention_spread(Attention(q, k, v, scale, logits, weights, dout, n_kv, products=products), to)
    excused = 1 + math.log2(2 * n) / 2
    return {name: found[name].and_of(excused * size, to.inner) for name, size in sizes(problem, upstream).items()}


def sizes(problem: Problem, upstream: FloatArray | None) -> dict[str, float]:
    """``‖V‖_∞`` for the output; for the gradients the products whose differences they are.

    A weight computed again from logits and log-sum-exps is off by the rounding of a number as large as the logits.
    """
    q, k, v = (problem.arrays[x].astype(np.float64) for x in ("q", "k", "v"))
    largest = {"out": float(np.abs(v).max())}
    if upstream is not None:
        rows, columns = (float(np.sqrt(np.square(x).sum(axis=-1).max())) for x in (q, k))
        dout = float(np.sqrt(np.mean(np.square(upstream, dtype=np.float64))))
        dout *= 1 + abs(problem.options["scale"]) * rows * columns / 4
        dlogits = abs(problem.options["scale"]) * dout * largest["out"] * math.sqrt(v.shape[-1])
        group = math.sqrt(q.shape[1] / k.shape[1])
        largest["dq"] = dlogits * float(np.abs(k).max())
        largest["dk"] = dlogits * float(np.abs(q).max()) * group
        largest["dv"] = dout * group * math.log2(2 + q.shape[-2])  # early keys collect from many rows
    return largest


def segment_columns(problem: Problem, fault: str | None) -> NDArray[np.int64]:
    """Return for every column the start of its segment, where its logits are taken."""
    n = problem.arrays["q"].shape[-2]
    starts = np.asarray(problem.options["starts"])
    moved = starts.copy()
    if fault == "start off by one (late)":
        moved[1:] = np.minimum(starts[1:] + 1, n - 1)
    if fault == "start off by one (early)":
        moved[1:] = starts[1:] - 1
    if fault == "gradient of exact attention":
        return np.arange(n)
    place = np.searchsorted(moved, np.arange(n), side="right") - 1
    if fault == "kernel of the segment before":
        place = np.maximum(place - 1, 0)
    return np.asarray(moved[place])


def plain(problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None) -> Arrays:
    """Conv attention with its logits formed entry by entry; and, on request, with one mistake."""
    q, k, v = to.round(problem.arrays["q"]), to.keys(problem.arrays["k"]), to.round(problem.arrays["v"])
    n, n_kv = q.shape[-2], k.shape[1]
    shared = heads.shared_heads(q.shape[1], n_kv, fault)
    keys, values = k[:, shared], v[:, shared]
    scale = np.asarray(1.0 if fault == "missing scale" else problem.options["scale"], to.work)
    columns = np.arange(n)
    forward_fault = None if fault == "gradient of exact attention" else fault
    start = columns if fault == "exact attention returned" else segment_columns(problem, forward_fault)
    lag = columns[:, None] - columns
    if fault == "kernel shifted":
        lag = np.where(lag > 0, lag - 1, lag)
    row = start + np.maximum(lag, 0)  # logit (i, j) is that of query c + i − j and key c
    allowed = columns[:, None] >= columns
    if fault == "future leak":
        allowed = np.ones_like(allowed)
    if fault == "circular convolution":
        row = start + lag % (n - start)
        allowed = columns[:, None] >= start
    if fault == "last segment dropped" and len(problem.options["starts"]) > 1:
        allowed = allowed & (columns < problem.options["starts"][-1])

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = to.carry(to.carry(q @ keys.swapaxes(-1, -2)) * scale)
        logits = exact[..., np.minimum(row, n - 1), np.broadcast_to(start, row.shape)]
        if fault == "exponentials added":
            logits = _exponentials_added(exact, np.asarray(problem.options["starts"]), lag)
        weights = softmax.softmax(logits, allowed, to, fault)
        out = to.result(to.round(weights) @ values)
        if upstream is None:
            return {"out": out}
        # forward: out = weights @ values
        dvalues = to.round(weights).swapaxes(-1, -2) @ upstream
        dweights = to.carry(upstream @ values.swapaxes(-1, -2))
        # forward: weights = softmax(logits)
        dlogits = to.round(softmax.softmax_backward(weights, dweights, to, fault))
        # forward: logits = exact[row, start]
        if fault == "gradient of exact attention":
            dexact = dlogits
        else:
            given = np.where(columns == start, dlogits, 0) if fault == "gradient of the first column" else dlogits
            dexact = np.zeros_like(exact)
            there: Any = (..., np.minimum(row, n - 1)[allowed], np.broadcast_to(start, row.shape)[allowed])
            np.add.at(dexact, there, given[..., allowed])
        # forward: exact = scale · q kᵀ
        dq = to.result(to.carry(dexact @ keys) * scale)
        dkeys = to.carry(dexact.swapaxes(-1, -2) @ q) * scale
        # forward: keys, values = k, v of the shared heads
        dk, dv = (to.result(heads.add_shared(to.carry(x), shared, n_kv, to, fault)) for x in (dkeys, dvalues))
    if fault == "query gradient dropped":
        dq = np.zeros_like(dq)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def _exponentials_added(exact: FloatArray, starts: NDArray[np.int64], lag: NDArray[np.int64]) -> FloatArray:
    """Logits whose exponential is ``Σ_l conv(exp(b_l), m_l)``, the exp transform done wrong."""
    n = exact.shape[-1]
    row, before, total = np.maximum(lag, 0), np.zeros_like(exact), np.zeros_like(exact)
    for c in starts:
        kernel = exact[..., np.minimum(row + c, n - 1), np.full_like(row, c)]
        total = total + np.where(np.arange(n) >= c, np.exp(kernel - before), 0)
        before = kernel
    return np.asarray(np.log(np.maximum(total, np.finfo(exact.dtype).tiny)))


@dataclass(frozen=True)
class Structured:
    """Rotary inputs, whose logits are exactly k-conv; key-value heads are not shared."""

    starts: int = 4
    deviation: float = 2.0

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        q, k, v, found = rope_structured(
            shape.n, shape.d, starts=min(self.starts, shape.n), seed=seed, deviation=self.deviation,
            lead=(shape.batch, shape.heads), d_v=shape.d_v,
        )  # fmt: skip
        group = shape.heads // shape.kv_heads
        given = {"starts": found, "scale": 1 / math.sqrt(shape.d)}
        return Problem({"q": q, "k": k[:, ::group], "v": v[:, ::group]}, given, seed=seed)

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        return f"rotary embeddings have an even d, not {shape.d}" if shape.d % 2 else ""


@dataclass(frozen=True)
class Unstructured:
    """Unstructured inputs with random starts: the basis is then not that of exact attention."""

    segments: int = 5  # all columns where 0
    scale: float | None = None
    kind: str = "normal"
    deviation: float = 1.0

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        n = shape.n
        rng = np.random.default_rng([seed, 5])
        count = min(self.segments or n, n)
        starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, count - 1, replace=False))]).astype(np.int64)
        q, k, v = attention_inputs(
            n, shape.d, seed=seed, lead=(shape.batch, shape.heads), kv_lead=(shape.batch, shape.kv_heads),
            d_v=shape.d_v, kind=self.kind, deviation=self.deviation,
        )  # fmt: skip
        given = {"starts": starts, "scale": 1 / math.sqrt(shape.d) if self.scale is None else self.scale}
        return Problem({"q": q, "k": k, "v": v}, given, seed=seed)

    @property
    def tags(self) -> frozenset[str]:
        """Whether a scale is given."""
        return frozenset() if self.scale is None else frozenset({"scale"})


@dataclass(frozen=True)
class Real:
    """Real heads on eight evenly spaced segments."""

    layer: int
    fixed: Shape = REAL  # all of it but n

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        starts = np.unique(np.linspace(0, shape.n, 8, endpoint=False).astype(np.int64))
        return Problem(real_arrays(self.layer, shape.n, seed), {"starts": starts, "scale": 1 / 8}, seed=seed)

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        return too_long(shape)


CASES = (
    *(case(f"rotary, n = {n}", "ordinary", n, Structured()) for n in (8, 63, 64, 65, 150)),
    *(case(f"unstructured, n = {n}", "ordinary", n, Unstructured()) for n in (7, 64, 101)),
    case("rotary, d = 64", "ordinary", 80, Structured(), d=64),
    case("rotary, d_v ≠ d", "ordinary", 33, Structured(), d_v=24),
    case("one segment", "ordinary", 40, Unstructured(segments=1)),
    case("two segments", "ordinary", 40, Unstructured(segments=2)),
    case("as many segments as columns", "ordinary", 33, Unstructured(segments=0)),
    case("grouped heads, 4 on 2", "ordinary", 33, Unstructured(), heads=(2, 4, 2)),
    case("one key-value head for 4", "ordinary", 33, Unstructured(), heads=(1, 4, 1)),
    case("scale given", "ordinary", 33, Unstructured(scale=0.11)),
    case("logits of deviation 8", "adversarial", 65, Unstructured(deviation=8.0)),
    case("rotary, logits of deviation 16", "adversarial", 65, Structured(deviation=16.0)),
    case("logits of 10⁴", "adversarial", 40, Unstructured(deviation=1e4)),
    case("all logits equal to 200", "adversarial", 40, Unstructured(kind="constant", deviation=200.0), d=4),
    case("one-hot, logits 0 and 30", "adversarial", 40, Unstructured(kind="one-hot", deviation=30.0)),
    case("n = 1", "degenerate", 1, Unstructured()),
    case("n = 2, two segments", "degenerate", 2, Unstructured(segments=2)),
    case("d = 1", "degenerate", 21, Unstructured(), d=1),
    *(case(f"real heads, group {g}", "real", 128, Real(g), heads=(1, 3, 1), d=64) for g in (0, 2, 4)),
    *(case(f"rotary, n = {n}", "ordinary", n, Structured(), profile="standard") for n in (256, 257)),
    *(case(f"unstructured, n = {n}", "ordinary", n, Unstructured(), profile="standard") for n in (255,)),
)

CONV = Operation(
    name="conv",
    signature="fn(q, k, v, *, starts, scale) -> out",
    backward_signature="backward(dout, q, k, v, *, starts, scale) -> (dq, dk, dv)",
    axes={"q": "BHND", "k": "BHND", "v": "BHND", "out": "BHND"},
    differentiable=("q", "k", "v"),
    defaults=lambda problem: {"scale": 1 / math.sqrt(problem.arrays["q"].shape[-1])},
    cases=(*CASES, *properties(Unstructured(), Shape(60, heads=4, kv_heads=2), prefixes=False)),
    truth=truth,
    plain=plain,
    spread=spread,
    faults=FAULTS,
    perturbed=("q", "k", "v"),
    mistakes=("missing scale", "start off by one (late)"),
)
