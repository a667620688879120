"""Conv-Basis training: forward, both backwards, dense and PyTorch, and the targets as ratios of interleaved times.

Two threads for everything, RoPE-structured input, recover included; compilation and planning happen in the first,
unmeasured call.
"""

import tracemalloc

import numpy as np

from refattn import (
    conv_attention_backward,
    conv_attention_forward,
    dense_attention_backward,
    dense_attention_forward,
)

from .conv import DELTA, PROBE, THREADS, conv, inputs, interleaved, ratio


def fast(n, k, gradient, dtype="float32"):
    """Forward and backward of conv attention."""
    q, keys, v = inputs(n, k, dtype)
    upstream = np.ones_like(v)

    def step():
        _, cache = conv_attention_forward(q, keys, v, n_basis=k, probe=min(PROBE, n), delta=DELTA)
        return conv_attention_backward(upstream, cache, gradient=gradient)

    return step


def dense(n, k, dtype="float32"):
    """Forward and backward of exact attention."""
    q, keys, v = inputs(n, k, dtype)
    upstream = np.ones_like(v)
    return lambda: dense_attention_backward(upstream, dense_attention_forward(q, keys, v)[1])


def torch_step(n, k, dtype="float32"):
    """Forward and backward of PyTorch's attention."""
    try:
        import torch
    except ImportError:
        raise NotImplementedError from None
    torch.set_num_threads(THREADS)
    leaves = [torch.from_numpy(x)[None, None].requires_grad_() for x in inputs(n, k, dtype)]
    upstream = torch.ones_like(leaves[2])

    def step():
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        return torch.autograd.grad(out, leaves, upstream)

    return step


STEPS = {
    "approximation": lambda n, k, dtype: fast(n, k, "approximation", dtype),
    "attention": lambda n, k, dtype: fast(n, k, "attention", dtype),
    "dense": dense,
    "torch": torch_step,
}


class ConvStep:
    """Seconds of a forward and a backward, by implementation."""

    params = (list(STEPS), [1024, 4096, 16_384], [4, 16], ["float32", "float64"])
    param_names = ("implementation", "n", "k", "dtype")
    timeout = 300
    version = "2"

    def setup(self, implementation, n, k, dtype):
        if implementation in ("dense", "torch") and (n > 4096 or k != 16):
            raise NotImplementedError  # quadratic: minutes; or the same point again
        if dtype == "float64" and k != 16:
            raise NotImplementedError  # says little more
        self.step = STEPS[implementation](n, k, dtype)
        self.step()

    def time_step(self, implementation, n, k, dtype):
        self.step()


class ConvStepMemory:
    """Peak memory of the process in one step, k = 16, float32; the libraries and the compiler are in it."""

    params = (list(STEPS), [4096, 16_384])
    param_names = ("implementation", "n")
    timeout = 300
    version = "1"

    def setup(self, implementation, n):
        if implementation in ("dense", "torch") and n > 4096:
            raise NotImplementedError
        self.step = STEPS[implementation](n, 16, "float32")

    def peakmem_step(self, implementation, n):
        self.step()


class TrainingTargets:
    """What the backward has to reach."""

    timeout = 900
    version = "1"

    def track_step_over_forward_65536(self):
        cases = {"step": fast(65_536, 16, "approximation"), "forward": conv(65_536, 16)}
        return ratio(interleaved(cases, 9), "step", "forward")

    def track_torch_over_step_65536(self):
        cases = {"step": fast(65_536, 16, "approximation"), "torch": torch_step(65_536, 16)}
        return ratio(interleaved(cases, 2), "torch", "step")

    def track_exponent_of_attention_gradient(self):
        lengths = [4096 << i for i in range(5)]
        times = interleaved({str(n): fast(n, 16, "attention") for n in lengths}, 2)
        return float(np.polyfit(np.log(lengths), [np.log(np.median(times[str(n)])) for n in lengths], 1)[0])

    def track_length_where_attention_gradient_overtakes_torch(self):
        """By the fitted powers of n."""
        lengths = [4096, 8192, 16_384]
        cases = {f"fast {n}": fast(n, 16, "attention") for n in lengths}
        cases |= {f"torch {n}": torch_step(n, 16) for n in lengths}
        times = interleaved(cases, 3)
        fits = [
            np.polyfit(np.log(lengths), [np.log(np.median(times[f"{name} {n}"])) for n in lengths], 1)
            for name in ("fast", "torch")
        ]
        (a, b), (c, d) = fits
        return float(np.exp((b - d) / (c - a)))

    def track_peak_memory_over_v_262144(self):
        step = fast(262_144, 16, "approximation")
        step()
        tracemalloc.start()
        gradients = step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (peak - 4 * gradients.v.nbytes) / gradients.v.nbytes
