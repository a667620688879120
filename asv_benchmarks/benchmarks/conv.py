"""Conv-Basis attention end to end beside Algorithm 1, dense attention, PyTorch and a floor: one long convolution.

Two threads for everything, RoPE-structured input, recover included; compilation and planning happen in `setup`. `main`
(``python asv_benchmarks/benchmarks/conv.py``) measures the targets, every case interleaved with what it is compared
with in one process, and prints the minimum, the median and the ratios.
"""

import sys
import time
import tracemalloc

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from refattn import conv_attention, conv_attention_forward, dense_attention
from refattn._threads import set_thread_count, thread_count
from refattn.testing import rope_structured, row_errors

THREADS, WIDTH, PROBE, DELTA = 2, 64, 8, 1e-2


set_thread_count(THREADS)
threadpool_limits(THREADS)


def inputs(n, k, dtype="float32", lead=()):
    q, keys, v, _ = rope_structured(n, WIDTH, starts=k, seed=1, lead=lead, dtype=dtype)
    return q, keys, v


def conv(n, k, dtype="float32", method="fast", lead=(), probe=PROBE):
    """Return a call of conv attention, warmed up."""
    q, keys, v = inputs(n, k, dtype, lead)
    options = {"n_basis": k, "probe": min(probe, n), "delta": DELTA, "method": method}
    return lambda: conv_attention(q, keys, v, **options)


def dense(n, k, dtype="float32"):
    q, keys, v = inputs(n, k, dtype)
    return lambda: dense_attention(q, keys, v)


def torch_attention(n, k, dtype="float32"):
    try:
        import torch
    except ImportError:
        raise NotImplementedError from None
    torch.set_num_threads(THREADS)
    q, keys, v = (torch.from_numpy(x)[None, None] for x in inputs(n, k, dtype))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, keys, v, is_causal=True)


def long_convolution(n, k, dtype="float32"):
    """The floor: V (d, 2n) and a kernel, contiguous along n and zero-padded, transformed, multiplied, and back."""
    try:
        import pyfftw
    except ImportError:
        raise NotImplementedError from None
    cplx = np.result_type(dtype, np.complex64)
    x, y = (pyfftw.zeros_aligned((WIDTH, 2 * n), dtype) for _ in range(2))
    x_hat = pyfftw.zeros_aligned((WIDTH, n + 1), cplx)
    g, g_hat = pyfftw.zeros_aligned(2 * n, dtype), pyfftw.zeros_aligned(n + 1, cplx)
    options = {"axes": (-1,), "threads": THREADS}
    estimate, destroy = "FFTW_ESTIMATE", "FFTW_DESTROY_INPUT"
    forward = pyfftw.FFTW(x, x_hat, flags=(estimate,), **options)
    kernel = pyfftw.FFTW(g, g_hat, flags=(estimate,), **options)
    back = pyfftw.FFTW(x_hat, y, direction="FFTW_BACKWARD", flags=(estimate, destroy), **options)
    x[:, :n] = inputs(n, 1, dtype)[2].T
    g[:n] = 1 / n

    def work():
        forward.execute()
        kernel.execute()
        np.multiply(x_hat, g_hat, out=x_hat)
        back.execute()

    return work


MAKERS = {
    "fast": conv,
    "paper": lambda n, k, dtype: conv(n, k, dtype, "paper"),
    "dense": dense,
    "torch": torch_attention,
    "long convolution": long_convolution,
}
LONGEST = {"paper": 65_536, "dense": 8192, "torch": 16_384}


class ConvAttention:
    """Seconds of a call against n: ours for several k, the peers where k says nothing once, in both precisions."""

    params = (list(MAKERS), [256, 1024, 4096, 16_384, 65_536, 262_144], [1, 16, 128], ["float32", "float64"])
    param_names = ("implementation", "n", "k", "dtype")
    timeout = 300
    version = "2"

    def setup(self, implementation, n, k, dtype):
        if n > LONGEST.get(implementation, n):
            raise NotImplementedError  # quadratic, or k transforms of length n: too slow to be worth a point
        if k != 16 and (implementation != "fast" or dtype != "float32"):
            raise NotImplementedError  # the same point again, or one that says little more
        self.work = MAKERS[implementation](n, k, dtype)
        self.work()

    def time_attention(self, implementation, n, k, dtype):
        self.work()


class ConvMemory:
    """Peak memory of the process in one call, k = 16, float32; the libraries and the compiler are in it."""

    params = (["fast", "paper", "dense", "torch"], [4096, 16_384, 65_536, 262_144])
    param_names = ("implementation", "n")
    timeout = 300
    version = "1"

    def setup(self, implementation, n):
        if n > LONGEST.get(implementation, n):
            raise NotImplementedError
        self.work = MAKERS[implementation](n, 16, "float32")

    def peakmem_attention(self, implementation, n):
        self.work()


class ConvErrors:
    """Worst row error against float64, and the rows recomputed, against the logit deviation."""

    params = ([1.0, 4.0, 8.0, 16.0], ["float32", "float64"])
    param_names = ("deviation", "dtype")
    version = "1"

    def setup(self, deviation, dtype):
        q, keys, v, _ = rope_structured(4096, WIDTH, starts=16, seed=1, deviation=deviation)
        cast = [x.astype(dtype) for x in (q, keys, v)]
        self.out, self.cache = conv_attention_forward(*cast, n_basis=16, probe=PROBE, delta=DELTA)
        self.right = dense_attention(q, keys, v)

    def track_worst_row(self, deviation, dtype):
        return float(row_errors(self.out, self.right).max())

    def track_rows_recomputed(self, deviation, dtype):
        return int(self.cache.rows_recomputed)


def interleaved(cases, repeats):
    """Times of every case, taken in turn, so that what else the machine does meets all of them."""
    times = {name: [] for name in cases}
    for work in cases.values():
        work()
    for _ in range(repeats):
        for name, work in cases.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times, one, other):
    """Ratio of the medians."""
    return float(np.median(times[one]) / np.median(times[other]))


class ConvTargets:
    """What the fast path has to reach, as ratios of interleaved times."""

    timeout = 900
    version = "1"

    def track_torch_over_fast_65536(self):
        times = interleaved({"fast": conv(65_536, 16), "torch": torch_attention(65_536, 16)}, 3)
        return ratio(times, "torch", "fast")

    def track_torch_over_fast_262144_scaled(self):
        times = interleaved({"fast": conv(262_144, 16), "torch": torch_attention(32_768, 16)}, 5)
        return 64 * ratio(times, "torch", "fast")

    def track_fast_over_long_convolution_65536(self):
        return self.over_floor(65_536, 21)

    def track_fast_over_long_convolution_262144(self):
        return self.over_floor(262_144, 9)

    def over_floor(self, n, repeats):
        return ratio(interleaved({"fast": conv(n, 16), "floor": long_convolution(n, 16)}, repeats), "fast", "floor")

    def track_k128_over_k1(self):
        return ratio(interleaved({"128": conv(65_536, 128), "1": conv(65_536, 1)}, 11), "128", "1")

    def track_exponent(self):
        lengths = [8192 << i for i in range(8)]
        times = interleaved({str(n): conv(n, 16) for n in lengths}, 5)
        return float(np.polyfit(np.log(lengths), [np.log(np.median(times[str(n)])) for n in lengths], 1)[0])

    def track_peak_memory_over_v(self):
        n = 1_048_576
        q, keys, v = inputs(n, 16)
        conv(4096, 16)()
        tracemalloc.start()
        out = conv_attention(q, keys, v, n_basis=16, probe=PROBE, delta=DELTA)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (peak - out.nbytes) / v.nbytes

    def track_8_heads_over_8_calls(self):
        q, keys, v = inputs(4096, 8, lead=(8,))
        options = {"n_basis": 8, "probe": PROBE, "delta": DELTA}
        cases = {
            "heads": lambda: conv_attention(q, keys, v, **options),
            "calls": lambda: [conv_attention(q[i], keys[i], v[i], **options) for i in range(8)],
        }
        return ratio(interleaved(cases, 21), "heads", "calls")

    def track_worst_over_dense_up_to_2048(self):
        return max(over_dense(n, k) for n in (256, 512, 1024, 2048) for k in (1, 2, 16, n // 16, n // 4, n - 1, n))


def over_dense(n, k):
    return ratio(interleaved({"fast": conv(n, k, probe=1), "dense": dense(n, k)}, 15), "fast", "dense")


def main():
    """Print every target, with the figure reached; names given as arguments choose some."""
    pools = {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}
    print(f"threads: {thread_count()} of ours, {pools}; float32, d = {WIDTH}", flush=True)
    targets = ConvTargets()
    for name in dir(targets):
        if name.startswith("track_") and all(part in name for part in sys.argv[1:]):
            print(f"{name[6:]:36s} {getattr(targets, name)():8.3f}", flush=True)


if __name__ == "__main__":
    main()
