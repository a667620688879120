"""Inputs that hide nothing, and attention by its definition with a bound for every row: for tests of zeros and decades.

The reference is dense and computed in a wider format: float64 for float32, extended precision for float64. With u the
unit of rounding, p_ij the weights, g^K and g^V the gates (one where there are none), G the upstream gradient,

    C       = 16 + 2 (d + d_v) + √n            roundings: one for every term of a dot product, √n for a sum over rows
    S̄_ij    = |scale| Σ_x |q_ix| |k_jx|        size of a logit; its error is C u g^K S̄ (what rounding a logit does)
    δp_ij   = p_ij (C u + e_ij + e_i,max + Σ_l p_il e_il),  e the errors of the logits of row i; 1 where those reach 0.1
    D_ij    = g^V Σ_x |G_ix| |v_jx|            size of dp_ij, and R_i = Σ_j p_ij D_ij size of the row's correction
    ρ_i     = min(Σ_l (δp_il + C u p_il) D_il, 2 max_l D_il)                 error of r_i, an average of dp_il
    T_ij    = C u p (D + R) + δp (D + R) + (p + δp) (C u D + ρ)              error of dS_ij = p_ij (dp_ij − r_i)

a row of a result may be off by no more than

    out_i   Σ_j (C u p + δp) g^V ‖v_j‖_∞       dv_j   Σ_i (C u p + δp) g^V ‖G_i‖_∞
    dq_i    |scale| Σ_j T g^K ‖k_j‖_∞          dk_j   |scale| Σ_i T g^K ‖q_i‖_∞

so by C u times what the row would be with all signs equal, and by what the logits' own rounding does to the weights:
where a logit is off by one (in float32 from 10⁷ on), other weights than the true ones are right, and so is the gradient
of those. T therefore has the product of both factors' errors: the weight of one key may be wrong *and* r come from
another. A soft gate, a difference of float64 scores, is off by 8 · 2⁻⁵³ max |score| besides. Every factor, and a sum
before its scale, counts as at least the smallest normal number, below which products lose digits. A refusal is right
only where a logit or the size of a gradient is beyond an eighth of the largest number.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

DTYPES = {"float32": np.float32, "float64": np.float64}
LENGTHS = (1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 130, 200, 257)
"""On both sides of every block: 16, 32, 64 and 128 queries."""
WIDTHS = (1, 1, 2, 3, 5, 8, 13)
LEADS = (((4,), (2,)), ((2,), (1,)), ((2,), (2,)))
"""Leading axes of queries, and of keys and values."""


def generator(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def limits(dtype):
    """Sizes called tiny and huge in a dtype."""
    return (1e-36, 1e36) if dtype == np.float32 else (1e-300, 1e300)


def wild(rng, n, d, dtype, *, largest=False):
    """Rows of zeros, of tiny, huge, equal and one-hot entries, over 20 decades, in blocks or one by one, padded."""
    tiny, huge = limits(dtype)
    x = np.empty((n, d))
    kinds = {
        "plain": lambda m: rng.standard_normal((m, d)),
        "zero": lambda m: np.zeros((m, d)),
        "tiny": lambda m: tiny * rng.standard_normal((m, d)),
        "huge": lambda m: huge * rng.uniform(-1, 1, (m, d)),
        "largest": lambda m: float(np.finfo(dtype).max) * rng.choice([-1, 1, 1, 1], (m, d)),
        "equal": lambda m: np.tile(rng.standard_normal(d), (m, 1)),
        "one-hot": lambda m: np.eye(d)[rng.integers(d, size=m)] * 10.0 ** rng.integers(-3, 4),
        "decades": lambda m: rng.standard_normal((m, d)) * 10.0 ** rng.uniform(-10, 10, (m, 1)),
        "decades in a row": lambda m: rng.standard_normal((m, d)) * 10.0 ** rng.uniform(-10, 10, (m, d)),
    }
    names = [name for name in kinds if largest or name != "largest"]
    shape = rng.choice(["one kind", "blocks", "mixed"])
    if shape == "one kind":
        x = kinds[rng.choice([name for name in names if name != "zero"])](n)
    elif shape == "blocks":
        start = 0
        while start < n:
            length = int(rng.integers(1, 140))
            x[start : start + length] = kinds[rng.choice(names)](n)[: len(x[start : start + length])]
            start += length
    else:
        chosen = rng.choice(names, 2 + rng.integers(2), replace=False)
        which = rng.integers(len(chosen), size=n)
        for number, name in enumerate(chosen):
            x[which == number] = kinds[name](n)[which == number]
    pad = rng.choice([0, 0, 1, n // 3])
    if pad:
        x[: pad if rng.random() < 0.5 else 0] = 0
        x[n - pad if rng.random() < 0.7 else n :] = rng.choice([0.0, 0.0, huge])
    return x.astype(dtype)


def qkv_and_upstream(rng, n_q, n_k, d, d_v, dtype, lead=(), kv_lead=()):
    """Queries and keys with ordinary logits mostly, wild values and upstream gradients."""

    def stack(lead, one):
        return np.array([one() for _ in range(int(np.prod(lead)))]).reshape(*lead, *one().shape)

    def mild(n):
        return lambda: (rng.standard_normal((n, d)) * rng.choice([0.1, 1.0, 3.0])).astype(dtype)

    q_wild, k_wild = rng.random() < 0.25, rng.random() < 0.25
    q = stack(lead, (lambda: wild(rng, n_q, d, dtype)) if q_wild else mild(n_q))
    k = stack(kv_lead, (lambda: wild(rng, n_k, d, dtype)) if k_wild else mild(n_k))
    v = stack(kv_lead, lambda: wild(rng, n_k, d_v, dtype, largest=True))
    g = stack(lead, lambda: wild(rng, n_q, d_v, dtype))
    return q, k, v, g


@dataclass
class Definition:
    """One head of attention by its definition, and the error that is allowed in every row.

    `attended` and the gates are (n_q, n_k), `gate_error` what a gate is off by, `right` and `bound` map the name of a
    result to its rows and to one number for every row. `dgate` is the gradient of the gates.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    attended: np.ndarray
    scale: float
    gate_k: np.ndarray | float = 1.0
    gate_v: np.ndarray | float = 1.0
    error_k: np.ndarray | float = 0.0
    error_v: np.ndarray | float = 0.0
    softcap: float | None = None
    bias: np.ndarray | float = 0.0
    right: dict = field(default_factory=dict)
    bound: dict = field(default_factory=dict)
    refusable: bool = False

    def __post_init__(self):
        dtype = self.q.dtype
        wide = np.float64 if dtype == np.float32 else np.longdouble
        unit, tiny = (wide(getattr(np.finfo(dtype), name)) for name in ("eps", "tiny"))
        most = wide(np.finfo(dtype).max) / 8
        q, k, v, g = (a.astype(wide) for a in (self.q, self.k, self.v, self.g))
        scale, gk, gv = wide(self.scale), self.gate_k, self.gate_v
        self.unit, self.tiny, self.most = unit, tiny, most
        roundings = 16 + 2 * (q.shape[1] + v.shape[1]) + np.sqrt(max(len(q), len(k)))
        self.cu = cu = roundings * unit

        def size(a):
            return np.abs(a) + tiny

        def largest(a):
            return size(a).max(axis=1)

        with np.errstate(all="ignore"):
            ungated = scale * (q @ k.T)
            of_logit = (abs(scale) * size(q) + tiny) @ size(k).T + tiny * max(1, abs(scale))
            logits = ungated * gk
            error = cu * of_logit * gk + self.error_k * of_logit
            slope, slope_error = 1.0, 0.0
            if self.softcap is not None:
                slope = np.cosh(np.minimum(np.abs(logits / self.softcap), 5000)) ** -2
                slope_error = slope * np.minimum(cu + 2 * error / self.softcap, 1) + cu * tiny
                slope_error = np.where(error / self.softcap > 0.1, 1, slope_error)
                logits = self.softcap * np.tanh(logits / self.softcap)
                error = np.minimum(error, 2 * self.softcap) + cu * np.abs(logits)
            self.refusable = bool((np.abs(ungated * gk)[self.attended] > most).any())
            logits = logits + self.bias
            of_bias = np.abs(np.nan_to_num(self.bias, neginf=0))
            error = np.where(self.attended, error + cu * (np.abs(logits) + of_bias), 0)
            self.refusable |= bool((np.abs(logits)[self.attended] > most).any())
            logits = np.where(self.attended, logits, -np.inf)
            top = logits.max(axis=1, keepdims=True)
            p = np.exp(logits - np.where(np.isneginf(top), 0, top))
            total = p.sum(axis=1, keepdims=True)
            p /= np.where(total > 0, total, 1)
            at_top = np.take_along_axis(error, logits.argmax(axis=1)[:, None], axis=1)
            lost = error.max(axis=1, keepdims=True) >= 0.1
            dp = (p + tiny) * (cu + error + at_top + (p * error).sum(axis=1, keepdims=True))
            dp = np.where(self.attended, np.where(lost, 1, dp + cu * p), 0)

            values, upstream = largest(v), largest(g)
            self.weights, self.lost = p, lost[:, 0]
            weight_error = dp * gv + (p + dp) * self.error_v
            self._take("out", (p * gv) @ v, weight_error @ values)
            self._take("v", (p * gv).T @ g, weight_error.T @ upstream, (p * gv).T @ upstream)
            of_dp = size(g) @ size(v).T
            dvalue = g @ v.T
            correction = (p * gv * dvalue).sum(axis=1, keepdims=True)
            of_correction = (p * gv * of_dp).sum(axis=1, keepdims=True)
            dp_error = cu * gv * of_dp + self.error_v * of_dp
            correction_error = (dp * gv * of_dp + (p + dp) * dp_error).sum(axis=1, keepdims=True) + cu * of_correction
            of_largest = np.where(self.attended, gv * of_dp + dp_error, 0).max(axis=1, keepdims=True)
            correction_error = np.minimum(correction_error, 2 * of_largest)
            dlogits = p * (gv * dvalue - correction)
            of_dlogits = p * (gv * of_dp + of_correction)
            t = dp * (gv * of_dp + of_correction) + (p + dp) * (dp_error + correction_error) + cu * of_dlogits
            t = np.where(self.attended, t * (slope + slope_error) + of_dlogits * slope_error + unit * tiny, 0)
            dlogits, of_dlogits = dlogits * slope, of_dlogits * slope
            gated_error = t * (gk + self.error_k) + of_dlogits * (self.error_k + cu * gk) + unit * tiny
            gated_error *= abs(scale)
            gated_size = abs(scale) * of_dlogits * gk
            before = abs(scale) * cu * tiny
            gated = scale * dlogits * gk
            self._take("q", gated @ k, gated_error @ largest(k) + before, gated_size @ largest(k))
            self._take("k", gated.T @ q, gated_error.T @ largest(q) + before, gated_size.T @ largest(q))
            self.dgate_k, self.dgate_v = dlogits * ungated, p * dvalue
            self.of_dgate_k, self.of_dgate_v = of_dlogits * of_logit, p * of_dp
            self.dgate_k_error = t * of_logit + cu * self.of_dgate_k + before
            self.dgate_v_error = dp * of_dp + cu * self.of_dgate_v
        self.refusable_backward = any(bool((s > most).any()) for s in self.sizes.values())

    def _take(self, name, right, bound, size=None):
        self.right[name] = right
        self.bound[name] = bound + self.cu * self.tiny
        if size is not None:
            self.__dict__.setdefault("sizes", {})[name] = size


def require_reason(error, begins, reason):
    """Raise unless a refusal begins as it should and has a reason."""
    if not (str(error).startswith(begins) and reason):
        raise AssertionError(f"refused without reason: {error}") from error


def require_rows(name, found, right, bound):
    """Raise unless every row of `found` is within its bound; the message names the first row that is not."""
    assert np.isfinite(found).all(), f"{name}: not finite"
    off = np.abs(found.astype(right.dtype) - right)
    off = off.reshape(len(off), -1).max(axis=1)
    bad = np.flatnonzero(~(off <= bound))
    if bad.size:
        row = bad[0]
        raise AssertionError(
            f"{name}: row {row} of {len(off)} is off by {float(off[row]):.3g}, {float(bound[row]):.3g} is allowed"
            f" ({bad.size} rows are; its largest entry is {float(np.abs(right[row]).max()):.3g})"
        )


def require_gradients(found, right, kv_heads, names=("k", "v")):
    """Raise unless the gradients of all heads are within their bounds; those of `names` are summed over shared heads.

    A group of heads of which one has no bound for a name is not judged.
    """
    for head, rows in zip(right, found.q.reshape(len(right), *found.q.shape[-2:]), strict=True):
        require_rows("dq", rows, head.right["q"], head.bound["q"])
    group = len(right) // kv_heads
    for name in names:
        for number, rows in enumerate(getattr(found, name).reshape(kv_heads, -1)):
            shared = right[number * group : (number + 1) * group]
            if all(name in head.right for head in shared):
                expected = sum(head.right[name] for head in shared)
                bound = sum(head.bound[name] + 4 * head.unit * head.sizes[name] for head in shared)
                require_rows(f"d{name}", rows.reshape(expected.shape), expected, bound)


def require_right_or_refused(outcome_of, name, cases):
    """Raise unless all cases are right or refused with reason, and more are right: else nothing would be checked."""
    outcomes = Counter()
    for seed in cases:
        try:
            outcomes[outcome_of(seed)] += 1
        except Exception as error:
            error.add_note(f"case {seed}, {name}")
            raise
    assert outcomes["right"] > len(cases) / 2, outcomes


def require_caught(run, cases, message):
    """Raise unless one of the cases fails with an AssertionError that begins with the message."""
    caught = []
    for case in cases:
        try:
            run(*case)
        except AssertionError as error:
            caught.append(str(error))
            if caught[-1].startswith(message):
                return
    raise AssertionError(f"not caught by name: {caught}")
