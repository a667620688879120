"""A decoder that trains: its loss, and the gradient of the loss with respect to every parameter, in NumPy (ours).

Of the Llama family (`refattn.models.llama`) or of the GPT-2 family, by its configuration, with any attention that has a
backward (`refattn.models.attentions`). The forward is a chain of the layers in `refattn.models.layers`; the backward is
the same chain, from its end:

    x = embedding        x = layer(x), layer by layer        h = norm(x)        loss = mean cross-entropy(W h, targets)

The last two steps are taken a block of rows at a time, forward and backward, so that the logits of all rows never
stand in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refattn._overflow import overflow_judged
from refattn._validation import FloatArray, as_array, as_count, as_flag, as_float_arrays, as_float_dtype, require_kind
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.models.config import GPT2Config, LlamaConfig
from refattn.models.layers.attention_block import (
    AttentionBlockCache,
    attention_block_backward,
    attention_block_forward,
)
from refattn.models.layers.cross_entropy import cross_entropy_backward, cross_entropy_forward
from refattn.models.layers.embedding import embedding_backward, embedding_forward
from refattn.models.layers.feed_forward_block import (
    FeedForwardBlockCache,
    feed_forward_block_backward,
    feed_forward_block_forward,
)
from refattn.models.layers.linear import linear_backward, linear_forward
from refattn.models.layers.named import Gradients, named_norm_backward, named_norm_forward, within
from refattn.models.layers.rotary import Rotation, rotation

_LOGITS = 1 << 21
"""Logits that are held at once, and"""
_LEAST_ROWS = 512
"""at least so many rows of them: a product with fewer rows takes longer a row."""


class NotFiniteError(ArithmeticError):
    """A number in a model's forward or backward is NaN or infinite; `layer` says where it was seen first."""

    def __init__(self, layer: str, what: str) -> None:
        super().__init__(f"{layer}: {what} is not finite")
        self.layer = layer


class _Batch(NamedTuple):
    """Checked tokens, targets and weights."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]


class _LayerCache(NamedTuple):
    attention: AttentionBlockCache
    feed_forward: FeedForwardBlockCache


class Decoder:
    """A decoder whose parameters can be trained."""

    def __init__(self, config: LlamaConfig | GPT2Config, parameters: Mapping[str, ArrayLike]) -> None:
        if not isinstance(config, (LlamaConfig, GPT2Config)):
            raise TypeError(f"config: {type(config).__name__} came, a LlamaConfig or GPT2Config was wanted")
        self.config = config
        shapes = config.tensor_shapes()
        if "output.weight" in parameters:
            shapes["output.weight"] = shapes["token_embd.weight"]
        missing = sorted(shapes.keys() - parameters.keys())
        if missing:
            raise ValueError(f"parameters: {missing[0]!r} is missing, one of shape {shapes[missing[0]]} was wanted")
        arrays = as_float_arrays(**dict(parameters))
        self.parameters: dict[str, FloatArray] = {
            name: np.array(array) for name, array in zip(parameters, arrays, strict=True)
        }
        for name, shape in shapes.items():
            self._require_shape(name, shape)
        self.dtype: np.dtype[Any] = self.parameters["token_embd.weight"].dtype

    @classmethod
    def initial(
        cls,
        config: LlamaConfig | GPT2Config,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        *,
        attention: DifferentiableAttention | None = None,
        tied: bool = True,
    ) -> Decoder:
        """Draw the weights a training begins with."""
        rng, kind = np.random.default_rng(as_count("seed", seed, least=0)), as_float_dtype("dtype", dtype)
        shapes = config.tensor_shapes()
        if not as_flag("tied", tied):
            shapes["output.weight"] = shapes["token_embd.weight"]
        parameters: dict[str, FloatArray] = {}
        for name, shape in shapes.items():
            if name.endswith(".bias"):
                drawn = np.zeros(shape)
            elif len(shape) == 1:
                drawn = np.ones(shape)
            else:
                drawn = 0.02 * rng.standard_normal(shape)
                if name.endswith(("attn_output.weight", "ffn_down.weight")):
                    drawn /= np.sqrt(2 * config.n_layers)
            parameters[name] = drawn.astype(kind)
        for layer in range(config.n_layers):
            own = {} if attention is None else attention.initial(config, rng)
            parameters |= {f"blk.{layer}.{name}": array.astype(kind) for name, array in own.items()}
        return cls(config, parameters)

    def loss(
        self,
        tokens: ArrayLike,
        targets: ArrayLike,
        weights: ArrayLike | None = None,
        attention: DifferentiableAttention | None = None,
    ) -> float:
        """Return the weighted mean of the cross-entropy."""
        batch = self._batch(tokens, targets, weights)
        attend = self._attention(attention)
        with overflow_judged():
            x, turn = self._embedded(batch.tokens)
            for layer in range(self.config.n_layers):
                x, _ = self._layer_forward(layer, x, turn, attend)
            h, _ = named_norm_forward(x, self.parameters, "output_norm", self.config.norm_eps)
            return self._head(h, batch, None)[0]

    def loss_and_gradients(
        self,
        tokens: ArrayLike,
        targets: ArrayLike,
        weights: ArrayLike | None = None,
        attention: DifferentiableAttention | None = None,
        recompute: bool = False,
        wanted: Collection[str] | None = None,
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the loss, and its gradient with respect to the parameters, by their names."""
        batch = self._batch(tokens, targets, weights)
        attend = self._attention(attention)
        recompute = as_flag("recompute", recompute)
        gradients = Gradients(self._wanted(wanted))
        with overflow_judged():
            # the forward: what every step leaves for its backward
            x, turn = self._embedded(batch.tokens)
            entering: list[FloatArray] = []
            caches: list[_LayerCache] = []
            for layer in range(self.config.n_layers):
                entering.append(x)
                x, cache = self._layer_forward(layer, x, turn, attend)
                if not recompute:
                    caches.append(cache)
            h, norm = named_norm_forward(x, self.parameters, "output_norm", self.config.norm_eps)
            # forward: loss = mean cross-entropy(W h, targets)
            loss, dh = self._head(h, batch, gradients)
            # forward: h = norm(x)
            dx = named_norm_backward(dh, norm, gradients, "output_norm")
            for layer in reversed(range(self.config.n_layers)):
                x = entering.pop()
                cache = self._layer_forward(layer, x, turn, attend)[1] if recompute else caches.pop()
                # forward: x = layer(x)
                dx = self._layer_backward(layer, dx, cache, attend, gradients)
            # forward: x = embedding
            self._embedded_backward(dx, batch.tokens, gradients)
        return loss, {name: gradients.found[name] for name in self.parameters if name in gradients.found}

    def _layer_forward(
        self, layer: int, x: FloatArray, turn: Rotation | None, attention: DifferentiableAttention
    ) -> tuple[FloatArray, _LayerCache]:
        config, tensors = self.config, within(self.parameters, f"blk.{layer}.")

        def attend(q: FloatArray, k: FloatArray, v: FloatArray, a: FloatArray) -> tuple[FloatArray, Any]:
            for name, array in (("q", q), ("k", k), ("v", v)):
                _require_finite(f"blk.{layer}", name, array)
            return attention.forward(layer, q, k, v, a, tensors)

        x, attended = attention_block_forward(x, tensors, config.norm_eps, config.head_width, turn, attend)
        x, fed = feed_forward_block_forward(x, tensors, config.norm_eps)
        _require_finite(f"blk.{layer}", "the residual stream", x)
        return x, _LayerCache(attended, fed)

    def _layer_backward(
        self,
        layer: int,
        dx: FloatArray,
        cache: _LayerCache,
        attention: DifferentiableAttention,
        gradients: Gradients,
    ) -> FloatArray:
        own = gradients.within(f"blk.{layer}.")

        def pull_back(dout: FloatArray, attended: Any) -> LayerGradients:
            _require_finite(f"blk.{layer}", "the gradient of the attention's output", dout)
            return attention.backward(dout, attended)

        dx = feed_forward_block_backward(dx, cache.feed_forward, own)
        dx = attention_block_backward(dx, cache.attention, own, pull_back, self.config.head_width)
        _require_finite(f"blk.{layer}", "the gradient of the residual stream", dx)
        return dx

    def _embedded(self, tokens: NDArray[np.int64]) -> tuple[FloatArray, Rotation | None]:
        """Return the embedded tokens, (batch, n, width), and the turns of their positions if there are any."""
        n, config = tokens.shape[-1], self.config
        x, _ = embedding_forward(tokens, self.parameters["token_embd.weight"])
        if isinstance(config, LlamaConfig):
            return x, rotation(0, n, config.head_width, config.rope_base, self.dtype)
        x += embedding_forward(np.arange(n), self.parameters["position_embd.weight"])[0]
        return x, None

    def _embedded_backward(self, dx: FloatArray, tokens: NDArray[np.int64], gradients: Gradients) -> None:
        config = self.config
        # forward: x = table[tokens]
        if gradients.want("token_embd.weight"):
            _, cache = embedding_forward(tokens, self.parameters["token_embd.weight"])
            gradients.add("token_embd.weight", embedding_backward(dx, cache))
        # forward: x += table[positions]
        if isinstance(config, GPT2Config) and gradients.want("position_embd.weight"):
            _, cache = embedding_forward(np.arange(tokens.shape[-1]), self.parameters["position_embd.weight"])
            gradients.add("position_embd.weight", embedding_backward(dx.sum(axis=0), cache))

    def _head(self, h: FloatArray, batch: _Batch, gradients: Gradients | None) -> tuple[float, FloatArray]:
        """Return the loss, and the gradient of h if gradients are wanted, a block of rows at a time."""
        name = "output.weight" if "output.weight" in self.parameters else "token_embd.weight"
        table, rows = self.parameters[name], h.reshape(-1, h.shape[-1])
        targets, share = batch.targets.ravel(), batch.weights.ravel()
        dh = np.empty_like(rows) if gradients is not None else rows[:0]
        losses = np.empty(len(rows))
        step = max(_LEAST_ROWS, _LOGITS // len(table))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            logits, of_logits = linear_forward(rows[block], table)
            losses[block], of_losses = cross_entropy_forward(logits, targets[block])
            if gradients is not None:
                # forward: losses, and their weighted mean
                dlogits = cross_entropy_backward(share[block], of_losses)
                # forward: logits = h @ table.T
                found = linear_backward(dlogits, of_logits, weight=gradients.want(name))
                dh[block] = found.x
                gradients.add(name, found.weight)
        loss = float(losses @ share)
        if not np.isfinite(loss):
            raise NotFiniteError("output", "the loss")
        return loss, dh.reshape(h.shape) if gradients is not None else dh

    def _batch(self, tokens: ArrayLike, targets: ArrayLike, weights: ArrayLike | None) -> _Batch:
        """Check the arguments; weights are made to sum to one."""
        arrays = {name: as_array(name, value) for name, value in (("tokens", tokens), ("targets", targets))}
        for name, array in arrays.items():
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name}: dtype {array.dtype} came, integers were wanted")
        shape = arrays["tokens"].shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"tokens: shape {shape} came, (batch, n) with both at least 1 was wanted")
        if isinstance(self.config, GPT2Config) and shape[1] > self.config.context_length:
            raise ValueError(f"tokens: {shape[1]} came, at most the {self.config.context_length} positions were wanted")
        if arrays["targets"].shape != shape:
            raise ValueError(f"targets: shape {arrays['targets'].shape} came, that of the tokens {shape} was wanted")
        share = np.ones(shape)
        if weights is not None:
            (share,) = (array.astype(np.float64) for array in as_float_arrays(weights=weights))
            if share.shape != shape:
                raise ValueError(f"weights: shape {share.shape} came, that of the targets {shape} was wanted")
            if share.min() < 0 or share.sum() <= 0:
                raise ValueError("weights: negative or only zeros came, at least 0 and not all 0 was wanted")
        targets = np.where(share > 0, arrays["targets"], 0)
        for name, array in (("tokens", arrays["tokens"]), ("targets", targets)):
            bad = np.argwhere((array < 0) | (array >= self.config.vocab_size))
            if bad.size:
                place = tuple(int(i) for i in bad[0])
                raise ValueError(
                    f"{name}: {array[place]} at index {place} came, 0 … {self.config.vocab_size - 1} was wanted"
                )
        return _Batch(arrays["tokens"].astype(np.int64), targets.astype(np.int64), share / share.sum())

    def _attention(self, attention: DifferentiableAttention | None) -> DifferentiableAttention:
        """Return the attention, whose parameters have to be there."""
        attend = ExactAttention() if attention is None else attention
        require_kind("attention", attend, DifferentiableAttention, "refattn.models.attentions")
        for layer in range(self.config.n_layers):
            for name, shape in attend.parameter_shapes(self.config).items():
                self._require_shape(f"blk.{layer}.{name}", shape)
        return attend

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.parameters:
            raise ValueError(f"parameters: {name!r} is missing, one of shape {shape} was wanted")
        if self.parameters[name].shape != shape:
            came = self.parameters[name].shape
            raise ValueError(f"parameters: {name!r} of shape {came} came, {shape} was wanted")

    def _wanted(self, wanted: Collection[str] | None) -> Collection[str]:
        names = self.parameters.keys() if wanted is None else frozenset(wanted)
        unknown = sorted(names - self.parameters.keys())
        if unknown:
            raise ValueError(f"wanted: {unknown[0]!r} came, names of parameters were wanted")
        return names


def _require_finite(layer: str, what: str, array: FloatArray) -> None:
    if not (np.isfinite(array.sum()) or np.isfinite(array).all()):
        raise NotFiniteError(layer, what)
