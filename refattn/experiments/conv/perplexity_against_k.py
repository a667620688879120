"""What conv attention costs a language model: perplexity against k, every head of every layer replaced (ours).

SmolLM2-135M-Instruct reads the beginnings of essays. In each of its 270 heads exact attention gives way to a k-conv
basis of the logits that the head then has, with

    uniform   k spread columns as starts;
    first     the first k columns: what Recover returns with T = 1 and a tiny δ;
    best      the starts and kernels of least squared error on the logits, among starts n / 256 apart.

What is known to us of the experiments of arXiv 2405.05219, from its authors' public code of May 2024, measures the
error of single heads; whether a later version measures more is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refattn._validation import FloatArray
from refattn.convbasis import ConvBasis, basis_from_starts, best_starts, conv_attention, least_squares_basis
from refattn.experiments.conv.error_against_k import chosen_starts
from refattn.experiments.conv.replaced import SHARES, exact_and, segments
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, essay, model
from refattn.models.llama import Attention, exact_attention

TEXTS = ("useful", "worked")
"""Essays whose beginnings are read."""

CHOICES = {**SHARES, "best": (0.03125, 0.125)}


def conv_in_every_head(starts: str, share: float) -> Attention:
    """Return an attention for `Llama` whose heads have ``k = share · n`` segments, at least 1, with such starts.

    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(16, 4, seed=0, lead=(4,), kv_lead=(2,))
    >>> exact = exact_attention(0, q, k, v)
    >>> bool(np.allclose(conv_in_every_head("uniform", 1.0)(0, q, k, v), exact))
    True
    """

    def attend(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        group = len(q) // len(k)
        places = [(q[head], k[head // group], v[head // group]) for head in range(len(q))]
        return np.stack([conv_attention(*one, basis=_basis(*one[:2], starts, share)) for one in places])

    return attend


def _basis(q: FloatArray, k: FloatArray, starts: str, share: float) -> ConvBasis:
    n = len(q)
    count = segments(share, n)
    if starts != "best":
        return basis_from_starts(q, k, chosen_starts(starts, n, count))
    best = best_starts(q, k, count, grid=max(1, n // 256))
    return least_squares_basis(q, k, best.starts[count - 1])


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, text, choice of starts and k."""
    return [{"n": n, "text": text, **choice} for n in sizes for text in TEXTS for choice in exact_and(CHOICES)]


def run(item: Item) -> list[Record]:
    """Read one text with one attention."""
    n, share = item["n"], item["share"]
    attention = exact_attention if share is None else conv_in_every_head(item["starts"], share)
    perplexity = model().perplexity(essay(item["text"])[:n], attention)
    return [{"k": share and segments(share, n), "perplexity": significant(perplexity, 6)}]


EXPERIMENT = Experiment(
    name="perplexity-against-k",
    question="What does a language model lose when every head works with a k-conv basis?",
    sizes=(2048,),
    quick_sizes=(128,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
