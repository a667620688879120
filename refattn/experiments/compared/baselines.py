"""What near-linear attention costs and gives: methods compared at equal time and at equal memory.

Six methods on the shipped real heads and on structured inputs, each with one knob, its *budget*:

| method | budget |
|---|---|
| conv, Recover | most segments k that Recover may find |
| conv, uniform | segments k with uniformly spread starts, so not searched for |
| low rank | degree g of the polynomial features |
| random features | number r of features |
| SparseK | pairs selected and pairs in the window, half each; scores are ``k_j·mean(q)``, not learned |
| window with sinks | pairs in the window, beside the first 4 |

Error is ``‖Y − Ỹ‖_F/‖Y‖_F`` against exact causal attention, time the best of a few calls after one that is not counted,
memory the largest that NumPy held beyond the inputs during a call. Exact attention, in blocks of 256 rows, runs beside
them and sets the measure: `within` gives each method's best error within a share of its time, or of its memory. A
method that refuses an input says so instead of an error.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refattn._timing import shortest_seconds
from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts, conv_attention
from refattn.dense import dense_attention
from refattn.experiments.conv.error_against_k import chosen_starts
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.lowrank import PolynomialFeatures, RandomFeatures, logit_bound, lowrank_attention
from refattn.sparsek import sparsek_attention
from refattn.testing import Inputs, attention_inputs, relative_error, rope_structured
from refattn.testing.real_heads import load_real_heads

SINKS = 4
PROBE = 8

Method = Callable[[FloatArray, FloatArray, FloatArray, int], FloatArray]


class BaselineRecord(NamedTuple):
    """One method on one input with one budget; `error` is NaN where it refused, and `refused` says why."""

    inputs: str
    method: str
    budget: int
    error: float
    seconds: float
    megabytes: float
    refused: str


def _conv_recovered(q: FloatArray, k: FloatArray, v: FloatArray, budget: int) -> FloatArray:
    return conv_attention(q, k, v, n_basis=budget, probe=PROBE, delta=1e-6)


def _conv_uniform(q: FloatArray, k: FloatArray, v: FloatArray, budget: int) -> FloatArray:
    basis = basis_from_starts(q, k, chosen_starts("uniform", len(q), budget))
    return conv_attention(q, k, v, basis=basis)


def _low_rank(q: FloatArray, k: FloatArray, v: FloatArray, degree: int) -> FloatArray:
    features = PolynomialFeatures(q.shape[-1], degree, logit_bound(q, k))
    return lowrank_attention(q, k, v, features=features)


def _random_features(q: FloatArray, k: FloatArray, v: FloatArray, rank: int) -> FloatArray:
    return lowrank_attention(q, k, v, features=RandomFeatures(q.shape[-1], rank, seed=0))


def _sparsek(q: FloatArray, k: FloatArray, v: FloatArray, budget: int) -> FloatArray:
    scores = k @ q.mean(axis=0) / np.sqrt(q.shape[-1])
    return sparsek_attention(q, k, v, scores, n_select=budget // 2, window=budget - budget // 2)


def _window(q: FloatArray, k: FloatArray, v: FloatArray, window: int) -> FloatArray:
    earlier_is_better = -np.arange(float(len(q)))  # so the pairs selected outside the window are the first ones
    return sparsek_attention(q, k, v, earlier_is_better, n_select=SINKS, window=window, gate="none")


def _exact(q: FloatArray, k: FloatArray, v: FloatArray, budget: int) -> FloatArray:
    return dense_attention(q, k, v, block=budget)


METHODS: Mapping[str, Method] = {
    "exact": _exact,
    "conv, Recover": _conv_recovered,
    "conv, uniform": _conv_uniform,
    "low rank": _low_rank,
    "random features": _random_features,
    "SparseK": _sparsek,
    "window with sinks": _window,
}

BUDGETS: Mapping[str, Sequence[int]] = {
    "exact": (256,),
    "conv, Recover": (4, 16, 64, 256),
    "conv, uniform": (4, 16, 64, 256),
    "low rank": (1, 2, 4, 6, 8),
    "random features": (16, 64, 256, 1024),
    "SparseK": (16, 64, 256, 1024),
    "window with sinks": (16, 64, 256, 1024),
}


def structured_inputs(n: int) -> dict[str, Inputs]:
    """Return inputs of length n ≥ 256 on which a method is known to be at home, by name.

    Rotary contents in 16 segments, each longer than the one before: exactly k-conv. Small logits in few dimensions: low
    rank.
    """
    rotary = rope_structured(n, 64, starts=n * np.arange(16) ** 2 // 256, seed=0)
    return {
        "rotary, 16 segments": Inputs(*rotary[:3]),
        "small logits, d = 4": attention_inputs(n, 4, seed=0, deviation=0.1),
    }


def real_inputs() -> dict[str, Inputs]:
    """Return the first query head of every layer of the shipped real heads, n = 2,048, by name."""
    heads = load_real_heads(dtype=np.float64)
    return {
        f"SmolLM2 layer {layer}": Inputs(heads.q[place, 0], heads.k[place, 0], heads.v[place, 0])
        for place, layer in enumerate(heads.layers)
    }


def compare(
    inputs: Mapping[str, Inputs], budgets: Mapping[str, Iterable[int]] = BUDGETS, *, repeat: int = 3
) -> Iterator[BaselineRecord]:
    """Run every method with every budget on every input, one head of shape (n, d) each; `repeat` calls are timed.

    >>> few = {"SparseK": [8], "random features": [8]}
    >>> records = list(compare({"normal": attention_inputs(64, 4, seed=0)}, few, repeat=1))
    >>> [(record.method, record.error < 1.0) for record in records]
    [('SparseK', True), ('random features', True)]
    """
    for name, (q, k, v) in inputs.items():
        exact = dense_attention(q, k, v, method="oracle")
        for method, ladder in budgets.items():
            for budget in ladder:
                yield _measured(name, method, budget, Inputs(q, k, v), exact, repeat)


def _measured(name: str, method: str, budget: int, inputs: Inputs, exact: FloatArray, repeat: int) -> BaselineRecord:
    def call() -> FloatArray:
        return METHODS[method](*inputs, min(budget, len(exact)))

    try:
        out = call()
    except (ValueError, MemoryError) as reason:
        return BaselineRecord(name, method, budget, np.nan, np.nan, np.nan, str(reason))
    seconds = shortest_seconds(call, rounds=repeat)
    tracemalloc.start()
    try:
        call()
        megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    return BaselineRecord(name, method, budget, relative_error(out, exact), seconds, megabytes, "")


def within(records: Iterable[BaselineRecord], field: str, share: float) -> list[BaselineRecord]:
    """Return, for every input and method, the record of least error within a share of what exact attention takes.

    `field` is what is limited, seconds or megabytes. The order is that of first appearance, without exact attention. A
    method with none inside the limit has an error of NaN: the record is its first refusal, or its cheapest.
    """
    groups: dict[str, dict[str, list[BaselineRecord]]] = {}
    for record in records:
        groups.setdefault(record.inputs, {}).setdefault(record.method, []).append(record)
    chosen = []
    for methods in groups.values():
        limit = share * min(float(getattr(record, field)) for record in methods.pop("exact"))
        for group in methods.values():
            inside = [record for record in group if getattr(record, field) <= limit]
            refusals = [record for record in group if record.refused]
            if inside:
                chosen.append(min(inside, key=lambda record: record.error))
            elif refusals:
                chosen.append(refusals[0])
            else:
                cheapest = min(group, key=lambda record: float(getattr(record, field)))
                chosen.append(cheapest._replace(error=np.nan, refused=f"takes more {field} at any budget"))
    return chosen


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, input, method and budget."""
    names = [f"SmolLM2 layer {layer}" for layer in load_real_heads().layers]
    names += list(structured_inputs(256))
    return [
        {"n": n, "inputs": name, "method": method, "budget": budget}
        for n in sizes
        for name in names
        for method, ladder in BUDGETS.items()
        for budget in ladder
    ]


def run(item: Item) -> list[Record]:
    """Measure one method with one budget on one input."""
    n, name = item["n"], item["inputs"]
    known = real_inputs() if name.startswith("SmolLM2") else structured_inputs(n)
    inputs = Inputs(*(x[:n] for x in known[name]))
    (found,) = compare({name: inputs}, {item["method"]: [item["budget"]]})
    numbers = {field: significant(getattr(found, field)) for field in ("error", "seconds", "megabytes")}
    return [{**numbers, "refused": found.refused}]


EXPERIMENT = Experiment(
    name="baselines",
    question="What do the methods give within a share of exact attention's time, or of its memory?",
    sizes=(2048,),
    quick_sizes=(256,),
    items=items,
    run=run,
    timed=("seconds", "megabytes"),  # what NumPy held depends a little on which thread came first
)
