"""The figure of error against k in the authors' setting and in a trained head's, side by side (arXiv 2405.05219).

The paper's figure shows a small relative error; heads of a language model have one near 1. `figure_setting` says what
differs between the two. Here it is varied, one thing at a time, on every layer of SmolLM2-135M reading Hamlet: the
factor of the logits, the positions, n, and how k terms are chosen,

    first     the first k columns;
    recover   what Recover finds with the authors' T, δ and ε, of which ``terms`` says how many there are;
    uniform   k spread columns;
    best      the starts and kernels of least squared error on the logits, among starts n / 256 apart;

beside two baselines that know nothing of convolutions: the running mean of the values (``mean``), and a sliding window
that takes as many operations as Algorithm 1 with k terms (``window``).

The error is that of the authors' script, ``‖Y − Ỹ‖_F / ‖Y‖_F``, not squared, head by head; and of every row,
``‖y_i − ỹ_i‖ / ‖y_i‖``. Operations are counted as we do (Algorithm 1 over the causal half of exact attention) and as
the lines of the authors' script ask for them (search included, over an exact attention with a product of two n × n
matrices). Everything is in float32.

Left out is what would say nothing new. Shuffled positions have no structure to search for: only the first columns are
tried. With T = 1 and a tiny δ Recover's starts follow from which entries of the diagonal are equal, at any scale: it is
run at the authors' own, and, as it finds its starts one after the other, for four of the k. `figure_long` goes on to
the authors' length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refattn._memory import require_memory
from refattn._validation import FloatArray
from refattn.convbasis import ConvBasis, basis_from_starts, best_starts, conv_attention, least_squares_basis, recover
from refattn.dense import dense_attention
from refattn.experiments.conv import operations
from refattn.experiments.conv.error_against_k import chosen_starts
from refattn.experiments.conv.figure_setting import (
    COUNTS,
    DELTA,
    EPS,
    POSITIONS,
    PROBE,
    SCALES,
    as_factor,
    running_mean,
)
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.laboratory.smollm2 import NEEDS_HAMLET
from refattn.models import WindowAttention
from refattn.testing import relative_error

MOST_BEST = 256
"""Places among which the best starts are looked for."""

RECOVERED, BEST = (5, 40, 320, 640), (5, 20, 80, 160)
"""The k of Recover and of the best starts."""

SETTING: Item = {"probe": PROBE, "delta": DELTA, "eps": EPS}
"""What is the same in all items: Recover's T, δ and ε."""

Heads = Sequence[tuple[FloatArray, FloatArray, FloatArray]]
"""Queries, keys and values of some heads, each (n, d)."""


class Approximation(NamedTuple):
    """Attention of one head by one method: asked for k, which came to `size` terms or pairs a row."""

    k: int
    size: int
    out: FloatArray
    seconds: float
    starts: Sequence[int]


def with_basis(
    q: FloatArray, k: FloatArray, v: FloatArray, factor: float, method: str, counts: Sequence[int]
) -> Iterator[Approximation]:
    """Yield conv attention of one head with every one of the counts of terms, which rise."""
    n = len(q)
    make: Callable[[int], ConvBasis]
    begun, searched = time.perf_counter(), 0.0
    if method in ("first", "uniform"):

        def make(count: int) -> ConvBasis:
            return basis_from_starts(q, k, chosen_starts(method, n, count), scale=factor)

    elif method == "recover":
        found = recover(q, k, n_basis=counts[-1], probe=PROBE, delta=DELTA, eps=EPS, scale=factor)
        searched = time.perf_counter() - begun

        def make(count: int) -> ConvBasis:
            return ConvBasis(found.starts[:count], found.kernels[:count])

    else:
        best = best_starts(q, k, counts[-1], grid=max(1, n // MOST_BEST), scale=factor)
        searched = time.perf_counter() - begun

        def make(count: int) -> ConvBasis:
            return least_squares_basis(q, k, best.starts[count - 1], scale=factor)

    for count in counts:
        begun = time.perf_counter()
        basis = make(count)
        out = conv_attention(q, k, v, basis=basis, scale=factor)
        yield Approximation(
            count, int(basis.starts.size), out, searched + time.perf_counter() - begun, basis.starts.tolist()
        )


def windows(
    q: FloatArray, k: FloatArray, v: FloatArray, factor: float, counts: Sequence[int]
) -> Iterator[Approximation]:
    """Yield windows of as many operations as conv attention with the first k columns; the whole of it at the most."""
    n, d = v.shape
    scaled = np.asarray(q * (factor * np.sqrt(q.shape[1])), q.dtype)  # the window has its own 1/√d
    for count in counts:
        width = operations.equal_window(operations.conv_attention(range(count), n, d), n, d)
        begun = time.perf_counter()
        out = WindowAttention(width)(0, scaled[None], k[None], v[None])[0]
        yield Approximation(count, width, out, time.perf_counter() - begun, ())


def counts_of(method: str, n: int) -> list[int]:
    """Return the k that a method is tried with at a length: the authors', and for the first columns shares of n.

    >>> counts_of("best", 1024), counts_of("first", 100)
    ([5, 20, 80, 160], [5, 10, 20, 25, 40, 50, 80])
    """
    wanted = {"recover": RECOVERED, "best": BEST, "first": (*COUNTS, n // 4, n // 2)}.get(method, COUNTS)
    return sorted({count for count in wanted if 1 <= count <= n} or {1})


def methods_of(positions: str, scale: str) -> tuple[str, ...]:
    """Return the ways to choose k terms that are tried."""
    if positions == "shuffled":
        return ("first",)
    return ("first", "uniform", "best", "recover") if scale == "1/d" else ("first", "uniform", "best")


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, way to place the tokens, layer and factor."""
    from refattn.experiments.conv.captured import LAYERS

    return [
        {"n": n, "positions": positions, "layer": layer, "scale": scale, **SETTING}
        for n in sizes
        for positions in POSITIONS
        for layer in range(LAYERS)
        for scale in SCALES
    ]


def needed_bytes(n: int, layers: int, most: int) -> int:
    """Return about how much memory an item takes: weights, heads of some layers, kernels with their spectra, tables."""
    places = min(n, 2 * MOST_BEST)
    return 600_000_000 + 4 * n * (15 * 64 * layers + 4 * 1536 + 6 * 576) + 24 * n * most + 8 * places * (n + places)


def run(item: Item) -> list[Record]:
    """Return for every method and k what it leaves of the heads of the layer."""
    from refattn.experiments.conv.captured import HEADS, LAYERS, captured, head_of

    n, layer, positions, scale = item["n"], item["layer"], item["positions"], item["scale"]
    most = max(*COUNTS, n // 2)
    require_memory(f"conv-figure: n = {n}", needed_bytes(n, LAYERS, most))
    capture = captured(n, positions)
    heads = [head_of(capture, layer, place) for place in range(HEADS)]
    counts = {method: counts_of(method, n) for method in methods_of(positions, scale)}
    return measured(heads, scale, counts, [count for count in COUNTS if count <= n])


def measured(
    heads: Heads, scale: str | float, counts: Mapping[str, Sequence[int]], window_counts: Sequence[int]
) -> list[Record]:
    """Return a record for the running mean, every window, and every method and k, over some heads of one length."""
    n, d = heads[0][2].shape
    found: dict[tuple[str, int], list[tuple[Approximation, float, FloatArray]]] = {}
    for head in heads:
        factor = as_factor(scale, head[0].shape[1])
        exact = dense_attention(*head, scale=factor)
        for method, one in _approximations(head, factor, counts, window_counts):
            numbers = relative_error(one.out, exact), _rows(one.out, exact)
            found.setdefault((method, one.k), []).append((one, *numbers))
    return [_record(method, n, d, some) for (method, _), some in found.items()]


def _approximations(
    head: tuple[FloatArray, FloatArray, FloatArray],
    factor: float,
    counts: Mapping[str, Sequence[int]],
    window_counts: Sequence[int],
) -> Iterator[tuple[str, Approximation]]:
    begun = time.perf_counter()
    mean = running_mean(head[2])
    yield "mean", Approximation(0, 0, mean, time.perf_counter() - begun, ())
    for one in windows(*head, factor, window_counts):
        yield "window", one
        if one.size == len(mean):  # exact attention, and so is every one that may cost more
            break
    for method, some in counts.items():
        for one in with_basis(*head, factor, method, some):
            yield method, one


def _rows(out: FloatArray, right: FloatArray) -> FloatArray:
    """Return the relative error of every row."""
    sizes = np.linalg.norm(right, axis=1)
    return np.asarray(np.linalg.norm(out - right, axis=1) / np.where(sizes > 0, sizes, 1.0))


def _record(method: str, n: int, d: int, some: Sequence[tuple[Approximation, float, FloatArray]]) -> Record:
    """Return least and median error of the heads, median and worst of all their rows, operations and time."""
    errors = [error for _, error, _ in some]
    rows = np.concatenate([each for _, _, each in some])
    one = some[0][0]
    record: Record = {"method": method, "k": one.k}
    if method in ("window", "recover"):
        record["size"] = int(np.median([each.size for each, _, _ in some]))
    record |= {
        "least": significant(min(errors)),
        "error": significant(float(np.median(errors))),
        "row": significant(float(np.median(rows)), 3),
        "row_worst": significant(float(rows.max()), 3),
    }
    if method not in ("window", "mean"):
        ours = np.median([operations.conv_attention(each.starts, n, d) for each, _, _ in some])
        theirs = np.median([operations.authors_conv(each.starts, n, d) for each, _, _ in some])
        record["flops"] = significant(float(ours) / operations.exact_attention(n, d), 3)
        record["flops_authors"] = significant(float(theirs) / operations.authors_exact(n, d), 3)
    return record | {"seconds": significant(float(np.median([each.seconds for each, _, _ in some])), 2)}


EXPERIMENT = Experiment(
    name="conv-figure",
    question="Why is the paper's error against k small, and that of a trained head not?",
    sizes=(1024,),
    quick_sizes=(128,),
    items=items,
    run=run,
    needs=NEEDS_HAMLET,
    timed=("seconds",),
)
