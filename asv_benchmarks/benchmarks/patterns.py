"""Attention to given pairs beside exact causal attention: forward with backward, float32, d = 64, two threads."""

import numpy as np

from refattn import dense_attention_backward, dense_attention_forward
from refattn._threads import set_thread_count
from refattn.patterns import (
    fixed_indices,
    hashed_indices,
    indexed_attention_backward,
    indexed_attention_forward,
    random_block_indices,
    routed_indices,
    strided_indices,
)

WIDTH = 64
LENGTHS = [1024, 4096, 16_384]
LISTS = {
    "strided": lambda q: strided_indices(len(q), 64),
    "fixed": lambda q: fixed_indices(len(q), 64),
    "random blocks": lambda q: random_block_indices(len(q), 16, n_window=3, n_random=3, n_global=2)[0],
    "hashing": lambda q: hashed_indices(q, n_buckets=len(q) // 64, chunk=32),
    "routing": lambda q: routed_indices(q, n_clusters=len(q) // 64, members=64),
}


PATTERNS = ["exact", *LISTS]


class Listed:
    """Lists made and attended to, by pattern; ``exact`` is `dense_attention`."""

    params = (PATTERNS, LENGTHS)
    param_names = ("pattern", "n")
    timeout = 300

    def setup(self, pattern, n):
        set_thread_count(2)
        rng = np.random.default_rng(0)
        self.q, self.k, self.v, self.dout = (rng.standard_normal((n, WIDTH), dtype=np.float32) for _ in range(4))
        self.time_forward_and_backward(pattern, n)

    def teardown(self, pattern, n):
        set_thread_count(None)

    def time_forward_and_backward(self, pattern, n):
        if pattern == "exact":
            _, cache = dense_attention_forward(self.q, self.k, self.v)
            dense_attention_backward(self.dout, cache)
        else:
            _, cache = indexed_attention_forward(self.q, self.k, self.v, LISTS[pattern](self.q))
            indexed_attention_backward(self.dout, cache)
