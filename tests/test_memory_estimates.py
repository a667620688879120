"""What a call says it needs, before it computes anything, is about what it holds at its peak.

An estimate far too small lets a machine swap or kill the process, one far too large refuses what would fit. Measured is
what NumPy allocates, at sizes at which the arrays that the estimate counts outweigh those that it leaves out.
"""

import ast
import inspect
import tracemalloc
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn import SparseKCache, _fft, _memory, _threads
from refattn.convbasis import ConvBasis, least_squares_basis
from refattn.convbasis.fast.cost import Plan
from refattn.convbasis.fast.recover import recover_heads
from refattn.convbasis.fast.softmax import FastSoftmax
from refattn.convbasis.starts import partition
from refattn.decomposition.measure import measure_head
from refattn.decomposition.reading import read_heads
from refattn.lowrank import (
    PolynomialFeatures,
    RandomFeatures,
    document_blocks,
    masked_product,
    prefix_lm,
    shifted_groups,
    sliding_window,
)
from refattn.patterns import hashed_indices, routed_indices
from refattn.testing import attention_inputs, rope_structured


def basis(terms, n, dtype):
    starts = np.arange(terms) * (n // terms)
    kernels = np.random.default_rng(0).standard_normal((terms, n)).astype(dtype)
    return ConvBasis(starts, np.where(np.arange(n) < n - starts[:, None], kernels, 0))


def conv_head(n, width, terms, dtype, *, upper=0, block=64):
    """Make the block transform of one head and multiply with it."""
    lower, above = basis(terms, n, dtype), basis(upper, n, dtype) if upper else None
    v = np.random.default_rng(1).standard_normal((n, width)).astype(dtype)
    out = np.empty_like(v)
    return lambda: FastSoftmax(lower, above, Plan("block transform", block), width, 1.0).write(v, out)


def recovered(n, terms, dtype, lead):
    q, k, _, _ = rope_structured(n, 2, starts=terms, seed=0, dtype=dtype, lead=lead)
    return lambda: recover_heads(q, k, terms, 1, 1e-6, 0.7)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def hashed(n, n_buckets, chunk):
    x = normal(n, 4)
    return lambda: hashed_indices(x, n_buckets=n_buckets, chunk=chunk)


def diagonals(n, grid=1):
    columns = np.zeros((128, n))
    return lambda: partition.all_diagonals(lambda first, end: columns[: end - first, first:], np.zeros(n), n, grid)


def of_lags(n, lags):
    q, k, _ = attention_inputs(n, 2, seed=0)
    return lambda: partition.some_diagonals(q, k, 1.0, np.arange(lags))


def costs(m, lags):
    sums = of_lags(m, lags)()
    return lambda: partition.segment_costs(sums)


def partitions(m, n_basis):
    sums = of_lags(m, 1)()
    return lambda: partition.cheapest_partitions(sums, n_basis, zero_before=True)


def first_token(n_select, window, d, d_v, dtype, heads, *, hard=False):
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((heads, d)).astype(dtype), rng.standard_normal((heads, d_v)).astype(dtype)
    return lambda: SparseKCache(n_select, window, hard=hard).step(k, k, v, np.zeros(heads))


def product(n, r):
    u1, u2, v = np.random.default_rng(0).standard_normal((3, n, r))
    return lambda: masked_product(u1, u2, v, mask=sliding_window(n, n // 2), method="oracle")


def factors(features, n, lead=()):
    q, k = np.random.default_rng(0).uniform(-0.3, 0.3, (2, *lead, n, features.width))
    return lambda: features.factors(q, k)


def file_of(array, archive):
    def run(tmp_path):
        path = tmp_path / ("h.npz" if archive else "h.npy")
        np.savez_compressed(path, h=array) if archive else np.save(path, array)
        return lambda: read_heads(path)

    return run


def decomposition(n, *, matrix):
    def run(tmp_path):
        q, k, v = attention_inputs(n, 4, seed=0)
        np.savez(tmp_path / "heads.npz", **({"h": np.tril(q @ k.T)} if matrix else {"q": q, "k": k, "v": v}))
        return lambda: [measure_head(head, terms=4) for head in read_heads(tmp_path / "heads.npz")[1]]

    return run


def least_squares(n, d, terms):
    q, k, _ = attention_inputs(n, d, seed=0)
    return lambda: least_squares_basis(q, k, np.arange(terms) * (n // terms))


SINGLE, DOUBLE = np.float32, np.float64
ESTIMATES = {
    "convbasis.fast.softmax": {
        "lower": ("block transform", lambda: conv_head(4096, 16, 4, SINGLE)),
        "lower, float64, odd width": ("block transform", lambda: conv_head(4096, 9, 4, DOUBLE)),
        "lower, many segments": ("block transform", lambda: conv_head(4096, 8, 64, DOUBLE)),
        "lower, long blocks": ("block transform", lambda: conv_head(4096, 32, 2, SINGLE, block=512)),
        "lower and upper": ("block transform", lambda: conv_head(4096, 16, 4, SINGLE, upper=4)),
        "more segments above": ("block transform", lambda: conv_head(4096, 2, 2, DOUBLE, upper=128)),
    },
    "convbasis.fast.recover": {
        "one head": ("kernels of the basis", lambda: recovered(4096, 64, DOUBLE, ())),
        "heads, float32": ("kernels of the basis", lambda: recovered(2048, 64, SINGLE, (2, 3))),
    },
    "convbasis.starts.partition": {
        "all diagonals": ("sums of the diagonals", lambda: diagonals(1000)),
        "all diagonals on a grid": ("sums of the diagonals", lambda: diagonals(3000, 8)),
        "some diagonals": ("sampled diagonals", lambda: of_lags(2000, 200)),
        "costs": ("costs of all segments", lambda: costs(1000, 4)),
        "a table": ("dynamic programme", lambda: partitions(300, 290)),
    },
    "convbasis.starts.least_squares": {
        "narrow": ("kernels and their transforms", lambda: least_squares(2000, 2, 100)),
        "wide": ("kernels and their transforms", lambda: least_squares(2000, 256, 4)),
    },
    "sparsek.cache": {
        "selected": ("what the cache keeps", lambda: first_token(2000, 0, 32, 32, SINGLE, 4)),
        "a window": ("what the cache keeps", lambda: first_token(1, 4000, 64, 16, DOUBLE, 2)),
        "narrow": ("what the cache keeps", lambda: first_token(20_000, 10, 1, 1, SINGLE, 1)),
    },
    "lowrank.products": {"oracle": ("'oracle'", lambda: product(1000, 4))},
    "lowrank.layouts": {
        "window": ("a mask of", lambda: lambda: sliding_window(100_000, 30)),
        "prefix": ("a mask of", lambda: lambda: prefix_lm(100_000, 1000)),
        "documents": ("a mask of", lambda: lambda: document_blocks([50] * 2000)),
        "groups": ("a mask of", lambda: lambda: shifted_groups(20_000, 64)),
        "groups of one": ("a mask of", lambda: lambda: shifted_groups(5000, 1)),
        "one group": ("a mask of", lambda: lambda: shifted_groups(5000, 5000, causal=False)),
    },
    "patterns._lists": {
        "hashed": ("positions", lambda: hashed(2000, 8, 64)),
        "routed": ("positions", lambda: lambda: routed_indices(normal(2000, 4), n_clusters=4, members=200)),
    },
    "patterns.hashing": {"buckets": ("directions", lambda: hashed(2000, 1024, 1))},
    "patterns.routing": {
        "centroids": ("centroids", lambda: lambda: routed_indices(normal(3, 16), n_clusters=20_000, members=1)),
    },
    "lowrank.random_features": {
        "orthogonal": ("random features", lambda: lambda: RandomFeatures(64, 4096, seed=0)),
        "independent": ("random features", lambda: lambda: RandomFeatures(64, 4096, seed=0, orthogonal=False)),
    },
    "lowrank.features": {
        "monomials": ("monomials", lambda: lambda: PolynomialFeatures(16, 5, 1.0)),
        "factors, polynomial": ("rows of rank", lambda: factors(PolynomialFeatures(8, 4, 1.0), 1000)),
        "factors, random": ("rows of rank", lambda: factors(RandomFeatures(8, 500, seed=0), 500, (2,))),
    },
    "testing.inputs": {
        "normal": ("arrays of", lambda: lambda: attention_inputs(10_000, 16, seed=0)),
        "grouped, float32": (
            "arrays of",
            lambda: lambda: attention_inputs(3000, 16, seed=0, lead=(2, 4), kv_lead=(2, 2), dtype=SINGLE),
        ),
        "one-hot, wide": ("arrays of", lambda: lambda: attention_inputs(10, 600, seed=0, kind="one-hot")),
        "rotary": ("arrays of", lambda: lambda: rope_structured(10_000, 16, starts=4, seed=0, lead=(2,))),
    },
    "decomposition.reading": {
        "a head": ("q: logits", lambda: decomposition(500, matrix=False)),
        "a matrix": ("h: logits", lambda: decomposition(500, matrix=True)),
    },
    "decomposition.arrays": {
        "npy": ("h", lambda: file_of(np.eye(600), archive=False)),
        "npz": ("h", lambda: file_of(np.eye(600), archive=True)),
    },
}


FACTORS = {"convbasis.starts.partition": 1.2, "convbasis.fast.recover": 1.2, "lowrank.products": 1.2}
"""How far an estimate may be off where its arrays are all that is held; 2 otherwise."""


def rows():
    for module, cases in ESTIMATES.items():
        for case in cases:
            yield pytest.param(module, case, id=f"{module}: {case}")


@pytest.fixture
def one_thread():
    _threads.set_thread_count(1)
    yield
    _threads.set_thread_count(None)


@pytest.mark.parametrize(("module", "case"), list(rows()))
def test_an_estimate_is_near_what_is_held(module, case, one_thread, monkeypatch, tmp_path):
    text, build = ESTIMATES[module][case]
    run = build()
    if "tmp_path" in inspect.signature(run).parameters:
        run = run(tmp_path)
    run()  # compiles, and makes the plans of the transforms
    monkeypatch.setattr(_fft, "_shelf", _fft._Shelf())
    _memory._idle.clear()
    estimates = {}
    monkeypatch.setattr(import_module(f"refattn.{module}"), "require_memory", estimates.__setitem__)
    tracemalloc.start()
    try:
        run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert any(text in what for what in estimates)
    assert peak > 1 << 18
    factor = FACTORS.get(module, 2.0)
    assert peak / factor <= sum(estimates.values()) <= peak * factor


@pytest.mark.slow
def test_every_estimate_is_measured():
    root = Path(refattn.__file__).parent
    for path in set(root.rglob("*.py")) - set((root / "experiments").rglob("*.py")):  # an experiment's: a whole model's
        calls = [x for x in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(x, ast.Call)]
        sites = [x for x in calls if getattr(x.func, "id", "") == "require_memory"]
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        assert len({text for text, _ in ESTIMATES.get(module, {}).values()}) == len(sites), module
