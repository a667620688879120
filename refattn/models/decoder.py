"""A decoder that trains: its loss, and the gradient of the loss with respect to every parameter, in NumPy (ours).

Of the Llama family (`refattn.models.llama`) or of the GPT-2 family, by its configuration, with any attention that has a
backward (`refattn.models.attentions`). The forward is a chain of the layers in `refattn.models.layers`; the backward is
the same chain, from its end:

    x = embedding        x = layer(x), layer by layer        h = norm(x)        loss = mean cross-entropy(W h, targets)

The last two steps are `refattn.models.output`: a block of rows at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refattn._overflow import overflow_judged
from refattn._validation import FloatArray, as_count, as_flag, as_float_arrays, as_float_dtype, require_kind
from refattn.models._batch import as_batch
from refattn.models._finiteness import NotFiniteError as NotFiniteError
from refattn.models._finiteness import require_finite_in
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients, own_shapes
from refattn.models.config import GPT2Config, LlamaConfig
from refattn.models.layers.attention_block import (
    AttentionBlockCache,
    attention_block_backward,
    attention_block_forward,
)
from refattn.models.layers.embedding import embedding_backward, embedding_forward
from refattn.models.layers.feed_forward_block import (
    FeedForwardBlockCache,
    feed_forward_block_backward,
    feed_forward_block_forward,
)
from refattn.models.layers.named import Gradients, named_norm_backward, named_norm_forward, within
from refattn.models.layers.rotary import ComplexArray, rotation
from refattn.models.output import Evaluation, evaluate_output, output_loss_and_gradient
from refattn.models.token_distribution import TokenDistribution

EMBEDDINGS = ("token_embd.weight", "position_embd.weight")


class _LayerCache(NamedTuple):
    attention: AttentionBlockCache
    feed_forward: FeedForwardBlockCache


class Decoder:
    """A decoder whose parameters can be trained: its loss, and the gradient with respect to each of them.

    Parameters
    ----------
    config : LlamaConfig or GPT2Config
        Its numbers, which say of what family it is.
    parameters : mapping from str to array_like
        The tensors that ``config.tensor_shapes()`` names; ``output.weight`` if logits do not use the embedding; and
        those that an attention has of its own, ``blk.<layer>.<name>`` (`DifferentiableAttention.parameter_shapes`).
        Float32 or float64, which is the precision of every computation.

    Attributes
    ----------
    config : LlamaConfig or GPT2Config
        Its numbers.
    parameters : dict from str to ndarray, shapes of the tensors
        Copies, which belong to the model: a training writes to them.
    dtype : dtype
        Float32 or float64.

    Raises
    ------
    TypeError
        `config` is of neither kind, or a tensor not numeric.
    ValueError
        A tensor is missing, has another shape, or is not finite.

    Notes
    -----
    A step takes O(layers · (n width ffn_width + attention)) and keeps O(layers · n ffn_width), or O(layers · n width)
    where it computes again. It gives the same bits every time. Source: ours; arXiv 2302.13971 (LLaMA) and Radford et
    al. 2019 (GPT-2) for the two families.

    Examples
    --------
    Ten steps of plain gradient descent on one text:

    >>> import numpy as np
    >>> from refattn.models import Decoder, GPT2Config
    >>> config = GPT2Config(n_layers=2, width=16, ffn_width=32, vocab_size=10, n_heads=2, context_length=16)
    >>> model = Decoder.initial(config, seed=0)
    >>> text = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    >>> before = model.loss(text[:, :-1], text[:, 1:])
    >>> for _ in range(10):
    ...     loss, gradients = model.loss_and_gradients(text[:, :-1], text[:, 1:])
    ...     for name, gradient in gradients.items():
    ...         model.parameters[name] -= 0.1 * gradient
    >>> round(before, 2), loss < 2
    (2.35, True)
    """

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
        given: dict[str, Any] = {f"parameters: {name!r}": array for name, array in parameters.items()}
        arrays = as_float_arrays(**given)
        self.parameters: dict[str, FloatArray] = {
            name: np.array(array) for name, array in zip(parameters, arrays, strict=True)
        }
        for name, shape in shapes.items():
            self._require_shape(name, shape)
        self._shapes = shapes
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
        """Draw the weights that a training begins with.

        Linear maps and embeddings are normal with a deviation of 0.02, less by ``√(2 n_layers)`` for the maps back onto
        the residual stream (Radford et al. 2019); gains are one, shifts zero. The same numbers in either precision.

        Parameters
        ----------
        config : LlamaConfig or GPT2Config
            As for `Decoder`.
        seed : int, optional
            Of the generator that they are drawn from.
        dtype : {float32, float64}, optional
            Of the parameters.
        attention : DifferentiableAttention, optional
            One that has parameters of its own, for which to draw too.
        tied : bool, optional
            Whether logits use the embedding; if not, there is an ``output.weight``.
        """
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

    def evaluate(
        self,
        tokens: ArrayLike,
        targets: ArrayLike | TokenDistribution,
        weights: ArrayLike | None = None,
        attention: DifferentiableAttention | None = None,
    ) -> Evaluation:
        """Tell how well each target is foretold; errors are those of `loss_and_gradients`.

        Parameters
        ----------
        tokens, targets, weights, attention : array_like, DifferentiableAttention
            As for `Decoder.loss_and_gradients`.

        Returns
        -------
        Evaluation
            The loss and the share of the targets that are right, and both target by target.

        Examples
        --------
        >>> config = GPT2Config(n_layers=1, width=8, ffn_width=16, vocab_size=10, n_heads=2, context_length=16)
        >>> found = Decoder.initial(config, seed=0).evaluate([[3, 1, 4]], [[1, 4, 1]], weights=[[0, 1, 1]])
        >>> found.losses.round(1), bool(found.accuracy == found.right[0, 1:].mean())
        (array([[nan, 2.3, 2.3]]), True)
        """
        batch = as_batch(self.config, tokens, targets, weights)
        attend = self._attention(attention)
        with overflow_judged():
            x, turn = self._embedded(batch.tokens)
            for layer in range(self.config.n_layers):
                x, _ = self._layer_forward(layer, x, turn, attend)
            h, _ = named_norm_forward(x, self.parameters, "output_norm", self.config.norm_eps)
            return evaluate_output(h, self.parameters, batch)

    def loss(
        self,
        tokens: ArrayLike,
        targets: ArrayLike | TokenDistribution,
        weights: ArrayLike | None = None,
        attention: DifferentiableAttention | None = None,
    ) -> float:
        """Return the weighted mean of the cross-entropy; its errors are those of `loss_and_gradients`.

        Parameters
        ----------
        tokens, targets, weights, attention : array_like, DifferentiableAttention
            As for `Decoder.loss_and_gradients`.
        """
        return self.evaluate(tokens, targets, weights, attention).loss

    def loss_and_gradients(
        self,
        tokens: ArrayLike,
        targets: ArrayLike | TokenDistribution,
        weights: ArrayLike | None = None,
        attention: DifferentiableAttention | None = None,
        recompute: bool = False,
        wanted: Collection[str] | None = None,
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the loss, and its gradient with respect to the parameters.

        Parameters
        ----------
        tokens : array_like of int, shape (batch, n)
            Texts.
        targets : array_like of int, shape (batch, n), or TokenDistribution
            The token that each should be followed by, or a distribution over some; anything where the weight is zero.
        weights : array_like, shape (batch, n), optional
            A mask, or numbers of at least zero, not all zero: the loss is ``Σ weight · cross-entropy / Σ weight``. All
            one by default.
        attention : DifferentiableAttention, optional
            Exact attention by default.
        recompute : bool, optional
            Keep every layer's input only, and compute the layer again before its backward: less memory, the same bits.
        wanted : collection of str, optional
            Parameters whose gradients are wanted; all that the loss depends on by default. Products for others are left
            out.

        Returns
        -------
        loss : float
            The weighted mean.
        gradients : dict from str to ndarray, shapes of the parameters
            By the parameters' names, those wanted. The parameters of another attention have none.

        Raises
        ------
        NotFiniteError
            The loss, or what goes into or comes out of a layer, is NaN or infinite.
        TypeError, ValueError
            Tokens or targets are not whole numbers in range, shapes do not fit, a name is unknown, or a parameter of
            the attention is missing.

        Notes
        -----
        Time O(layers · (n width ffn_width + attention)), three times that of the loss alone; four with `recompute`.
        """
        batch = as_batch(self.config, tokens, targets, weights)
        attend = self._attention(attention)
        recompute = as_flag("recompute", recompute)
        gradients = Gradients(self._wanted(wanted, attend))
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
            loss, dh = output_loss_and_gradient(h, self.parameters, batch, gradients)
            # forward: h = norm(x)
            dx = named_norm_backward(dh, norm, gradients, "output_norm")
            for layer in reversed(range(self.config.n_layers)):
                if not gradients.want_any(self._up_to(layer)):
                    break
                x = entering.pop()
                cache = self._layer_forward(layer, x, turn, attend)[1] if recompute else caches.pop()
                # forward: x = layer(x)
                dx = self._layer_backward(layer, dx, cache, attend, gradients)
            # forward: x = embedding
            if gradients.want_any(EMBEDDINGS):
                self._embedded_backward(dx, batch.tokens, gradients)
            for name, gradient in gradients.found.items():
                require_finite_in(name, "the gradient", gradient)
        return loss, {name: gradients.found[name] for name in self.parameters if name in gradients.found}

    def _up_to(self, layer: int) -> list[str]:
        """Return the names of the parameters that come into this layer or below."""
        own = tuple(f"blk.{index}." for index in range(layer + 1))
        return [name for name in self.parameters if name in EMBEDDINGS or name.startswith(own)]

    def _layer_forward(
        self, layer: int, x: FloatArray, turn: ComplexArray | None, attention: DifferentiableAttention
    ) -> tuple[FloatArray, _LayerCache]:
        config, tensors = self.config, within(self.parameters, f"blk.{layer}.")

        def attend(q: FloatArray, k: FloatArray, v: FloatArray, a: FloatArray) -> tuple[FloatArray, Any]:
            for name, array in (("q", q), ("k", k), ("v", v)):
                require_finite_in(f"blk.{layer}", name, array)
            return attention.forward(layer, q, k, v, a, tensors)

        x, attended = attention_block_forward(x, tensors, config.norm_eps, config.head_width, turn, attend)
        x, fed = feed_forward_block_forward(x, tensors, config.norm_eps)
        require_finite_in(f"blk.{layer}", "the residual stream", x)
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
            require_finite_in(f"blk.{layer}", "the gradient of the attention's output", dout)
            return attention.backward(dout, attended)

        dx = feed_forward_block_backward(dx, cache.feed_forward, own)
        dx = attention_block_backward(dx, cache.attention, own, pull_back, self.config.head_width)
        require_finite_in(f"blk.{layer}", "the gradient of the residual stream", dx)
        return dx

    def _embedded(self, tokens: NDArray[np.int64]) -> tuple[FloatArray, ComplexArray | None]:
        """Return the embedded tokens, (batch, n, width), and the turns of their positions if there are any."""
        n, config = tokens.shape[-1], self.config
        x, _ = embedding_forward(tokens, self.parameters["token_embd.weight"])
        require_finite_in("token_embd", "the embedding", x)
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

    def _attention(self, attention: DifferentiableAttention | None) -> DifferentiableAttention:
        """Return the attention, whose parameters have to be there."""
        attend = ExactAttention() if attention is None else attention
        require_kind("attention", attend, DifferentiableAttention, "refattn.models.attentions")
        for name, shape in own_shapes(attend, self.config).items():
            self._require_shape(name, shape)
        return attend

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.parameters:
            raise ValueError(f"parameters: {name!r} is missing, one of shape {shape} was wanted")
        if self.parameters[name].shape != shape:
            came = self.parameters[name].shape
            raise ValueError(f"parameters: {name!r} of shape {came} came, {shape} was wanted")

    def _wanted(self, wanted: Collection[str] | None, attention: DifferentiableAttention) -> Collection[str]:
        used = self._shapes.keys() | own_shapes(attention, self.config).keys()
        if wanted is None:
            return used
        if isinstance(wanted, str):
            raise TypeError("wanted: one text came, a collection of names was wanted")
        unknown = sorted(set(wanted) - used)
        if unknown:
            raise ValueError(f"wanted: {unknown[0]!r} came, names of parameters that the loss depends on were wanted")
        return frozenset(wanted)
