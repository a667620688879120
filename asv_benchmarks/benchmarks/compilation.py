"""Compiles what the benchmarks use, once, in the server that asv forks a process from for each of them.

Without it the first call of every process would read the loops from the disk, or compile them. Nothing is measured
here (`imports` measures first calls), and nothing happens where asv's server is not.
"""

import sys

import numpy as np

from refattn import conv_attention_backward, conv_attention_forward
from refattn.convbasis import Plan
from refattn.sparsek import prefix_thresholds, sparsek_attention_backward, sparsek_attention_forward
from refattn.testing import rope_structured

from . import lowrank
from .conv import DELTA


def compile_all():
    """Call every operation once, on small arrays of the dtypes that are measured."""
    for dtype in (np.float32, np.float64):
        q, k, v, _ = rope_structured(512, 8, starts=2, seed=0, dtype=dtype)
        for plan in (Plan("block transform", 64), Plan("direct")):
            out, cache = conv_attention_forward(q, k, v, n_basis=2, probe=8, delta=DELTA, plan=plan)
            for gradient in ("approximation", "attention"):
                conv_attention_backward(out, cache, gradient=gradient)
        scores = np.arange(len(q), dtype=dtype)
        out, cache = sparsek_attention_forward(q, k, v, scores, n_select=8, window=8)
        sparsek_attention_backward(out, cache)
        prefix_thresholds(scores, 8)
    for kind in lowrank.Products.params[0]:
        products = lowrank.Products()
        products.setup(kind, 1024)
        products.time_backward(kind, 1024)


if "run_server" in sys.argv:
    compile_all()
