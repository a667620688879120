"""Measure the constants of the cost model on this machine: ``python -m refattn.laboratory.cost_model``.

Heads of several n and k are computed by every plan that could be chosen, and non-negative constants fitted to the
fastest time of each, by least squares of the relative errors. The result goes into
`refattn.convbasis.fast.cost.SECONDS` by hand: a library that chose differently on every start would not give the same
bits.
"""

from __future__ import annotations

import numpy as np

from refattn._timing import shortest_seconds
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.fast.cost import SECONDS, Plan, block_transform_work, direct_work
from refattn.convbasis.fast.softmax import FastSoftmax

WIDTH = 64
BLOCK_TRANSFORM = tuple(
    (n, k, block)
    for n in (256, 512, 1024, 4096, 16_384, 65_536, 262_144)
    for k in (1, 16, 128)
    for block in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    if 2 <= n // block <= 512 and k <= n // 4
)
DIRECT = (64, 128, 256, 512, 1024, 2048, 4096)


def calibrate(*, repeats: int = 5) -> dict[str, float]:
    """Return constants for `refattn.convbasis.fast.cost.SECONDS`, in float32, on the threads there are.

    It takes a minute or two. Of the runs of every case the fastest counts.
    """
    rows, seconds = [], []
    for n, k, block in BLOCK_TRANSFORM:
        rows.append(block_transform_work(n, k, WIDTH, np.float32, block))
        seconds.append(_fastest(n, k, Plan("block transform", block), repeats))
    for n in DIRECT:
        rows.append(direct_work(n, WIDTH, np.float32))
        seconds.append(_fastest(n, min(n, 16), Plan("direct"), repeats))
    from scipy.optimize import nnls

    work = np.array([[row.get(kind, 0.0) for kind in SECONDS] for row in rows])
    relative = work / np.array(seconds)[:, None]
    unit = relative.max(axis=0)
    constants, _ = nnls(relative / unit, np.ones(len(rows)))
    return dict(zip(SECONDS, (constants / unit).tolist(), strict=True))


def _fastest(n: int, k: int, plan: Plan, repeats: int) -> float:
    """Fastest time of one head with a given plan; the first run compiles and plans."""
    rng = np.random.default_rng(0)
    starts = np.arange(k) * (n // k)
    kernels = rng.standard_normal((k, n)).astype(np.float32)
    kernels[np.arange(n) >= n - starts[:, None]] = 0
    basis, v = ConvBasis(starts, kernels), rng.standard_normal((n, WIDTH)).astype(np.float32)
    out = np.empty_like(v)
    return shortest_seconds(lambda: FastSoftmax(basis, None, plan, v.shape[1], 1e300).write(v, out), rounds=repeats)


if __name__ == "__main__":
    for kind, value in calibrate().items():
        print(f'    "{kind}": {value:.1e},')
