"""Conv attention without a mask inside a real bidirectional encoder: error against k, layer by layer.

The paper's method for full attention takes two bases: of the logits on and below the diagonal, and of those above it,
transposed (arXiv 2405.05219, section 4); whether a real encoder's heads have such bases with a small k it leaves open.
Here every head of every layer of an encoder gets the two bases with k given starts, and its output is compared with
exact attention's on the same queries, keys and values. The error is that of the representation: it is computed densely,
and rounding plays no part in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts
from refattn.dense import dense_attention
from refattn.experiments.error_against_k import STARTS, chosen_starts
from refattn.models.encoder import Encoder, encoder_tokenizer, exact_full_attention
from refattn.models.llama import Attention, Capture
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
    """Full attention of one head with the logits of the two bases that have the given starts, densely.

    Parameters
    ----------
    q, k, v : ndarray, shape (n, d)
        Of one head.
    starts : ndarray of int, shape (s,)
        First columns of the segments, for the lower and for the transposed upper triangle.

    Returns
    -------
    ndarray, shape (n, d)
        The output; O(n² d).

    Examples
    --------
    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(16, 4, seed=0)
    >>> out = represented_full_attention(q, k, v, np.arange(16))
    >>> bool(np.allclose(out, dense_attention(q, k, v, mask="full")))
    True
    """
    lower = basis_from_starts(q, k, starts).to_dense()
    upper = basis_from_starts(k, q, starts).to_dense().T
    nothing = np.zeros((q.shape[0], 1), q.dtype)
    return dense_attention(nothing, nothing, v, mask=("full", np.tril(lower) + np.triu(upper, 1)))


def conv_full_attention(kind: str, share: float) -> Attention:
    """Return an attention for `Encoder` whose heads have ``k = share · n`` segments with starts of the kind.

    Parameters
    ----------
    kind : {"first", "uniform"}
        Which starts.
    share : float
        k over n, above 0 and at most 1; k is at least 1.

    Returns
    -------
    callable
        ``attention(layer, q, k, v) -> out``.
    """

    def attend(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        starts = chosen_starts(kind, q.shape[-2], max(1, round(share * q.shape[-2])))
        heads = [represented_full_attention(*head, starts) for head in zip(q, k, v, strict=True)]
        return np.stack(heads)

    return attend


def error_by_layer(model: Encoder, tokens: ArrayLike, counts: Iterable[int]) -> Iterator[LayerRecord]:
    """Yield the errors of every layer's heads, each with the inputs it has in the exact model.

    Parameters
    ----------
    model : Encoder
        The encoder.
    tokens : array_like of int, shape (n,)
        One text.
    counts : iterable of int
        Numbers of segments k, each at most n.

    Yields
    ------
    LayerRecord
        Mean and worst of ``‖Y − Ỹ‖_F / ‖Y‖_F`` over the heads. O(n² d) a head.
    """
    counts = tuple(counts)
    capture = Capture(exact_full_attention)
    model(tokens, capture)
    for layer in range(model.config.n_layers):
        q, k, v = capture.q[layer], capture.k[layer], capture.v[layer]
        exact = dense_attention(q, k, v, mask="full")
        for kind in STARTS:
            for count in counts:
                approximate = conv_full_attention(kind, count / q.shape[-2])(layer, q, k, v)
                errors = [relative_error(*pair) for pair in zip(approximate, exact, strict=True)]
                yield LayerRecord(layer, kind, count, float(np.mean(errors)), max(errors))


def error_of_output(model: Encoder, tokens: ArrayLike, kind: str, share: float) -> float:
    """Return the relative error of the encoder's output with every head replaced, ``‖X − X̃‖_F / ‖X‖_F``."""
    return relative_error(model(tokens, conv_full_attention(kind, share)), model(tokens))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the errors of MiniLM-L6 reading Shakespeare."""
    parser = argparse.ArgumentParser(prog="python -m refattn.experiments.full_attention", description=__doc__)
    parser.add_argument("--tokens", type=int, default=512, help="length of the text, at most 512")
    n: int = parser.parse_args(arguments).tokens
    model = Encoder.from_folder(minilm_folder(), dtype=np.float64)
    tokens = encoder_tokenizer(minilm_folder()).encode(shakespeare_text("hamlet_gut")[: 20 * n]).ids[:n]
    print(f"n = {len(tokens)}; relative error of the heads' outputs, mean and worst of a layer")
    for record in error_by_layer(model, tokens, [max(1, len(tokens) * share // 64) for share in (1, 4, 16, 32, 64)]):
        print(f"layer {record.layer}  {record.starts:7}  k = {record.k:3}  {record.mean:9.2e}  {record.worst:9.2e}")
    for kind in STARTS:
        for share in (0.25, 0.5, 1.0):
            error = error_of_output(model, tokens, kind, share)
            print(f"all layers replaced  {kind:7}  k = {share:4} n  error of the encoder's output {error:9.2e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
