"""No row of an output or a gradient is lost, whatever is multiplied: rows of zeros, tiny and huge ones, twenty decades.

Every row is compared with the dense definition, `refattn.convbasis.oracle`, relative to its own natural size: what it
would be if no sum cancelled. A norm over the whole array would hide the rows that are small. 250 cases of each
precision, 20,000 in a campaign.
"""

import warnings
from typing import NamedTuple

import lengths
import numpy as np
import pytest

from refattn import conv_attention_backward, conv_attention_forward
from refattn.convbasis import Plan, oracle
from refattn.convbasis.bounds import ROW_TOLERANCE

LENGTHS = (1, 2, 3, 17, 31, 32, 33, 63, 64, 65, 100, 129, 200, 257)
BLOCKS = (1, 2, 5, 8, 16, 32, 64, 100, 128, 512)
WIDTHS = (1, 2, 3, 4, 5, 8, 17)


def numbers(rng, kind, n, d):
    """Rows of one kind, shape (n, d)."""
    x = rng.standard_normal((n, d))
    if kind == "zeros":
        x[:] = 0
    elif kind == "equal":
        x[:] = x[0]
    elif kind == "one-hot":
        x[:] = np.eye(d)[rng.integers(d, size=n)]
    elif kind == "tiny":
        x *= 1e-9
    elif kind == "huge":
        x *= 1e9
    elif kind == "rows over decades":
        x *= 10.0 ** rng.uniform(-10, 10, (n, 1))
    elif kind == "columns over decades":
        x *= 10.0 ** rng.uniform(-6, 6, (1, d))
    elif kind == "padded in front":
        x[: rng.integers(1, n + 1)] = 0
    elif kind == "padded behind":
        x[rng.integers(0, n) :] = 0
    elif kind == "late rows small":
        x[rng.integers(0, n) :] *= 1e-8
    elif kind == "blocks over decades":
        length = int(rng.integers(1, n + 1))
        sizes = 10.0 ** rng.integers(-10, 11, n) * (rng.random(n) < 0.7)
        x *= np.repeat(sizes, length)[:n, None]
    return x


KINDS = (
    "ordinary",
    "zeros",
    "equal",
    "one-hot",
    "tiny",
    "huge",
    "rows over decades",
    "columns over decades",
    "padded in front",
    "padded behind",
    "late rows small",
    "blocks over decades",
)
LOGITS = ("ordinary", "ordinary", "ordinary", "equal", "one-hot", "padded in front", "padded behind", "repeated")


class Case(NamedTuple):
    """Inputs, upstream gradient and options of one case."""

    arrays: dict[str, np.ndarray]
    upstream: np.ndarray
    options: dict
    gradient: str


def draw(seed, dtype, method=None, n=None):
    """Inputs, upstream gradient and options of one case."""
    rng = np.random.default_rng(seed)
    n, d, d_v = (int(rng.choice(sizes)) for sizes in ((n,) if n else LENGTHS, WIDTHS, WIDTHS))
    deviation = float(rng.choice([0.1, 1.0, 4.0, 8.0, 16.0]))

    def logit_side():
        kind = rng.choice(LOGITS)
        if kind == "repeated":
            return np.repeat(numbers(rng, "ordinary", n, d), max(1, n // 4), axis=0)[:n]
        return numbers(rng, kind, n, d)

    q, k = (logit_side() * np.sqrt(deviation) for _ in "qk")
    v, upstream = (numbers(rng, rng.choice(KINDS), n, d_v) for _ in "vg")
    arrays = {name: x.astype(dtype) for name, x in (("q", q), ("k", k), ("v", v))}
    method = method or str(rng.choice(["fast", "fast", "fast", "paper"]))
    block = max(int(rng.choice(BLOCKS)), n // 16 if n > 300 else 1)
    plan = Plan("block transform", block) if rng.random() < 0.85 else None
    options = {
        "n_basis": n if rng.random() < 0.1 and n < 300 else int(rng.integers(1, min(n, 9) + 1)),
        "probe": 1,
        "delta": float(rng.choice([0.0, 0.5 * deviation])),
        "mask": str(rng.choice(["causal", "full"])),
        "method": method,
        "plan": plan if method == "fast" else None,
    }
    return Case(
        arrays, upstream.astype(dtype), options, str(rng.choice(["approximation", "approximation", "attention"]))
    )


def excesses(case):
    """Worst error of a row of the output and of every gradient, over what it may be."""
    dtype, tol = case.upstream.dtype, ROW_TOLERANCE[case.upstream.dtype.name]
    tiny, n = float(np.finfo(dtype).tiny), len(case.upstream)
    q, k, v, upstream = (np.asarray(x, np.float64) for x in (*case.arrays.values(), case.upstream))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, cache = conv_attention_forward(**case.arrays, **case.options)
        found = conv_attention_backward(case.upstream, cache, gradient=case.gradient)
    dense = oracle.approximation_gradient if case.gradient == "approximation" else oracle.attention_gradient
    right, size = dense(upstream, q, k, v, cache.basis, cache.upper, cache.scale)
    P = oracle.dense_weights(cache.basis, cache.upper)
    met = cache.scale * (np.abs(upstream) @ np.abs(v).T + np.abs(upstream * (P @ v)).sum(axis=1, keepdims=True)).max()
    bounds = {
        "out": (out, P @ v, oracle.natural_size(P, v), np.abs(v).max()),
        "dv": (found.v, right.v, oracle.natural_size(P.T, upstream), np.abs(upstream).max()),
        "dq": (found.q, right.q, size.q.max(axis=1, keepdims=True), met * np.abs(k).max()),
        "dk": (found.k, right.k, size.k.max(axis=1, keepdims=True), met * np.abs(q).max()),
    }
    return {  # weights below the smallest number are nothing, and a result below it has no digits
        name: float(np.nanmax(np.abs(came - wanted) / (tol * natural + tiny * (1 + n * largest)), initial=0.0))
        if np.isfinite(came).all()
        else np.inf
        for name, (came, wanted, natural, largest) in bounds.items()
    }


@pytest.mark.slow
@lengths.cases(100, 250, campaign=20_000)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_every_row_is_within_the_tolerance_of_its_natural_size(dtype, cases):
    for seed in cases:
        worst = excesses(draw(seed, dtype))
        assert max(worst.values()) <= 1, (seed, worst)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1023, 1024, *lengths.long(2100)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_the_same_holds_of_a_thousand_rows_and_more(dtype, n):
    for seed in range(4):
        worst = excesses(draw(seed, dtype, method="fast", n=n))
        assert max(worst.values()) <= 1, (seed, worst)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_a_value_that_is_nan_reaches_the_rows_that_see_it_and_no_other(mask):
    q, k, v = np.random.default_rng(0).standard_normal((3, 100, 4))
    right = conv_attention_forward(q, k, v, n_basis=5, probe=1, delta=0, mask=mask)[0]
    v[60:, 1] = np.nan
    options = {"n_basis": 5, "probe": 1, "delta": 0, "mask": mask, "plan": Plan("block transform", 32)}
    out = conv_attention_forward(q, k, v, check_finite=False, **options)[0]
    assert np.isnan(out[60:, 1]).all()
    if mask == "causal":
        np.testing.assert_allclose(out[:60], right[:60], rtol=1e-11)
