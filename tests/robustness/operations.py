"""Every operation of the package on fixed inputs, for tests that disturb what is around them.

`OPERATIONS` maps a name to a function that takes nothing and returns arrays: outputs, gradients, and what else a caller
sees. ``python operations.py [TEXT …]`` prints the digest of each whose name contains one of the texts, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache, partial

import numpy as np

import refattn
from refattn import lowrank, sparsek
from refattn.convbasis import Plan
from refattn.testing import attention_inputs, rope_structured

DTYPES = {"float32": np.float32, "float64": np.float64}
TRANSFORM, DIRECT = Plan("block transform", 64), Plan("direct")


@cache
def qkv(n, d, dtype, deviation=1.0, d_v=None, lead=(), kv_lead=None):
    """Inputs of a kind, made once, with an upstream gradient; nobody may write to them."""
    q, k, v = attention_inputs(
        n, d, seed=n, deviation=deviation, d_v=d_v, dtype=dtype, lead=lead, kv_lead=lead if kv_lead is None else kv_lead
    )
    upstream = np.random.default_rng(n + d).standard_normal((*lead, n, v.shape[-1])).astype(dtype)
    return frozen(q, k, v, upstream)


@cache
def structured(n, dtype, deviation):
    q, k, v, _ = rope_structured(n, 16, starts=7, seed=n, deviation=deviation, dtype=dtype)
    return frozen(q, k, v, np.random.default_rng(n).standard_normal(v.shape).astype(dtype))


def frozen(*arrays):
    for array in arrays:
        array.flags.writeable = False
    return arrays


def conv(n, dtype, mask, method, plan, deviation=2.0):
    q, k, v, g = structured(n, dtype, deviation)
    options = {"n_basis": 7, "probe": 4, "delta": 1e-2, "mask": mask, "method": method, "plan": plan}
    out, held = refattn.conv_attention_forward(q, k, v, **options)
    found = [out, held.basis.starts, held.basis.kernels, held.rows_recomputed]
    for gradient in ("approximation", "attention"):
        found += refattn.conv_attention_backward(g, held, gradient=gradient)
    return found


def grouped_conv(dtype):
    q, k, v, g = qkv(150, 8, dtype, lead=(2, 4), kv_lead=(2, 2))
    options = {"n_basis": 5, "probe": 4, "delta": 0.5, "mask": "full", "plan": TRANSFORM}
    out, held = refattn.conv_attention_forward(q, k, v, **options)
    return [out, *refattn.conv_attention_backward(g, held)]


def dense(n, d, dtype, **options):
    q, k, v, g = qkv(n, d, dtype)
    out, held = refattn.dense_attention_forward(q, k, v, **options)
    return [out, held.log_sum_exp, *refattn.dense_attention_backward(g, held)]


def sparsek_attention(n, dtype, **options):
    q, k, v, g = qkv(n, 32, dtype, lead=(4,), kv_lead=(2,))
    scores = np.random.default_rng(n).standard_normal((2, n)).astype(dtype)
    out, held = refattn.sparsek_attention_forward(q, k, v, scores, n_select=24, window=20, **options)
    return [out, *refattn.sparsek_attention_backward(g, held)]


def generation(dtype):
    q, k, v, _ = qkv(120, 16, dtype, lead=(2,))
    scores = np.random.default_rng(3).standard_normal((2, 120)).astype(dtype)
    held = refattn.SparseKCache(n_select=12, window=8)
    first = held.prefill(q[:, :100], k[:, :100], v[:, :100], scores[:, :100])
    return [first, *(held.step(q[:, t], k[:, t], v[:, t], scores[:, t]) for t in range(100, 120))]


def scores(dtype):
    rng = np.random.default_rng(4)
    x, weight, slope = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 700, 96), (5, 96), (5,)))
    found, held = sparsek.sparsek_scores_forward(x, weight, slope, normalise=True)
    return [found, *sparsek.sparsek_scores_backward(np.cos(found), held)]


def operator(dtype):
    z = np.random.default_rng(5).standard_normal((6, 300)).astype(dtype)
    p = refattn.sparsek.sparsek_operator(z, 12)
    return [p, refattn.sparsek_threshold(z, 12), *refattn.sparsek_vjp(p, z), refattn.prefix_thresholds(z[0], 12)]


MASKS = {
    "causal": lambda n: refattn.Causal(),
    "row-change": lambda n: lowrank.shifted_groups(n, 60),
    "continuous-rows": lambda n: lowrank.sliding_window(n, 100),
    "distinct-rows": lambda n: lowrank.DistinctRowsMask(*patterns(n)),
    "distinct-columns": lambda n: lowrank.DistinctColumnsMask(*patterns(n)),
}


def patterns(n):
    rng = np.random.default_rng(n)
    places = rng.random((4, n)) < 0.6
    places[:, 0] = True
    return places, rng.integers(4, size=n)


def masked_product(n, dtype, mask):
    rng = np.random.default_rng(n)
    u1, u2 = rng.random((2, n, 70)).astype(dtype)
    v, g = rng.standard_normal((2, n, 90)).astype(dtype)
    out, held = refattn.lowrank.masked_product_forward(u1, u2, v, mask=MASKS[mask](n))
    return [out, *refattn.lowrank.masked_product_backward(g, held)]


def lowrank_attention(n, dtype, features, mask="causal"):
    q, k, v, g = qkv(n, 6, dtype, deviation=0.3)
    out, held = refattn.lowrank_attention_forward(q, k, v, features=features(), mask=MASKS[mask](n))
    return [out, *refattn.lowrank_attention_backward(g, held)]


def polynomial():
    return refattn.lowrank.PolynomialFeatures(6, degree=4, bound=4.0)


def random_features():
    return refattn.lowrank.RandomFeatures(6, rank=200, seed=0)


def catalogue():
    """Yield name and function of every operation."""
    for name, dtype in DTYPES.items():
        for mask in ("causal", "full"):
            yield f"conv transform {mask} {name}", partial(conv, 700, dtype, mask, "fast", TRANSFORM)
            yield f"conv direct {mask} {name}", partial(conv, 300, dtype, mask, "fast", DIRECT)
            yield f"conv guarded {mask} {name}", partial(conv, 500, dtype, mask, "fast", TRANSFORM, 12.0)
            yield f"conv paper {mask} {name}", partial(conv, 200, dtype, mask, "paper", None)
            yield f"dense {mask} {name}", partial(dense, 301, 64, dtype, mask=mask)
        yield f"conv grouped {name}", partial(grouped_conv, dtype)
        yield f"dense blocks {name}", partial(dense, 700, 48, dtype, block=250)
        yield (
            f"dense window softcap {name}",
            partial(dense, 300, 24, dtype, mask=refattn.SlidingWindow(50), softcap=5.0),
        )
        yield f"sparsek soft {name}", partial(sparsek_attention, 900, dtype)
        yield f"sparsek hard {name}", partial(sparsek_attention, 500, dtype, hard=True)
        yield f"sparsek ungated {name}", partial(sparsek_attention, 300, dtype, gate="none")
        yield f"sparsek paper {name}", partial(sparsek_attention, 150, dtype, method="paper")
        yield f"sparsek generation {name}", partial(generation, dtype)
        yield f"sparsek scores {name}", partial(scores, dtype)
        yield f"sparsek operator {name}", partial(operator, dtype)
        for mask in MASKS:
            yield f"masked product {mask} {name}", partial(masked_product, 600, dtype, mask)
        yield f"lowrank polynomial {name}", partial(lowrank_attention, 400, dtype, polynomial)
        yield f"lowrank random {name}", partial(lowrank_attention, 400, dtype, random_features, "distinct-rows")


OPERATIONS = dict(catalogue())


def digest(arrays):
    """SHA-256 of dtypes, shapes and bytes: equal only for equal bits."""
    found = hashlib.sha256()
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        found.update(f"{contiguous.dtype.str}{contiguous.shape}".encode())
        found.update(contiguous.tobytes())
    return found.hexdigest()


def digests(texts=("",)):
    """Digest of every operation whose name contains one of the texts, by name."""
    return {name: digest(run()) for name, run in OPERATIONS.items() if any(text in name for text in texts)}


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1:] or [""])))
