"""Exact attention, forward and backward: time and peak memory against n, by tiles, by definition, and PyTorch.

`main` (``python asv_benchmarks/benchmarks/dense.py``) measures some cases beside PyTorch, interleaved in one process on
two threads, and prints the minimum, the median and their ratios.
"""

import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn._threads import set_thread_count

try:
    import torch
except ImportError:
    torch = None

HEADS, WIDTH, THREADS = 4, 64, 1


def arrays(n, dtype, heads=HEADS):
    """Seeded q, k, v and upstream gradient, shape (4, heads, n, WIDTH)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, heads, n, WIDTH), dtype=dtype)


class Refattn:
    """Our forward, and forward with backward."""

    method = "fast"

    def __init__(self, n, dtype, heads=HEADS, threads=THREADS):
        set_thread_count(threads)
        self.q, self.k, self.v, self.dout = arrays(n, dtype, heads)

    def forward(self):
        return dense_attention(self.q, self.k, self.v, method=self.method)

    def backward(self):
        _, cache = dense_attention_forward(self.q, self.k, self.v, method=self.method)
        return dense_attention_backward(self.dout, cache)


class Oracle(Refattn):
    """The same by definition."""

    method = "oracle"


class Torch:
    """PyTorch's `scaled_dot_product_attention`, and its autograd."""

    def __init__(self, n, dtype, heads=HEADS, threads=THREADS):
        if torch is None:
            raise NotImplementedError("torch is not installed")
        torch.set_num_threads(threads)
        self.q, self.k, self.v, self.dout = (torch.from_numpy(a)[None] for a in arrays(n, dtype, heads))
        self.leaves = [a.clone().requires_grad_(True) for a in (self.q, self.k, self.v)]

    def attend(self, *qkv):
        return torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)

    def forward(self):
        return self.attend(self.q, self.k, self.v)

    def backward(self):
        for leaf in self.leaves:
            leaf.grad = None
        self.attend(*self.leaves).backward(self.dout)
        return tuple(leaf.grad for leaf in self.leaves)


IMPLEMENTATIONS = {"refattn": Refattn, "oracle": Oracle, "torch": Torch}


class Dense:
    """Causal attention of 4 heads of width 64 on one thread."""

    params = ([256, 1024, 4096], ["float32", "float64"], list(IMPLEMENTATIONS))
    param_names = ("n", "dtype", "implementation")
    timeout = 300
    version = "2"

    def setup(self, n, dtype, implementation):
        self._limits = threadpool_limits(THREADS)
        self.work = IMPLEMENTATIONS[implementation](n, dtype)

    def teardown(self, n, dtype, implementation):
        self._limits.restore_original_limits()
        set_thread_count(None)


class DenseTime(Dense):
    """Seconds of one call, after a first one that is not counted."""

    def setup(self, n, dtype, implementation):
        super().setup(n, dtype, implementation)
        self.work.forward()
        self.work.backward()

    def time_forward(self, n, dtype, implementation):
        self.work.forward()

    def time_backward(self, n, dtype, implementation):
        self.work.backward()

    time_forward.version = time_backward.version = Dense.version


class DensePeakMemory(Dense):
    """Peak memory of the process in one call; the inputs take at most 32 MB of it."""

    def peakmem_forward(self, n, dtype, implementation):
        self.work.forward()

    def peakmem_backward(self, n, dtype, implementation):
        self.work.backward()

    peakmem_forward.version = peakmem_backward.version = Dense.version


CASES = {
    "8 heads of 2,048, float32": (2048, "float32", 8, ("forward", "backward")),
    "8 heads of 2,048, float64": (2048, "float64", 8, ("forward", "backward")),
    "one head of 16,384, float32": (16_384, "float32", 1, ("forward",)),
}


def interleaved(calls, rounds):
    """Minimum and median seconds of each call, one after the other in every round, after one that is not counted."""
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: (min(times), float(np.median(times))) for name, times in seconds.items()}


class DenseTargets:
    """Median time over PyTorch's, causal, two threads; "backward" is forward with backward."""

    params = ([f"{case}, {what}" for case, (*_, whats) in CASES.items() for what in whats],)
    param_names = ("case",)
    timeout = 600
    version = "1"

    def track_over_torch(self, case):
        found = measure(case, 7)
        return found["refattn"][1] / found["torch"][1]

    track_over_torch.version = version
    track_over_torch.unit = "times PyTorch's"


def measure(case, rounds):
    """Seconds of ours and of PyTorch's, in one interleaved run on two threads."""
    name, _, what = case.rpartition(", ")
    n, dtype, heads, _ = CASES[name]
    try:
        works = {each: IMPLEMENTATIONS[each](n, dtype, heads, threads=2) for each in ("refattn", "torch")}
        return interleaved({each: getattr(work, what) for each, work in works.items()}, rounds)
    finally:
        set_thread_count(None)


def main():
    """Print every case; words given as arguments choose some."""
    for case in DenseTargets.params[0]:
        if all(part in case for part in sys.argv[1:]):
            found = measure(case, 9)
            (least, median), (torch_least, torch_median) = found["refattn"], found["torch"]
            print(
                f"{case:40s} {least * 1e3:8.1f} {median * 1e3:8.1f} ms, PyTorch {torch_least * 1e3:8.1f}"
                f" {torch_median * 1e3:8.1f} ms, ratio {least / torch_least:5.2f} {median / torch_median:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
