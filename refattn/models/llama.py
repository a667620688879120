"""A decoder of the Llama family in NumPy, with a pluggable attention.

With x the residual stream, shape (n, width), a layer computes

    x ← x + O · attention(R Q a, R K a, V a)        a = rms(x) ∘ g_attn
    x ← x + W_down (silu(W_gate b) ∘ W_up b)        b = rms(x) ∘ g_ffn

(Touvron et al. 2023, arXiv 2302.13971), where ``rms(x) = x / √(mean x² + ε)`` over the width (Zhang and Sennrich 2019),
``silu(x) = x / (1 + exp(−x))`` (Shazeer 2020) and R turns query and key at position p, a pair of neighbours
``(x_2i, x_2i+1)`` at a time, by the angle ``p · base^(−2i/d)`` (Su et al. 2021). The pairs are neighbours because GGUF
files store the rows of Q and K so; the layout ``(x_i, x_i+d/2)`` of other libraries is a permutation of the same.
Several query heads may share one key-value head (Ainslie et al. 2023).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refattn._validation import FloatArray, as_array, as_count, outside_stacklevel, require_kind
from refattn.models._blocks import Attention as Attention
from refattn.models._blocks import Transformer, begin
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.exact import exact_attention as exact_attention
from refattn.models.attentions.protocol import DifferentiableAttention, own_shapes
from refattn.models.config import LlamaConfig
from refattn.models.layers.attention_block import attention_block_forward, projected
from refattn.models.layers.embedding import embedding_forward
from refattn.models.layers.feed_forward_block import feed_forward_block_forward
from refattn.models.layers.named import named_norm_forward, within
from refattn.models.layers.products import products
from refattn.models.layers.rotary import ComplexArray, rotation_at
from refattn.models.weights import GGUFFile, read_gguf

Observer: TypeAlias = Callable[[int, FloatArray], None]
"""``observe(layer, a)``: sees the normalised input a, shape (n, width), that q, k and v of the layer are made from."""

_LOGIT_ROWS = 128
"""Rows of logits held at once where not all are wanted: 25 MB of float32 for a vocabulary of 49,152."""


class Llama(Transformer):
    """A decoder: tokens in, logits of the next token out, with any attention in between.

    Parameters
    ----------
    config : LlamaConfig
        Its numbers.
    weights : mapping from str to array_like
        The tensors `LlamaConfig.tensor_shapes` names, ``output.weight`` if logits do not use the embedding, no others.
    dtype : {float32, float64}, optional
        Of the weights held and of every computation.
    attention : DifferentiableAttention, optional
        What it computes where a call names no other; the parameters it has of its own are among the weights, as those
        of a `refattn.models.Decoder` are. Exact attention by default.

    Raises
    ------
    TypeError
        `dtype` is neither float32 nor float64, or `attention` is no such object.
    ValueError
        A tensor is missing, has another shape, is not finite, or is none of the model's.

    Notes
    -----
    A forward takes O(layers · (n width ffn_width + attention)). The model holds read-only copies of the weights.
    Source: arXiv 2302.13971 (LLaMA).

    Examples
    --------
    >>> config = LlamaConfig(n_layers=2, width=8, ffn_width=12, vocab_size=10, n_heads=4, n_kv_heads=2, head_width=2,
    ...                      context_length=64, rope_base=1e4, norm_eps=1e-5)
    >>> rng = np.random.default_rng(0)
    >>> model = Llama(config, {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()})
    >>> model([3, 1, 4, 1, 5]).shape
    (5, 10)
    >>> nowhere = model.hidden([3, 1, 4, 1, 5], positions=[0, 0, 0, 0, 0])
    >>> bool(np.allclose(nowhere[0], model.hidden([3])[0]))  # the first token's position is 0 in both
    True
    """

    config: LlamaConfig

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, ArrayLike],
        *,
        dtype: DTypeLike = np.float32,
        attention: DifferentiableAttention | None = None,
    ) -> None:
        self.attention = ExactAttention() if attention is None else attention
        require_kind("attention", self.attention, DifferentiableAttention, "refattn.models")

        def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
            yield from config._shapes()
            if "output.weight" in weights:
                yield "output.weight", (config.vocab_size, config.width)
            yield from own_shapes(self.attention, config).items()

        super().__init__(config, shapes, weights, dtype)

    @classmethod
    def from_gguf(cls, source: str | os.PathLike[str] | GGUFFile, *, dtype: DTypeLike = np.float32) -> Llama:
        """Read a model from a GGUF file, whatever its quantisation.

        Parameters
        ----------
        source : path or GGUFFile
            The file.
        dtype : {float32, float64}, optional
            As for `Llama`.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged, of another architecture, its tensors do not fit its metadata, or it has a tensor or a
            key that this decoder does not compute with (biases, norms of queries and keys, a window, experts, …).
        """
        file = read_gguf(source)
        config = LlamaConfig.from_gguf(file)
        try:
            return cls(config, file.tensors(), dtype=dtype)
        except ValueError as error:
            told = str(error)
            raise ValueError(told if told.startswith(f"{file.path}: ") else f"{file.path}: {told}") from None

    def hidden(
        self,
        tokens: ArrayLike,
        attention: Attention | None = None,
        *,
        observe: Observer | None = None,
        start: int = 0,
        positions: ArrayLike | None = None,
    ) -> FloatArray:
        """Run the layers and the last norm.

        Parameters
        ----------
        tokens : array_like of int, shape (n,)
            Token numbers, each below ``config.vocab_size``.
        attention : callable, optional
            ``attention(layer, q, k, v) -> out`` with q and out (n_heads, n, d), k and v (n_kv_heads, n, d), rotary
            positions applied; the model's own by default. Its arguments are read-only. If it has a method
            ``begin(start)``, that is called before the first layer.
        observe : callable, optional
            ``observe(layer, a)``, called before each layer's attention with the normalised input a, shape (n, width),
            which is read-only.
        start : int, optional
            Position of the first token, for an attention that remembers the tokens before it; at least 0.
        positions : array_like of int, shape (n,), optional
            Rotary position of every token, at least 0; ``start … start + n − 1`` by default. Who may attend to whom is
            the order of the tokens, whatever they are.

        Returns
        -------
        ndarray, shape (n, width)
            What `logits` turns into logits, row by row.

        Raises
        ------
        TypeError, ValueError
            Tokens or positions are not whole numbers in range, one of each, or the attention's output has another shape
            than q.

        Warns
        -----
        UserWarning
            A position is beyond those that the model was trained on.
        """
        for x in self.streams(tokens, attention, observe=observe, start=start, positions=positions):
            last = x
        return named_norm_forward(last, self.weights, "output_norm", float(self._norm_eps))[0]

    def projections(self, layer: int, a: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return q, k and v of a layer, rotary positions applied, as its attention gets them.

        Parameters
        ----------
        layer : int
            The layer.
        a : ndarray, shape (n, width)
            Its normalised input, such as `Capture.inputs` holds, from the first position on.

        Returns
        -------
        q : ndarray, shape (n_heads, n, d)
            Queries.
        k, v : ndarray, shape (n_kv_heads, n, d)
            Keys and values.
        """
        return projected(a, self._layer(layer), self.config.head_width, self._rotation(0, len(a)))[0]

    def logits(self, hidden: FloatArray) -> FloatArray:
        """Turn rows of `hidden` into logits of the next token, shape (m, vocab_size).

        Parameters
        ----------
        hidden : ndarray, shape (m, width)
            From `hidden`.
        """
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return products((hidden, head.T))[0]

    def forward(
        self, tokens: ArrayLike, attention: Attention | None = None, *, observe: Observer | None = None
    ) -> FloatArray:
        """Return the logits of the token after each position, shape (n, vocab_size).

        Errors and warnings are those of `hidden`. All the logits are held in memory: 200 KB a token with
        SmolLM2's vocabulary in float32. `perplexity` holds a few rows at a time.

        Parameters
        ----------
        tokens, attention, observe : array_like of int, callable, callable
            As for `hidden`.
        """
        return self.logits(self.hidden(tokens, attention, observe=observe))

    __call__ = forward

    def perplexity(
        self, tokens: ArrayLike, attention: Attention | None = None, *, observe: Observer | None = None
    ) -> float:
        """Return ``exp(−mean log p(token_t | tokens before t))`` over all tokens but the first.

        Errors and warnings are those of `hidden`; at least two tokens are needed.

        Parameters
        ----------
        tokens, attention, observe : array_like of int, callable, callable
            As for `hidden`.
        """
        return math.exp(float(self.losses(tokens, attention, observe=observe).mean()))

    def losses(
        self, tokens: ArrayLike, attention: Attention | None = None, *, observe: Observer | None = None
    ) -> NDArray[np.float64]:
        """Return ``−log p(token_t | tokens before t)`` of every token but the first, shape (n − 1,).

        Errors and warnings are those of `hidden`; at least two tokens are needed.

        Parameters
        ----------
        tokens, attention, observe : array_like of int, callable, callable
            As for `hidden`.
        """
        tokens = self._checked(tokens, least=2)
        hidden = self.hidden(tokens, attention, observe=observe)[:-1]
        losses = np.empty(len(hidden))
        for start in range(0, len(hidden), _LOGIT_ROWS):
            logits = self.logits(hidden[start : start + _LOGIT_ROWS])
            top = logits.max(axis=1, keepdims=True)
            log_sum_exp = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64)) + top[:, 0]
            target = tokens[start + 1 : start + 1 + len(logits)]
            losses[start : start + len(logits)] = log_sum_exp - logits[np.arange(len(logits)), target]
        return losses

    def streams(
        self,
        tokens: ArrayLike,
        attention: Attention | None = None,
        *,
        observe: Observer | None = None,
        start: int = 0,
        positions: ArrayLike | None = None,
    ) -> Iterator[FloatArray]:
        """Yield the residual stream, shape (n, width), as it enters every layer, and as it leaves the last.

        Errors and warnings are those of `hidden`, at the first step.

        Parameters
        ----------
        tokens, attention, observe, start, positions : array_like of int, callable, callable, int, array_like of int
            As for `hidden`.

        Yields
        ------
        ndarray, shape (n, width)
            Of each layer, before its norm; one more at the end.
        """
        tokens = self._checked(tokens)
        attend = self.attention if attention is None else attention
        begin(attend, start)
        eps = float(self._norm_eps)
        turn = self._rotation(as_count("start", start, least=0), len(tokens), positions)
        x, _ = embedding_forward(tokens, self.weights["token_embd.weight"])
        for layer in range(self.config.n_layers):
            yield x
            tensors = self._layer(layer)
            shown = partial(self._shown, layer, attend, observe)
            x, _ = attention_block_forward(x, tensors, eps, self.config.head_width, turn, shown)
            x, _ = feed_forward_block_forward(x, tensors, eps)
        yield x

    def _shown(
        self,
        layer: int,
        attend: Attention,
        observe: Observer | None,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray,
    ) -> tuple[FloatArray, None]:
        """Show a layer's normalised input to the observer, and attend."""
        if observe is not None:
            observe(layer, a)
        if isinstance(attend, DifferentiableAttention):
            attend = partial(_without_cache, attend, a, self._layer(layer))
        return self._attended(attend, layer, q, k, v), None

    def _rotation(self, start: int, n: int, positions: ArrayLike | None = None) -> ComplexArray:
        """Return the turns of n tokens, by default at positions from `start` on; warn beyond the model's training."""
        at = np.arange(start, start + n) if positions is None else _checked_positions(positions, n)
        if (count := int(at.max()) + 1) > self.config.context_length:
            warnings.warn(
                f"tokens: {count} came, the model was trained on {self.config.context_length} positions",
                stacklevel=outside_stacklevel(),
            )
        return rotation_at(at, self.config.head_width, self.config.rope_base, self.dtype)

    def _layer(self, layer: int) -> dict[str, FloatArray]:
        """Return the tensors of one layer by their names within it."""
        return within(self.weights, f"blk.{layer}.")


def _without_cache(
    attention: DifferentiableAttention,
    a: FloatArray,
    tensors: Mapping[str, FloatArray],
    layer: int,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
) -> FloatArray:
    return attention.forward(layer, q, k, v, a, tensors)[0]


def _checked_positions(positions: ArrayLike, n: int) -> NDArray[np.int64]:
    array = as_array("positions", positions)
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions: dtype {array.dtype} came, integers were wanted")
    if array.shape != (n,):
        raise ValueError(f"positions: shape {array.shape} came, ({n},), one a token, was wanted")
    if int(array.min()) < 0 or int(array.max()) >= 2**53:  # so that their angles are computed from the number itself
        raise ValueError(f"positions: {array.min()} … {array.max()} came, 0 … 2⁵³ − 1 was wanted")
    return array.astype(np.int64)
