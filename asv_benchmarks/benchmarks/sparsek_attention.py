"""SparseK attention in linear time and its generation cache: PyTorch's causal attention as the peer.

float32, d = 64, 128 pairs selected and a window of 128, two threads. Ratios are of times taken in turns in one run.
"""

import tracemalloc
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn._threads import set_thread_count
from refattn.sparsek import (
    SparseKCache,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
)
from refattn.testing import relative_error, row_errors

from .timing import in_turns

try:
    import torch
except ImportError:
    torch = None

THREADS, WIDTH = 2, 64
OPTIONS = {"n_select": 128, "window": 128}
LENGTHS = [8192, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576]


def arrays(n, dtype=np.float32, kind="random"):
    """Seeded q, k, v, upstream gradient (n, WIDTH), and scores: independent, or drifting so that every pair enters."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((n, WIDTH), dtype=np.float32).astype(dtype) for _ in range(4))
    scores = rng.standard_normal(n) + (0.01 * np.arange(n) if kind == "drifting" else 0)
    return {"q": q, "k": k, "v": v, "scores": scores.astype(dtype)}, dout


class Refattn:
    """Forward, and forward with backward."""

    def __init__(self, n, kind="random"):
        self.inputs, self.dout = arrays(n, kind=kind)

    def forward(self):
        return sparsek_attention(**self.inputs, **OPTIONS)

    def both(self):
        _, cache = sparsek_attention_forward(**self.inputs, **OPTIONS)
        return sparsek_attention_backward(self.dout, cache)


class Torch:
    """PyTorch's `scaled_dot_product_attention`, and its autograd."""

    def __init__(self, n):
        if torch is None:
            raise NotImplementedError("torch is not installed")
        torch.set_num_threads(THREADS)
        inputs, dout = arrays(n)
        self.leaves = [torch.from_numpy(inputs[name])[None, None] for name in "qkv"]
        self.dout = torch.from_numpy(dout)[None, None]

    def forward(self):
        return torch.nn.functional.scaled_dot_product_attention(*self.leaves, is_causal=True)

    def both(self):
        for leaf in self.leaves:
            leaf.requires_grad_(True).grad = None
        self.forward().backward(self.dout)
        for leaf in self.leaves:
            leaf.requires_grad_(False)


def warm():
    """Compile, and start the threads; return the seconds of the first call."""
    set_thread_count(THREADS)
    begun = perf_counter()
    Refattn(4096).both()
    return perf_counter() - begun


class Dense(Refattn):
    """Exact attention of ours, which has no scores."""

    def forward(self):
        return dense_attention(*(self.inputs[name] for name in "qkv"))

    def both(self):
        _, cache = dense_attention_forward(*(self.inputs[name] for name in "qkv"))
        return dense_attention_backward(self.dout, cache)


IMPLEMENTATIONS = {
    "fast": Refattn,
    "fast, drifting scores": lambda n: Refattn(n, "drifting"),
    "dense": Dense,
    "torch": Torch,
}
LONGEST = {"dense": 8192, "torch": 16_384}


class SparseKAttention:
    """Seconds of a call against n, beside exact attention."""

    params = (list(IMPLEMENTATIONS), [1024, 4096, 8192, 16_384, 65_536, 262_144])
    param_names = ("implementation", "n")
    timeout = 300
    version = "2"

    def setup(self, implementation, n):
        if n > LONGEST.get(implementation, n):
            raise NotImplementedError  # quadratic: too slow to be worth a point
        set_thread_count(THREADS)
        self._limits = threadpool_limits(THREADS)
        self.work = IMPLEMENTATIONS[implementation](n)
        self.work.both()

    def teardown(self, implementation, n):
        self._limits.restore_original_limits()

    def time_forward(self, implementation, n):
        self.work.forward()

    def time_both(self, implementation, n):
        self.work.both()

    time_forward.version = time_both.version = version


class SparseKAttentionTargets:
    """What the fast path has to reach: ratios of PyTorch's time to ours, of the least times and of the medians."""

    params = (["min", "median"],)
    param_names = ("over_rounds",)
    timeout = 1200
    version = "1"

    def setup(self, over):
        warm()
        self._limits = threadpool_limits(THREADS)
        self._over = {"min": np.min, "median": np.median}[over]

    def teardown(self, over):
        self._limits.restore_original_limits()

    def _ratio(self, n, n_torch, call, rounds):
        ours, theirs = getattr(Refattn(n), call), getattr(Torch(n_torch), call)
        ours()
        mine, peer = self._over(in_turns([ours, theirs], rounds), axis=0)
        return peer * (n / n_torch) ** 2 / mine

    def track_forward_65536(self, over):
        return self._ratio(65_536, 65_536, "forward", 3)

    def track_both_65536(self, over):
        return self._ratio(65_536, 65_536, "both", 3)

    def track_forward_262144(self, over):
        return self._ratio(262_144, 32_768, "forward", 5)

    def track_exponent_forward(self, over):
        return self._exponent("forward")

    def track_exponent_both(self, over):
        return self._exponent("both")

    def _exponent(self, call):
        calls = [getattr(Refattn(n), call) for n in LENGTHS]
        in_turns(calls, 1)
        return np.polyfit(np.log(LENGTHS), np.log(self._over(in_turns(calls, 5), axis=0)), 1)[0]

    for benchmark in (track_forward_65536, track_both_65536, track_forward_262144):
        benchmark.unit = "times faster than PyTorch"
    for benchmark in (track_exponent_forward, track_exponent_both):
        benchmark.unit = "exponent of n"
    del benchmark


class SparseKAttentionMemory:
    """Peak of what is allocated in a call, inputs and results taken off, in multiples of V; and of the process."""

    params = (["forward", "both"], [65_536, 262_144])
    param_names = ("call", "n")
    version = "1"

    def setup(self, call, n):
        warm()

    def track_peak(self, call, n):
        inputs, dout = arrays(n)
        tracemalloc.start()
        result, cache = sparsek_attention_forward(**inputs, **OPTIONS)
        results = result.nbytes
        if call == "both":
            results += sum(gradient.nbytes for gradient in sparsek_attention_backward(dout, cache))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (peak - results) / inputs["v"].nbytes

    def peakmem_process(self, call, n):
        getattr(Refattn(n), call)()

    track_peak.unit = "times V"
    peakmem_process.version = version


class SparseKAttentionErrors:
    """Against the paper's method in float64; in float32, a row's error to the plain dense
    computation's in that row, or its median if that is larger."""

    params = (["float64 against paper", "float32 against plain dense"],)
    param_names = ("error",)
    version = "1"

    def track_error(self, kind):
        runs = {}
        wide = kind.startswith("float64")
        for name, method, dtype in (
            ("ours", "fast", np.float64 if wide else np.float32),
            ("peer", "oracle", np.float32),
            ("right", "paper" if wide else "oracle", np.float64),
        ):
            inputs, dout = arrays(700)
            inputs = {key: array.astype(dtype) for key, array in inputs.items()}
            out, cache = sparsek_attention_forward(**inputs, **OPTIONS, method=method)
            runs[name] = (out, *sparsek_attention_backward(dout.astype(dtype), cache))
        if wide:
            return max(relative_error(a, b) for a, b in zip(runs["ours"], runs["right"], strict=True))
        rows = {
            name: [row_errors(a, b) for a, b in zip(runs[name][:4], runs["right"][:4], strict=True)] for name in runs
        }
        return max(float(a.max() / b.max()) for a, b in zip(rows["ours"], rows["peer"], strict=True))


class SparseKGeneration:
    """One step of the cache after n tokens: seconds, bytes, and the ratio of both to those after 1,000."""

    params = ([1000, 10_000, 100_000],)
    param_names = ("position",)
    version = "1"

    def setup(self, position):
        warm()
        self.inputs, _ = arrays(position + 1)
        self.cache = self.filled(position)

    def filled(self, position):
        cache = SparseKCache(**OPTIONS)
        cache.prefill(*(self.inputs[name][:position] for name in ("q", "k", "v", "scores")))
        return cache

    def step(self, cache):
        return cache.step(*(self.inputs[name][-1] for name in ("q", "k", "v", "scores")))

    def time_step(self, position):
        self.step(self.cache)

    def track_time_ratio(self, position):
        early = self.filled(1000)
        times = in_turns([lambda: self.step(early), lambda: self.step(self.cache)], 4000)
        return np.divide(*np.median(times[500:], axis=0)[::-1])

    def track_bytes_ratio(self, position):
        return self.cache.nbytes / self.filled(1000).nbytes

    track_time_ratio.unit = track_bytes_ratio.unit = "times position 1,000"
