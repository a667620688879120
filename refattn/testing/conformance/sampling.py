"""Which rows of a long problem are judged (ours).

Those at the edges of the tiles that kernels use, random ones, and those that differ most from a fast computation of
all rows: no row can be wrong by more than the others and not be looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn.testing.conformance.judge import row_error
from refattn.testing.conformance.operation import Arrays, Operation, Problem, Sample

MOST = 2**19
"""Logits of a problem, over batches and heads, up to which every row is judged."""

TILES = (16, 32, 64, 128, 256, 512)
PER_TILE, RANDOM, WORST = 6, 32, 6


def is_sampled(operation: Operation, problem: Problem) -> bool:
    """Whether some of the rows of a problem are judged rather than all."""
    if operation.whole is None or any(name in problem.options for name in operation.more_options):
        return False
    (batch, n_heads, n_q, _), n_k = problem.arrays["q"].shape, problem.arrays["k"].shape[-2]
    return bool(batch * n_heads * n_q * n_k > MOST)


def sample_of(problem: Problem, got: Arrays, whole: Arrays) -> Sample:
    """Return the rows judged of what came; `whole` is what was computed fast."""
    worst: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
    for name, array in whole.items():
        came, right = (x[..., None] if name == "lse" else x for x in (got[name], array))
        worst[name in ("dk", "dv")].append(_worst(came, right))
    rng = np.random.default_rng([problem.seed, 9])
    queries, keys = (problem.arrays[x].shape[-2] for x in ("q", "k"))
    return Sample(_some(queries, worst[False], rng), _some(keys, worst[True], rng))


def said(sample: Sample, problem: Problem) -> str:
    """Return in a sentence what was judged."""
    n_q, n_k = (problem.arrays[x].shape[-2] for x in ("q", "k"))
    return (
        f"judged: {sample.queries.size} of {n_q} rows by query, {sample.keys.size} of {n_k} by key: at the edges of"
        " tiles, random ones, and those that differ most from a fast computation of all"
    )


def _some(n: int, worst: list[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows at edges, random ones, and the worst, ascending."""
    chosen = [np.array([0, 1, n - 2, n - 1]), rng.integers(n, size=RANDOM), *worst]
    for tile in TILES:
        edges = np.arange(tile, n, tile)
        edges = rng.permutation(edges)[:PER_TILE]
        chosen += [edges - 1, edges, edges + 1]
    return np.unique(np.clip(np.concatenate(chosen), 0, n - 1)).astype(np.int64)


def _worst(got: NDArray[np.generic], right: NDArray[np.generic]) -> NDArray[np.int64]:
    """Rows with the largest errors, absolutely and relatively to the row."""
    error = row_error(got, right, True)
    size = np.abs(right).max(axis=-1)
    relative = error / np.maximum(size, 1e-6 * size.max(initial=1e-300))
    inner = tuple(range(error.ndim - 1))
    return np.concatenate([np.argsort(-x.max(axis=inner), kind="stable")[:WORST] for x in (error, relative)])
