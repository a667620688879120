"""Many texts that go on from one prompt, in one forward of a decoder: the prompt is computed once (ours).

A row of causal attention depends on no later one. So what a prompt's queries, keys and values are does not depend on
the text behind it, as long as nothing else does either: starts of a conv basis stand at the same columns whatever
follows (`spread`), or are the first ones. Of every text only its own rows are computed, and the linear maps of all
texts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import dense_attention
from refattn.masks import Causal, SlidingWindow
from refattn.models import Capture, GeneratingAttention, Llama, Scorer

Tokens: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray, int], FloatArray]
"""``rows(q, k, v, m)``: of all queries (h, n, d), keys and values (h_kv, n, d), the output (h, m, d) of the last m."""


def exact_rows(q: FloatArray, k: FloatArray, v: FloatArray, m: int) -> FloatArray:
    """Return the last m rows of exact attention."""
    return dense_attention(q[:, -m:], k, v, mask=Causal("bottom-right"), check_finite=False)


def window_rows(window: int, sinks: int) -> Rows:
    """Return a window with sinks."""
    mask = SlidingWindow(window, sinks=sinks, alignment="bottom-right")
    return lambda q, k, v, m: dense_attention(q[:, -m:], k, v, mask=mask, check_finite=False)


def spread(share: float, n: int) -> NDArray[np.int64]:
    """Return the starts below n of a grid whose distance is ``1 / share``; the first column alone for a share of 0.

    >>> spread(0.25, 10), spread(0.75, 7), spread(0.0, 7)
    (array([0, 4, 8]), array([0, 1, 2, 4, 5, 6]), array([0]))
    """
    starts = np.floor(np.arange(math.ceil(share * n)) / share) if share > 0 else np.zeros(1)
    return starts[starts < n].astype(np.int64)


def conv_rows(starts_below: Callable[[int], NDArray[np.int64]]) -> Rows:
    """Return attention by the basis whose kernels are the columns of the logits at the starts below n."""

    def rows(q: FloatArray, k: FloatArray, v: FloatArray, m: int) -> FloatArray:
        logits = conv_logits(q, k, starts_below(q.shape[-2]), m)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        grouped = weights.reshape(len(v), -1, weights.shape[-1])  # the heads that share keys and values, together
        return np.asarray((grouped @ v).reshape(*weights.shape[:2], -1))

    return rows


def conv_logits(q: FloatArray, k: FloatArray, starts: NDArray[np.int64], m: int) -> FloatArray:
    """Return the last m rows of the basis's logits, (h, m, n), −∞ above the diagonal, in O(m n) and O(k n d) a head.

    A column j of the segment that starts at c is the column c moved down: ``H'[i, j] = H[c + i − j, c]``.
    """
    heads, n, d = q.shape
    columns = np.arange(n)
    segment = np.searchsorted(starts, columns, side="right") - 1
    moved = columns - starts[segment]
    first = max(0, n - m - int(moved.max()))  # the first row of H that is looked at
    group = heads // len(k)
    at_starts = k[:, starts].repeat(group, axis=0).swapaxes(-1, -2)
    known = q[:, first:] @ at_starts * q.dtype.type(1 / math.sqrt(d))
    row = np.arange(n - m, n)[:, None]
    place = np.maximum(row - moved - first, 0) * len(starts) + segment
    found = known.reshape(heads, -1).take(place, axis=1)
    found[:, columns > row] = -np.inf
    return np.asarray(found)


class AfterPrompt:
    """An attention of texts that stand one behind the other, each of which sees the prompt and itself."""

    def __init__(self, prompt: Capture, lengths: Sequence[int], rows: Rows) -> None:
        self.prompt, self.lengths, self.rows = prompt, lengths, rows

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend: the signature of an attention."""
        before, after = (self.prompt.q[layer], self.prompt.k[layer], self.prompt.v[layer]), (q, k, v)
        out, end = np.empty_like(q), 0
        for m in self.lengths:
            text = slice(end, end := end + m)
            q_all, k_all, v_all = (
                np.concatenate([one, own[:, text]], axis=1) for one, own in zip(before, after, strict=True)
            )
            out[:, text] = self.rows(q_all, k_all, v_all, m)
        return out


def last_hidden(model: Llama, prompt: Tokens, texts: Sequence[Tokens], rows: Rows) -> FloatArray:
    """Return what the logits after the last token of every text are made of, with one attention in every layer."""
    capture = Capture(lambda layer, q, k, v: rows(q, k, v, q.shape[-2]))
    model.hidden(prompt, capture)
    lengths = [len(text) for text in texts]
    positions = np.concatenate([len(prompt) + np.arange(m) for m in lengths])
    hidden = model.hidden(np.concatenate(texts), AfterPrompt(capture, lengths, rows), positions=positions)
    return np.asarray(hidden[np.cumsum(lengths) - 1])


def last_hidden_selected(model: Llama, prompt: Tokens, texts: Sequence[Tokens], scorer: Scorer) -> FloatArray:
    """Return the same with SparseK attention, one text after the other: its state after the prompt is copied."""
    after = GeneratingAttention(scorer)
    model.hidden(prompt, after, observe=after.observe)
    found = []
    for text in texts:
        attend = deepcopy(after)
        found.append(model.hidden(text, attend, observe=attend.observe, start=len(prompt))[-1])
    return np.stack(found)
