"""conv(a) x by FFT against the product by its definition: time and operations (arXiv 2405.05219, experiments).

The paper's first figure: the causal convolution ``conv(a) x`` of a random vector, n from 100 to 32,000. Operations are
counted as in `refattn.experiments.conv.operations`; a token's share is the n-th part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refattn._timing import shortest_seconds
from refattn.convbasis import conv_product
from refattn.experiments.conv.operations import direct_product, fft_product
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.testing import relative_error

METHODS = ("fft", "direct")


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length and method."""
    return [{"n": n, "method": method, "seed": 0} for n in sizes for method in METHODS]


def run(item: Item) -> list[Record]:
    """Time one product, and compare it with the other method's."""
    n, method = item["n"], item["method"]
    rng = np.random.default_rng([item["seed"], n])
    a, x = rng.standard_normal(n), rng.standard_normal(n)
    other = METHODS[1 - METHODS.index(method)]
    difference = relative_error(conv_product(a, x, method=method), conv_product(a, x, method=other))
    flops = fft_product(n) if method == "fft" else direct_product(n)
    seconds = shortest_seconds(lambda: conv_product(a, x, method=method), least=0.2)
    return [{"flops": flops, "flops_per_token": flops / n, "difference": difference, "seconds": seconds}]


EXPERIMENT = Experiment(
    name="conv-by-fft",
    question="From which length on is conv(a) x faster by FFT than by its definition, and by how much?",
    sizes=(100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 32_000),
    quick_sizes=(100, 1000, 5000),
    items=items,
    run=run,
    timed=("seconds",),
)
