"""Short heads are worked on together: no bit of one depends on those beside it, however hostile they are.

It would catch a threshold, a scaling, a choice of pairs or a judgement taken over a whole stack of heads.
"""

import numpy as np
import pytest

from refattn.models import LinearAttention
from refattn.sparsek import sparsek_attention_backward, sparsek_attention_forward

SIZES = [(5, 1, 3, 2), (130, 17, 5, 7), (3, 128, 33, 1), (3, 129, 8, 8)]


def arrays(heads, n, d, d_v, dtype, neighbour):
    """Return q, k, v, upstream gradient and scores; the first head, or all, are not ordinary."""
    rng = np.random.default_rng(n)
    q, k = rng.standard_normal((2, heads, n, d))
    v, g = rng.standard_normal((2, heads, n, d_v))
    scores = rng.standard_normal((heads, n))
    if neighbour == "zeros":
        q[0], v[0], g[0], scores[0] = 0, 0, 0, 0
    elif neighbour == "tiny":
        v[0], g[0] = 1e-30 * v[0], 1e-30 * g[0]
    elif neighbour == "huge":
        v[0], g[0] = 1e15 * v[0], 1e15 * g[0]
    else:
        v, g = (x * 10.0 ** rng.uniform(-12, 12, x.shape) for x in (v, g))
    return [x.astype(dtype) for x in (q, k, v, g, scores)]


def linear(features):
    def run(q, k, v, g, scores):
        attention = LinearAttention(features)
        out, cache = attention.forward(0, q, k, v)
        found = attention.backward(g, cache)
        return [out, found.q, found.k, found.v]

    return run


def sparsek(n_select, window, gate):
    def run(q, k, v, g, scores):
        out, cache = sparsek_attention_forward(q, k, v, scores, n_select=n_select, window=window, gate=gate)
        return [out, *sparsek_attention_backward(g, cache)]

    return run


RUNS = {
    "linear": linear("elu"),
    "random features": linear("random"),
    "sparsek": sparsek(4, 4, "kv"),
    "window": sparsek(0, 5, "none"),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("neighbour", ["zeros", "tiny", "huge", "decades"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RUNS)
def test_a_head_has_the_bits_that_it_has_alone(name, dtype, neighbour, size):
    whole = arrays(*size, dtype, neighbour)
    together = RUNS[name](*whole)
    for head in sorted({0, 1, size[0] - 1}):
        alone = RUNS[name](*(x[head : head + 1] for x in whole))
        assert [x[head].tobytes() for x in together] == [x[0].tobytes() for x in alone]
