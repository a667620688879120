"""Somebody else's implementation beside ours: time, peak memory and error against n, one plot for both.

``REFATTN_BENCH=module:function`` names it, or an installed package does, by an entry point in the group
``refattn.benchmarks``; it has the signature of `refattn.testing.check_attention`'s operation ``"dense"``, takes arrays
of shape (B, H, N, D), and is called with ``causal`` and ``scale``. ``REFATTN_BENCH_ARRAYS`` says whose arrays it takes
(numpy, torch, jax). Without either only ours runs. See docs/how-to/asv-for-your-implementation.md.
"""

import math
import os
from importlib.metadata import entry_points

import numpy as np
from threadpoolctl import threadpool_limits

from refattn import dense_attention
from refattn.testing import attention_inputs, row_errors
from refattn.testing.conformance.arrays import to_library, to_numpy
from refattn.testing.conformance.loading import load_function

GROUP = "refattn.benchmarks"
HEADS, WIDTH, THREADS = 4, 64, 1


def implementations():
    """Name and loader of every implementation found."""
    found = {"refattn": lambda: ours}
    found |= {point.name: point.load for point in entry_points(group=GROUP)}
    if named := os.environ.get("REFATTN_BENCH"):
        found[named] = lambda: load_function(named)
    return found


def ours(q, k, v, *, causal, scale):
    return dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)


class ThirdParty:
    """Causal attention of 4 heads of width 64 in float32 on one thread."""

    params = ([128, 512, 2048], list(implementations()))
    param_names = ("n", "implementation")
    timeout = 300
    version = "1"

    def setup(self, n, implementation):
        self._limits = threadpool_limits(THREADS)
        self.function = implementations()[implementation]()
        arrays = "numpy" if implementation == "refattn" else os.environ.get("REFATTN_BENCH_ARRAYS", "numpy")
        self.inputs = attention_inputs(n, WIDTH, seed=0, lead=(1, HEADS), dtype=np.float32)
        self.theirs = [to_library(array, arrays, "float32") for array in self.inputs]
        self.run()

    def teardown(self, n, implementation):
        self._limits.restore_original_limits()

    def run(self):
        return self.function(*self.theirs, causal=True, scale=1 / math.sqrt(WIDTH))

    def time_forward(self, n, implementation):
        self.run()

    def peakmem_forward(self, n, implementation):
        self.run()

    def track_error(self, n, implementation):
        """Largest relative error of a row, against ours in float64."""
        right = dense_attention(*(array.astype(np.float64) for array in self.inputs))
        return float(row_errors(to_numpy(self.run(), "out")[0], right).max())

    time_forward.version = peakmem_forward.version = track_error.version = version
    track_error.unit = "relative error"
