"""Relative error of conv attention against k, on heads of a real model (arXiv 2405.05219, section on experiments).

The paper plots ``‖Y − Ỹ‖_F / ‖Y‖_F`` against the number k of basis terms. `error_against_k` does so for two choices of
starts: the first k columns, which is what Recover returns on generic input with T = 1, and k uniformly spread columns.
The error is that of the representation, computed densely; rounding plays no part in it.

The experiment ``error-against-k`` takes every head of every layer of SmolLM2-135M reading Hamlet, and these starts:

    uniform   k spread columns;
    recover   what the paper's Recover finds with T entries a probe, a threshold of δ = c T σ, σ being the standard
              deviation of the head's logits, and ε = δ e / T with e = 0 or the theorem's largest, 1/5;
    best      those that a dynamic programme finds for the logits in the least-squares sense, with least-squares
              kernels: no k-conv matrix is nearer to the logits (at n = 8,192: none whose starts are multiples of 16).

Its error is that of the fast path and of exact attention in float32: below 1e-4 it is rounding. Operations are
Algorithm 1's, over those of exact attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis import ConvBasis, basis_from_starts, best_starts, conv_attention, least_squares_basis, recover
from refattn.dense import dense_attention
from refattn.experiments.conv import operations
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.laboratory.smollm2 import NEEDS_HAMLET
from refattn.testing import relative_error

STARTS = ("first", "uniform")


class ErrorRecord(NamedTuple):
    """Relative error of one head at one k."""

    layer: int
    head: int
    starts: str
    k: int
    relative_error: float


def chosen_starts(kind: str, n: int, k: int) -> NDArray[np.int64]:
    """Return k starts among n columns: ``"first"`` or ``"uniform"``."""
    return np.arange(k) if kind == "first" else np.arange(k) * n // k


def represented_attention(q: FloatArray, k: FloatArray, v: FloatArray, starts: NDArray[np.int64]) -> FloatArray:
    """Attention of one head with the logits of the basis that has the given starts, densely."""
    logits = basis_from_starts(q, k, starts).to_dense()
    nothing = np.zeros((q.shape[0], 1), q.dtype)
    return dense_attention(nothing, nothing, v, mask=("causal", logits), method="oracle")


def error_against_k(
    q: FloatArray, k: FloatArray, v: FloatArray, layers: Iterable[int], counts: Iterable[int]
) -> Iterator[ErrorRecord]:
    """Yield the relative error of every layer, head, choice of starts and number of terms, in O(n² d) each.

    Queries are (L, G, n, d), of G heads of L layers, the keys and values that they share (L, 1, n, d).

    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(32, 4, seed=0, lead=(1, 1))
    >>> records = list(error_against_k(q, k, v, layers=[0], counts=[1, 32]))
    >>> records[1].k, records[1].relative_error < 1e-12  # k = n is exact
    (32, True)
    """
    counts = tuple(counts)
    for place, layer in enumerate(layers):
        for head in range(q.shape[1]):
            one = q[place, head], k[place, 0], v[place, 0]
            exact = dense_attention(*one, method="oracle")
            for kind in STARTS:
                for count in counts:
                    approximate = represented_attention(*one, chosen_starts(kind, q.shape[-2], count))
                    yield ErrorRecord(int(layer), head, kind, count, relative_error(approximate, exact))


SHARES = (512, 128, 32, 8, 4, 2)
"""n over k."""

SEARCHED_SHARES = (128, 8)
"""The same for what Recover finds."""

SEARCHES = ((1, 1e-6, 0.0), (16, 0.25, 0.0), (16, 1.0, 0.0), (16, 1.0, 0.2), (64, 1.0, 0.0))
"""Recover's T, c and e; the first is T = 1 with a tiny δ."""

MOST_PLACES = 2048
"""Places for a start among which the best are looked for, up to n of them; above that length n / 512 apart."""

MOST_BEST = 256
"""Most best starts."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, layer and choice of starts."""
    from refattn.experiments.conv.captured import LAYERS

    choices: list[Item] = [{"starts": "uniform"}, {"starts": "best"}]
    choices += [{"starts": "recover", "probe": probe, "delta": c, "eps": e} for probe, c, e in SEARCHES]
    return [{"n": n, "layer": layer, **choice} for n in sizes for layer in range(LAYERS) for choice in choices]


def run(item: Item) -> list[Record]:
    """Return the error of every head of the layer, for every k."""
    from refattn.experiments.conv.captured import HEADS, exact_outputs, head

    n, layer = item["n"], item["layer"]
    exact = exact_outputs(n, layer)
    records: list[Record] = []
    for place in range(HEADS):
        q, k, v = head(n, layer, place)
        for basis, extra in _bases(q, k, item):
            error = relative_error(conv_attention(q, k, v, basis=basis), exact[place])
            flops = operations.conv_attention(basis.starts, n, v.shape[1]) / operations.exact_attention(n, v.shape[1])
            numbers = {"error": error, "flops": flops, **extra}
            rounded = {name: significant(number) for name, number in numbers.items()}
            records.append({"head": place, "k": len(basis.starts), **rounded})
    return records


def _bases(q: FloatArray, k: FloatArray, item: Item) -> Iterator[tuple[ConvBasis, dict[str, float]]]:
    """Yield the bases to be measured, with what else is known of each."""
    n = len(q)
    counts = [max(1, n // share) for share in (SEARCHED_SHARES if item["starts"] == "recover" else SHARES)]
    if item["starts"] == "uniform":
        for count in counts:
            yield basis_from_starts(q, k, chosen_starts("uniform", n, count)), {}
    elif item["starts"] == "best":
        counts = [count for count in counts if count <= MOST_BEST]
        best = best_starts(q, k, counts[-1], grid=1 if n <= MOST_PLACES else n // 512)
        for count in counts:
            basis = least_squares_basis(q, k, best.starts[count - 1])
            yield basis, {"logits": float(best.relative_error[count - 1])}
    else:
        yield from _recovered(q, k, counts, item["probe"], item["delta"], item["eps"])


def _recovered(
    q: FloatArray, k: FloatArray, counts: list[int], probe: int, c: float, e: float
) -> Iterator[tuple[ConvBasis, dict[str, float]]]:
    """Yield what Recover finds with room for the largest k, and its first segments: what it finds with less room."""
    delta = c * probe * _logit_deviation(q, k)
    found = recover(q, k, n_basis=counts[-1], probe=min(probe, len(q)), delta=delta, eps=e * delta / probe)
    terms = int(found.n_terms)
    for count in sorted({min(count, terms) for count in counts}):
        yield ConvBasis(found.starts[:count], found.kernels[:count]), {}


def _logit_deviation(q: FloatArray, k: FloatArray) -> float:
    """Return the standard deviation of a head's causal logits, from 128 of its rows."""
    rows = np.arange(1, 129) * len(q) // 128 - 1
    logits = q[rows].astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[1])
    return float(logits[np.arange(len(k)) <= rows[:, None]].std())


EXPERIMENT = Experiment(
    name="error-against-k",
    question="What does a k-conv basis lose on every head of a real model, however its starts are chosen?",
    sizes=(2048, 8192),
    quick_sizes=(256,),
    items=items,
    run=run,
    needs=NEEDS_HAMLET,
)
