"""Which rows does an FFT lose? Row errors of one long FFT against the logit deviation, and those of the guarded path.

Causal Toeplitz attention (k = 1) with the kernel ``exp(N(0, σ))``: the sum of row r is ``D_r = Σ_{t ≤ r} g[t]``. An
FFT's error is relative to the largest D, so the relative error of small D_r grows with σ without limit. The guarded
path (`refattn.convbasis.fast.softmax`) keeps the rows whose estimated error is inside its tolerance and computes the
others directly. arXiv 2405.05219, section 4, counts operations and does not ask about rounding; question and answer
are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from refattn._validation import as_count
from refattn.convbasis.attention import conv_attention_forward
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.fast.cost import Plan
from refattn.convbasis.toeplitz import conv_product
from refattn.experiments.experiment import Experiment, Item, Record, significant


class DomainRecord(NamedTuple):
    """Errors for one dtype and logit deviation σ.

    `plain_error` is the worst relative error of a row sum by one long FFT, `guarded_error` that of a row of the guarded
    output, relative to ``‖V‖_∞``, and `tolerance` the bound the guard works with. Rows are lost whose sum by one long
    FFT is off by more than that.
    """

    deviation: float
    dtype: str
    tolerance: float
    rows_lost: int
    plain_error: float
    rows_recomputed: int
    guarded_error: float


def numerical_domain(
    *, n: int = 4096, deviations: Iterable[float] = (1.0, 4.0, 8.0, 16.0), seed: int = 0
) -> list[DomainRecord]:
    """Measure the errors of an unguarded and of the guarded product of n rows, in float64 and float32, in O(n²).

    Compared with sums in float64 (float32: of the same float32 logits), each row with its own maximum.

    >>> records = numerical_domain(n=256, deviations=[1.0])
    >>> [r.guarded_error <= r.tolerance for r in records]
    [True, True]
    """
    n = as_count("n", n, least=2)
    rng = np.random.default_rng(seed)
    logits, values = rng.standard_normal(n), rng.standard_normal((n, 4))
    return [
        _measure(logits * deviation, values, deviation, name)
        for name in ("float64", "float32")
        for deviation in deviations
    ]


def _measure(logits: np.ndarray, values: np.ndarray, deviation: float, name: str) -> DomainRecord:
    u, v = logits.astype(name), values.astype(name)
    g = np.exp(u - u.max())
    plain = np.abs(conv_product(g, np.ones(u.size, name)) / np.cumsum(g.astype(np.float64)) - 1)
    basis = ConvBasis(np.array([0]), u[None])
    out, cache = conv_attention_forward(v, v, v, basis=basis, plan=Plan("block transform", 512))
    right = np.stack([_row(u, v, r) for r in range(u.size)])
    return DomainRecord(
        deviation=float(deviation),
        dtype=name,
        tolerance=cache.tol,
        rows_lost=int((plain > cache.tol).sum()),
        plain_error=float(plain.max()),
        rows_recomputed=int(cache.rows_recomputed),
        guarded_error=float(np.abs(out - right).max() / np.abs(v).max()),
    )


def _row(u: np.ndarray, v: np.ndarray, r: int) -> np.ndarray:
    """Row r of the output from its definition, in float64."""
    logits = u[r::-1].astype(np.float64)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights @ v[: r + 1].astype(np.float64) / weights.sum())


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length and deviation."""
    return [{"n": n, "deviation": float(deviation), "seed": 0} for n in sizes for deviation in (1, 2, 4, 6, 8, 12, 16)]


def run(item: Item) -> list[Record]:
    """Measure both precisions."""
    found = numerical_domain(n=item["n"], deviations=[item["deviation"]], seed=item["seed"])
    return [
        {name: significant(x) if isinstance(x, float) else x for name, x in one._asdict().items() if name not in item}
        for one in found
    ]


EXPERIMENT = Experiment(
    name="numerical-domain",
    question="How many rows does a plain FFT lose as the logits deviate more, and what does the guard make of them?",
    sizes=(4096, 16_384),
    quick_sizes=(512,),
    items=items,
    run=run,
)
