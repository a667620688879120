"""Many texts that go on from one prompt, in one forward of a decoder: the prompt is computed once (ours).

A row of causal attention depends on no later one. So what a prompt's queries, keys and values are does not depend on
the text behind it, as long as nothing else does either: starts of a conv basis stand at the same columns whatever
follows (`spread`), or are the first ones. Of every text only its own rows are computed, and the linear maps of all
texts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import dense_attention
from refattn.masks import Causal
from refattn.models import Capture, Llama, Scorer, SelectiveAttention
from refattn.models.llama import Attention, Observer

Tokens: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray, int], FloatArray]
"""``rows(q, k, v, m)``: of all queries (h, n, d), keys and values (h_kv, n, d), the output (h, m, d) of the last m."""


def exact_rows(q: FloatArray, k: FloatArray, v: FloatArray, m: int) -> FloatArray:
    """Return the last m rows of exact attention."""
    return dense_attention(q[:, -m:], k, v, mask=Causal("bottom-right"), check_finite=False)


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

    def __init__(self, prompt: Capture, texts: Sequence[slice], rows: Rows) -> None:
        self.prompt, self.texts, self.rows = prompt, texts, rows

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend: the signature of an attention."""
        out = np.empty_like(q)
        for text in self.texts:
            whole = self._whole(layer, text, q, k, v)
            out[:, text] = self.rows(*whole, text.stop - text.start)
        return out

    def _whole(
        self, layer: int, text: slice, q: FloatArray, k: FloatArray, v: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return queries, keys and values of the prompt and a text."""
        before = self.prompt
        return (
            np.concatenate([before.q[layer], q[:, text]], axis=1),
            np.concatenate([before.k[layer], k[:, text]], axis=1),
            np.concatenate([before.v[layer], v[:, text]], axis=1),
        )


class SelectedAfterPrompt(AfterPrompt):
    """The same with SparseK attention, which scores the layer's normalised input."""

    def __init__(self, prompt: Capture, texts: Sequence[slice], scorer: Scorer) -> None:
        super().__init__(prompt, texts, exact_rows)
        self.select = SelectiveAttention(scorer)
        self._input: FloatArray | None = None

    def observe(self, layer: int, a: FloatArray) -> None:
        """Keep the layer's normalised input: the signature of an observer."""
        self._input = a

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend: the signature of an attention."""
        assert self._input is not None
        out = np.empty_like(q)
        for text in self.texts:
            self.select.observe(layer, np.concatenate([self.prompt.inputs[layer], self._input[text]]))
            out[:, text] = self.select(layer, *self._whole(layer, text, q, k, v))[:, text.start - text.stop :]
        return out


def last_hidden(model: Llama, prompt: Tokens, texts: Sequence[Tokens], rows: Rows) -> FloatArray:
    """Return what the logits after the last token of every text are made of, with one attention in every layer."""
    before = Capture(lambda layer, q, k, v: rows(q, k, v, q.shape[-2]))
    model.hidden(prompt, before)
    return _last(model, len(prompt), texts, AfterPrompt(before, _places(texts), rows))


def last_hidden_selected(model: Llama, prompt: Tokens, texts: Sequence[Tokens], scorer: Scorer) -> FloatArray:
    """Return the same with SparseK attention in every layer."""
    select = SelectiveAttention(scorer)
    before = Capture(select)

    def observe(layer: int, a: FloatArray) -> None:
        before.observe(layer, a)
        select.observe(layer, a)

    model.hidden(prompt, before, observe=observe)
    attend = SelectedAfterPrompt(before, _places(texts), scorer)
    return _last(model, len(prompt), texts, attend, attend.observe)


def _places(texts: Sequence[Tokens]) -> list[slice]:
    """Return where the texts stand, one behind the other."""
    return [slice(begin, end) for begin, end in pairwise(np.cumsum([0, *map(len, texts)]).tolist())]


def _last(
    model: Llama, n_prompt: int, texts: Sequence[Tokens], attend: Attention, observe: Observer | None = None
) -> FloatArray:
    """Return the last row of every text, all of them in one forward, each at the positions behind the prompt."""
    positions = np.concatenate([n_prompt + np.arange(len(text)) for text in texts])
    hidden = model.hidden(np.concatenate(texts), attend, observe=observe, positions=positions)
    return np.asarray(hidden[[text.stop - 1 for text in _places(texts)]])
