"""End-to-end time against n, every method, forward and training (the papers' figures; methods and inputs ours).

One head of width 64 in float32. Contents are constant within 16 segments and turned by rotary angles, so that the
logits are exactly 16-conv: the input on which conv attention is at home; what the others compute does not depend on it.

    exact       `refattn.dense_attention`, blocked
    torch       PyTorch's scaled_dot_product_attention, if it is installed
    conv        Recover with k = 16, T = 8, and the fast path
    paper       the same by Algorithm 1 as the paper writes it, one FFT product for every segment
    low rank    256 positive random features, causal sums
    SparseK     128 pairs selected and a window of 128

*Training* is the forward and the gradient with respect to q, k and v (SparseK: and the scores). Time is the shortest of
the calls that fit into half a second, at least one after one that is not counted; every method has all the threads.
Quadratic methods stop where a call takes more than some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

import numpy as np
from threadpoolctl import threadpool_limits

from refattn._threads import thread_count
from refattn._timing import shortest_seconds
from refattn._validation import FloatArray
from refattn.convbasis import conv_attention_backward, conv_attention_forward
from refattn.dense import dense_attention_backward, dense_attention_forward
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.lowrank import RandomFeatures, lowrank_attention_backward, lowrank_attention_forward
from refattn.sparsek import sparsek_attention_backward, sparsek_attention_forward
from refattn.testing import rope_structured

SEGMENTS, WIDTH = 16, 64

Call = Callable[[], object]


def _exact(q: FloatArray, k: FloatArray, v: FloatArray, training: bool) -> Call:
    def call() -> object:
        with threadpool_limits(thread_count(), user_api="blas"):
            out, cache = dense_attention_forward(q, k, v)
            return dense_attention_backward(out, cache) if training else out

    return call


def _conv(q: FloatArray, k: FloatArray, v: FloatArray, training: bool, method: str = "fast") -> Call:
    def call() -> object:
        out, cache = conv_attention_forward(q, k, v, n_basis=SEGMENTS, probe=8, delta=1e-3, method=method)
        return conv_attention_backward(out, cache) if training else out

    return call


def _paper(q: FloatArray, k: FloatArray, v: FloatArray, training: bool) -> Call:
    return _conv(q, k, v, training, method="paper")


def _low_rank(q: FloatArray, k: FloatArray, v: FloatArray, training: bool) -> Call:
    features = RandomFeatures(WIDTH, 256, seed=0)

    def call() -> object:
        out, cache = lowrank_attention_forward(q, k, v, features=features)
        return lowrank_attention_backward(out, cache) if training else out

    return call


def _sparsek(q: FloatArray, k: FloatArray, v: FloatArray, training: bool) -> Call:
    scores = np.random.default_rng(0).standard_normal(len(q)).astype(q.dtype)

    def call() -> object:
        out, cache = sparsek_attention_forward(q, k, v, scores, n_select=128, window=128)
        return sparsek_attention_backward(out, cache) if training else out

    return call


def _torch(q: FloatArray, k: FloatArray, v: FloatArray, training: bool) -> Call:
    import torch

    torch.set_num_threads(thread_count())
    leaves = [torch.from_numpy(x)[None, None].requires_grad_(training) for x in (q, k, v)]

    def call() -> object:
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        return torch.autograd.grad(out, leaves, out.detach()) if training else out

    return call


METHODS: Mapping[str, tuple[Callable[[FloatArray, FloatArray, FloatArray, bool], Call], int]] = {
    "exact": (_exact, 8192),
    "torch": (_torch, 16_384),
    "conv": (_conv, 1 << 20),
    "paper": (_paper, 8192),
    "low rank": (_low_rank, 1 << 20),
    "SparseK": (_sparsek, 1 << 20),
}
"""How a call is made, and the longest input it is measured on."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, method and kind of step; those of one length follow each other."""
    return [
        {"n": n, "method": method, "training": training, "seed": 0}
        for n in sizes
        for training in (False, True)
        for method, (_, longest) in METHODS.items()
        if n <= longest
    ]


def run(item: Item) -> list[Record]:
    """Time one method on one length."""
    n, method = item["n"], item["method"]
    if method == "torch" and find_spec("torch") is None:
        return []
    starts = n * np.arange(SEGMENTS) // SEGMENTS
    q, k, v, _ = rope_structured(n, WIDTH, starts=starts, seed=item["seed"])
    single = q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)
    call = METHODS[method][0](*single, item["training"])
    return [{"threads": thread_count(), "seconds": significant(shortest_seconds(call, least=0.5))}]


EXPERIMENT = Experiment(
    name="time-against-n",
    question="How long does attention take end to end, forward and training, as n grows?",
    sizes=(512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536),
    quick_sizes=(256, 1024),
    items=items,
    run=run,
    timed=("seconds",),
)
