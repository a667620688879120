"""An encoder of the BERT family in NumPy, with a pluggable attention over all keys.

With x the residual stream, shape (n, width), a layer computes

    x ← norm(x + O · attention(Q x, K x, V x))        every linear map with its bias
    x ← norm(x + W_out gelu(W_in x))

(Devlin et al. 2019, arXiv 1810.04805), where norm subtracts the mean over the width, divides by ``√(variance + ε)``,
scales and shifts (Ba et al. 2016), and ``gelu(x) = x Φ(x)`` with the normal distribution function Φ (Hendrycks and
Gimpel 2016). Positions are learned vectors, added to those of the tokens: nothing is rotated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.special import ndtr

from refattn._json import parsed, read_json
from refattn._validation import FloatArray, as_count, as_real
from refattn.dense import dense_attention
from refattn.models._blocks import Attention, Transformer, begin
from refattn.models._reading import StoredTensors, existing, library_reading, needing
from refattn.models.layers.linear import linear_forward
from refattn.models.safetensors_file import SafetensorsFile


def exact_full_attention(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
    """Softmax attention over all keys, the same in every layer: what an `Encoder` computes unless told otherwise.

    Parameters
    ----------
    layer, q, k, v : int, and ndarray of shape (n_heads, n, d)
        As for `refattn.models.exact_attention`.

    Returns
    -------
    ndarray, shape (n_heads, n, d)
        The output.

    Raises
    ------
    ValueError
        Shapes do not fit, or a logit overflows.

    Notes
    -----
    Time O(n² d) a head; `refattn.dense_attention`. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import exact_full_attention
    >>> ones = np.ones((2, 3, 4))
    >>> exact_full_attention(0, ones, ones, ones).shape
    (2, 3, 4)
    """
    return dense_attention(q, k, v, mask="full", check_finite=False)


@dataclass(frozen=True)
class EncoderConfig:
    """The numbers of an encoder.

    Parameters
    ----------
    n_layers, width, ffn_width, n_heads, vocab_size, context_length : int
        Each at least 1; `n_heads` divides `width`.
    norm_eps : float
        The ε of the norms, above 0.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    Memory O(1). Source: arXiv 1810.04805 (BERT).

    Examples
    --------
    >>> EncoderConfig(6, 384, 1536, 12, 30522, 512, 1e-12).head_width
    32
    """

    n_layers: int
    width: int
    ffn_width: int
    n_heads: int
    vocab_size: int
    context_length: int
    norm_eps: float

    def __post_init__(self) -> None:
        for name in ("n_layers", "width", "ffn_width", "n_heads", "vocab_size", "context_length"):
            as_count(name, getattr(self, name), least=1)
        as_real("norm_eps", self.norm_eps, positive=True)
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} came, a divisor of the width {self.width} was wanted")

    @property
    def head_width(self) -> int:
        """Width of a head's queries, keys and values."""
        return self.width // self.n_heads

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> EncoderConfig:
        """Read a ``config.json`` of the BERT family.

        Parameters
        ----------
        path : path
            Of the file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is not JSON, lacks a number, describes another architecture, or has a field that asks for what this
            encoder does not compute, or that is not known to it.
        """
        file = Path(path)
        try:
            with file.open("rb") as content:
                stored: dict[str, Any] = read_json(content)
            kind = stored["model_type"], stored["hidden_act"], stored.get("position_embedding_type", "absolute")
            if kind != ("bert", "gelu", "absolute"):
                raise ValueError(f"{kind} came, ('bert', 'gelu', 'absolute') was wanted")
            _require_known(stored)
            return cls(
                n_layers=stored["num_hidden_layers"],
                width=stored["hidden_size"],
                ffn_width=stored["intermediate_size"],
                n_heads=stored["num_attention_heads"],
                vocab_size=stored["vocab_size"],
                context_length=stored["max_position_embeddings"],
                norm_eps=stored["layer_norm_eps"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: cannot be read ({error!r}); a BERT-family configuration was wanted") from error

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of all tensors; a linear map is ``(outputs, inputs)``."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield them one by one: what a file claims may be more than it has."""
        w = self.width
        yield "embeddings.word_embeddings.weight", (self.vocab_size, w)
        yield "embeddings.position_embeddings.weight", (self.context_length, w)
        yield "embeddings.token_type_embeddings.weight", (2, w)
        yield from _norm_shapes("embeddings", w)
        linear = {"attention.self.query": (w, w), "attention.self.key": (w, w), "attention.self.value": (w, w)}
        linear |= {"attention.output.dense": (w, w)}
        linear |= {"intermediate.dense": (self.ffn_width, w), "output.dense": (w, self.ffn_width)}
        for layer in range(self.n_layers):
            prefix = f"encoder.layer.{layer}."
            for name, shape in linear.items():
                yield f"{prefix}{name}.weight", shape
                yield f"{prefix}{name}.bias", shape[:1]
            for norm in ("attention.output", "output"):
                yield from _norm_shapes(f"{prefix}{norm}", w)


def _norm_shapes(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.LayerNorm.{part}", (width,)) for part in ("weight", "bias")]


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "type_vocab_size": (2,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
    "torchscript": (False,),
    "use_bfloat16": (False,),
}
"""Fields of a configuration that have to say that what they are about is left out."""

_HARMLESS = frozenset({
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "finetuning_task", "problem_type",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "gradient_checkpointing",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "use_cache", "return_dict",
    "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "tie_word_embeddings",
    "tie_encoder_decoder", "id2label", "label2id", "num_labels", "_attn_implementation_autoset", "attn_implementation",
})  # fmt: skip
"""Fields that make no difference to this encoder: labels, training, what is returned, how it is computed elsewhere."""


def _require_known(stored: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` at a field that asks for what the encoder does not compute, or that is not known."""
    used = {"model_type", "hidden_act", "position_embedding_type", "num_hidden_layers", "hidden_size", "vocab_size"}
    used |= {"intermediate_size", "num_attention_heads", "max_position_embeddings", "layer_norm_eps"}
    for name, value in stored.items():
        if name in used or name in _HARMLESS:
            continue
        if name not in _NEUTRAL:
            raise ValueError(f"{name} came, which this encoder does not know and would ignore")
        if not any(type(value) is type(one) and value == one for one in _NEUTRAL[name]):
            raise ValueError(f"{name} is {str(value)[:60]}, {_NEUTRAL[name][0]} was wanted: the encoder has no other")


_POSITIONS = "embeddings.position_ids"
_UNUSED = frozenset({_POSITIONS, "pooler.dense.weight", "pooler.dense.bias"})
"""Tensors of the family's files that the last layer's output does not depend on."""


class Encoder(Transformer):
    """An encoder: tokens in, one vector for each out, with any attention in between.

    Parameters
    ----------
    config : EncoderConfig
        Its numbers.
    weights : mapping from str to array_like
        The tensors `EncoderConfig.tensor_shapes` names. A pooler's, and the numbers of the positions (0, 1, …), may be
        there and are not used; no others.
    dtype : {float32, float64}, optional
        Of the weights held and of every computation.

    Raises
    ------
    TypeError
        `dtype` is neither float32 nor float64.
    ValueError
        A tensor is missing, has another shape, is not finite, or is none of the model's.

    Notes
    -----
    A forward takes O(layers · (n width² + attention)). The model holds read-only copies of the weights. Source: arXiv
    1810.04805 (BERT).

    Examples
    --------
    >>> config = EncoderConfig(2, 8, 12, 4, 10, 16, 1e-12)
    >>> rng = np.random.default_rng(0)
    >>> model = Encoder(config, {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()})
    >>> model([3, 1, 4]).shape
    (3, 8)
    """

    config: EncoderConfig

    def __init__(
        self, config: EncoderConfig, weights: Mapping[str, ArrayLike], *, dtype: DTypeLike = np.float32
    ) -> None:
        if _POSITIONS in weights:
            n = config.context_length
            size = math.prod(weights.shape(_POSITIONS)) if isinstance(weights, StoredTensors) else n
            if size != n or not np.array_equal(np.ravel(weights[_POSITIONS]), np.arange(n)):
                raise ValueError(f"weights: tensor {_POSITIONS!r} came, 0 … {n - 1} were wanted")
        super().__init__(config, config._shapes, weights, dtype, unused=_UNUSED)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, dtype: DTypeLike = np.float32) -> Encoder:
        """Read a model from a folder with ``config.json`` and ``model.safetensors``.

        Parameters
        ----------
        folder : path
            For example `minilm_folder`.
        dtype : {float32, float64}, optional
            As for `Encoder`.

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged, of another architecture, or the tensors do not fit the configuration.
        """
        config = EncoderConfig.from_json(Path(folder) / "config.json")
        file = existing(Path(folder) / "model.safetensors", "safetensors weight file")
        weights = SafetensorsFile(file)
        try:
            return cls(config, weights, dtype=dtype)
        except ValueError as error:
            told = str(error)
            raise ValueError(told if told.startswith(f"{file}: ") else f"{file}: {told}") from None

    def forward(self, tokens: ArrayLike, attention: Attention | None = None) -> FloatArray:
        """Run all layers.

        Parameters
        ----------
        tokens : array_like of int, shape (n,)
            Token numbers of one text, n at most ``config.context_length``; no padding.
        attention : callable, optional
            ``attention(layer, q, k, v) -> out``, all of shape (n_heads, n, d); `exact_full_attention` by default. Its
            arguments are read-only.

        Returns
        -------
        ndarray, shape (n, width)
            The last layer's output.

        Raises
        ------
        TypeError, ValueError
            Tokens are not whole numbers in range, there are too many, or the attention's output has another shape.

        Notes
        -----
        Time O(layers · (n width² + attention)), memory O(n · ffn_width) beside the attention's.
        """
        tokens = self._checked(tokens, most=self.config.context_length)
        attend = exact_full_attention if attention is None else attention
        begin(attend, 0)
        weight = self.weights
        x = weight["embeddings.word_embeddings.weight"][tokens]
        x = x + weight["embeddings.position_embeddings.weight"][: len(tokens)]
        x = self._norm(x + weight["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for layer in range(self.config.n_layers):
            prefix = f"encoder.layer.{layer}."
            names = ("query", "key", "value")
            q, k, v = (
                np.ascontiguousarray(self._split(self._linear(x, f"{prefix}attention.self.{name}"))) for name in names
            )
            out = self._attended(attend, layer, q, k, v)
            joined = out.swapaxes(0, 1).reshape(len(tokens), -1)
            x = self._norm(x + self._linear(joined, f"{prefix}attention.output.dense"), f"{prefix}attention.output")
            inner = self._linear(x, f"{prefix}intermediate.dense")
            inner *= ndtr(inner)
            x = self._norm(x + self._linear(inner, f"{prefix}output.dense"), f"{prefix}output")
        return x

    __call__ = forward

    def _linear(self, x: FloatArray, name: str) -> FloatArray:
        return linear_forward(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])[0]

    def _norm(self, x: FloatArray, name: str) -> FloatArray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt(variance + self._norm_eps)
        return np.asarray(unit * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"])


def encoder_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Read a model's tokenizer from the ``tokenizer.json`` in its folder, without truncation and padding.

    Parameters
    ----------
    folder : path
        For example `minilm_folder`.

    Returns
    -------
    tokenizers.Tokenizer
        ``encode(text).ids`` are the tokens an `Encoder` takes, with those that mark beginning and end.

    Raises
    ------
    ModuleNotFoundError
        The ``tokenizers`` library is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The library cannot read it.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    >>> from refattn.models import encoder_tokenizer, minilm_folder
    >>> encoder_tokenizer(minilm_folder()).encode("To be, or not").tokens  # doctest: +SKIP
    ['[CLS]', 'to', 'be', ',', 'or', 'not', '[SEP]']
    >>> encoder_tokenizer("no-such-folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-folder/tokenizer.json: no such file, a tokenizer was wanted
    """
    file = existing(Path(folder) / "tokenizer.json", "tokenizer")
    with needing("tokenizers", file):
        from tokenizers import Tokenizer
    with library_reading(file, "a tokenizer's JSON"):
        content = file.read_bytes()
        _require_numbers_once(parsed(content))
        tokenizer = Tokenizer.from_str(content.decode("utf-8-sig"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require_numbers_once(stored: Any) -> None:
    """Raise ``ValueError`` unless every token of a vocabulary, and every one added to it, has a number of its own."""
    model = stored.get("model", {}) if isinstance(stored, dict) else {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for added in stored.get("added_tokens", []) if isinstance(stored, dict) else []:
        if numbers.setdefault(added["content"], added["id"]) != added["id"]:
            raise ValueError(
                f"the token {added['content']!r} has the numbers {numbers[added['content']]}, {added['id']}"
            )
    if len({number for number in numbers.values() if isinstance(number, int)}) != len(numbers):
        raise ValueError("two tokens have one number")
