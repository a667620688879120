"""Exact attention, forward and backward: time and peak memory against n, with PyTorch as the peer."""

import numpy as np
from threadpoolctl import threadpool_limits

from refattn import dense_attention, dense_attention_backward, dense_attention_forward

try:
    import torch
except ImportError:
    torch = None

HEADS, WIDTH, THREADS = 4, 64, 1


def arrays(n, dtype):
    """Seeded q, k, v and upstream gradient, shape (4, HEADS, n, WIDTH)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, HEADS, n, WIDTH), dtype=dtype)


class Refattn:
    """Our forward, and forward with backward."""

    def __init__(self, n, dtype):
        self.q, self.k, self.v, self.dout = arrays(n, dtype)

    def forward(self):
        return dense_attention(self.q, self.k, self.v)

    def backward(self):
        _, cache = dense_attention_forward(self.q, self.k, self.v)
        return dense_attention_backward(self.dout, cache)


class Torch:
    """PyTorch's `scaled_dot_product_attention`, and its autograd."""

    def __init__(self, n, dtype):
        if torch is None:
            raise NotImplementedError("torch is not installed")
        torch.set_num_threads(THREADS)
        self.q, self.k, self.v, self.dout = (torch.from_numpy(a)[None] for a in arrays(n, dtype))

    def forward(self):
        return torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True)

    def backward(self):
        for leaf in (self.q, self.k, self.v):
            leaf.requires_grad_(True).grad = None
        self.forward().backward(self.dout)
        return tuple(leaf.grad for leaf in (self.q, self.k, self.v))


class Dense:
    """Causal attention of 4 heads of width 64 on one thread."""

    params = ([256, 1024, 4096], ["float32", "float64"], ["refattn", "torch"])
    param_names = ("n", "dtype", "implementation")
    timeout = 300
    version = "1"

    def setup(self, n, dtype, implementation):
        self._limits = threadpool_limits(THREADS)
        self.work = {"refattn": Refattn, "torch": Torch}[implementation](n, dtype)

    def teardown(self, n, dtype, implementation):
        self._limits.restore_original_limits()


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
