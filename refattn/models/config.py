"""The numbers that describe a decoder of the Llama family, and the tensors that go with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refattn._validation import as_count, as_real
from refattn.models._gguf_keys import LLAMA_KEYS, require_known
from refattn.models.weights import GGUFFile, read_gguf


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that describe a decoder.

    Attributes
    ----------
    n_layers, width, ffn_width, vocab_size : int
        Layers, width of the residual stream, width inside the feed-forward block, number of tokens known.
    n_heads, n_kv_heads, head_width : int
        Query heads, key-value heads (a divisor of them), width d of a head (even).
    context_length : int
        Positions the model was trained on.
    rope_base, norm_eps : float
        Base of the rotary angles; ε of the root-mean-square norm.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range, or does not fit the others.

    Notes
    -----
    Memory O(1). Source: arXiv 2302.13971 (LLaMA), and the keys of GGUF files.

    Examples
    --------
    >>> config = LlamaConfig(n_layers=1, width=8, ffn_width=12, vocab_size=10, n_heads=4, n_kv_heads=2, head_width=2,
    ...                      context_length=64, rope_base=1e4, norm_eps=1e-5)
    >>> config.tensor_shapes()["blk.0.attn_k.weight"]
    (4, 8)
    """

    n_layers: int
    width: int
    ffn_width: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    context_length: int
    rope_base: float
    norm_eps: float

    def __post_init__(self) -> None:
        for name in ("n_layers", "width", "ffn_width", "vocab_size", "n_heads", "n_kv_heads", "head_width"):
            as_count(name, getattr(self, name), least=1)
        as_count("context_length", self.context_length, least=1)
        as_real("rope_base", self.rope_base, positive=True)
        as_real("norm_eps", self.norm_eps, least=0.0)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads: {self.n_kv_heads} came, a divisor of the {self.n_heads} heads was wanted")
        if self.head_width % 2:
            raise ValueError(f"head_width: {self.head_width} came, an even number was wanted (positions turn pairs)")

    @classmethod
    def from_gguf(cls, source: str | os.PathLike[str] | GGUFFile) -> LlamaConfig:
        """Read the numbers from a GGUF file's metadata.

        Parameters
        ----------
        source : path or GGUFFile
            The file.

        Raises
        ------
        ValueError
            The file's architecture is not llama, a number is missing or does not fit the others, or a key says
            what this decoder does not compute (scaled or partial rotary positions, a window, experts, …) or is
            not known to it. Keys that only describe, and a tokenizer's, make no difference.
        """
        file = read_gguf(source)
        architecture = file.value("general.architecture", str)
        if architecture != "llama":
            raise ValueError(f"{file.path}: general.architecture {architecture!r} came, 'llama' was wanted")
        if file.value("llama.rope.scaling.type", str, "none") != "none" or "rope_freqs.weight" in file.records:
            raise ValueError(f"{file.path}: scaled rotary positions came, unscaled ones were wanted")
        require_known(file, "this decoder", LLAMA_KEYS)
        width, n_heads = file.value("llama.embedding_length", int), file.value("llama.attention.head_count", int)
        head_width = file.value("llama.attention.key_length", int, width // max(n_heads, 1))
        for key, what in (("rope.dimension_count", "rotary positions on"), ("attention.value_length", "values of")):
            found = file.value(f"llama.{key}", int, head_width)
            if found != head_width:
                raise ValueError(f"{file.path}: {what} {found} of {head_width} came, on all was wanted (llama.{key})")
        vocab_size = file.length("tokenizer.ggml.tokens")
        if file.value("llama.vocab_size", int, vocab_size) != vocab_size:
            told = f"{file.metadata['llama.vocab_size']} came, there are {vocab_size} tokens in tokenizer.ggml.tokens"
            raise ValueError(f"{file.path}: llama.vocab_size {told}")
        numbers: dict[str, Any] = {
            "n_layers": file.value("llama.block_count", int),
            "width": width,
            "ffn_width": file.value("llama.feed_forward_length", int),
            "vocab_size": vocab_size,
            "n_heads": n_heads,
            "n_kv_heads": file.value("llama.attention.head_count_kv", int, n_heads),
            "head_width": head_width,
            "context_length": file.value("llama.context_length", int),
            "rope_base": file.value("llama.rope.freq_base", float, 10000.0),
            "norm_eps": file.value("llama.attention.layer_norm_rms_epsilon", float),
        }
        try:
            return cls(**numbers)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file.path}: {error}") from None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor a model needs, in the names of GGUF files.

        ``output.weight`` is not among them: a model without it uses the embedding to compute logits.
        """
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield them one by one: what a file claims may be more than it has."""
        width, q_width, kv_width = self.width, self.n_heads * self.head_width, self.n_kv_heads * self.head_width
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "attn_q": (q_width, width),
            "attn_k": (kv_width, width),
            "attn_v": (kv_width, width),
            "attn_output": (width, q_width),
            "ffn_norm": (width,),
            "ffn_gate": (self.ffn_width, width),
            "ffn_up": (self.ffn_width, width),
            "ffn_down": (width, self.ffn_width),
        }
        yield "token_embd.weight", (self.vocab_size, width)
        yield "output_norm.weight", (width,)
        for index in range(self.n_layers):
            yield from ((f"blk.{index}.{name}.weight", shape) for name, shape in layer.items())


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that describe a decoder of the GPT-2 family.

    Attributes
    ----------
    n_layers, width, ffn_width, vocab_size, n_heads : int
        Layers, width of the residual stream, width inside the feed-forward block, number of tokens known, heads (a
        divisor of the width).
    context_length : int
        Positions there are: each has a learned vector.
    norm_eps : float
        ε of LayerNorm.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range, or does not fit the others.

    Notes
    -----
    Memory O(1). Source: Radford et al. 2019 (GPT-2); tensors are called as in GGUF files, q, k and v apart.

    Examples
    --------
    >>> config = GPT2Config(n_layers=1, width=8, ffn_width=32, vocab_size=10, n_heads=4, context_length=64)
    >>> config.tensor_shapes()["blk.0.ffn_up.weight"]
    (32, 8)
    """

    n_layers: int
    width: int
    ffn_width: int
    vocab_size: int
    n_heads: int
    context_length: int
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("n_layers", "width", "ffn_width", "vocab_size", "n_heads", "context_length"):
            as_count(name, getattr(self, name), least=1)
        as_real("norm_eps", self.norm_eps, least=0.0)
        if self.width % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} came, a divisor of the width {self.width} was wanted")

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads: as many as heads."""
        return self.n_heads

    @property
    def head_width(self) -> int:
        """Width of a head's queries, keys and values."""
        return self.width // self.n_heads

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor a model needs, in the names of GGUF files.

        ``output.weight`` is not among them: a model without it uses the embedding to compute logits.
        """
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocab_size, width),
            "position_embd.weight": (self.context_length, width),
            "output_norm.weight": (width,),
            "output_norm.bias": (width,),
        }
        maps: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (width, width),
            "attn_v": (width, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_up": (self.ffn_width, width),
            "ffn_down": (width, self.ffn_width),
        }
        for index in range(self.n_layers):
            for name, shape in maps.items():
                shapes |= {f"blk.{index}.{name}.weight": shape, f"blk.{index}.{name}.bias": shape[:1]}
        return shapes
