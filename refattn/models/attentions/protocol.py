"""What an attention is to a decoder: a forward and a backward, with parameters of its own where it has them (ours).

A decoder gives it the layer's queries, keys and values, positions applied; the layer's normalised input a, which they
were made from; and the layer's parameters, by their names within the layer. It keeps nothing between calls: what the
backward needs is in the cache that the forward returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn._validation import FloatArray


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of one layer's attention.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, H, n, d), (…, H_kv, n, d), (…, H_kv, n, d)
        With respect to the queries, keys and values, in the dtype of the model.
    a : ndarray, shape (…, n, width), or None
        With respect to the layer's normalised input; None where the attention did not look at it.
    parameters : dict from str to ndarray, shapes of the parameters
        With respect to the attention's own parameters, by their names within the layer.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import ExactAttention
    >>> q = k = v = np.ones((2, 3, 4))
    >>> attention = ExactAttention()
    >>> out, cache = attention.forward(0, q, k, v)
    >>> gradients = attention.backward(np.ones_like(out), cache)
    >>> gradients.v.shape, gradients.a, gradients.parameters
    ((2, 3, 4), None, {})
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    a: FloatArray | None = None
    parameters: Mapping[str, FloatArray] = field(default_factory=dict)


class DifferentiableAttention(ABC):
    """An attention of every layer of a decoder, with its backward; it is callable, as attentions in inference are.

    Notes
    -----
    A subclass has `forward` and `backward`, and, if it has parameters, `parameter_shapes` and `initial`. Time O(n² d) a
    head for an exact one. Source: ours.

    Examples
    --------
    Nothing but each token's own value:

    >>> import numpy as np
    >>> from refattn.models import DifferentiableAttention, LayerGradients
    >>> class OwnValue(DifferentiableAttention):
    ...     def forward(self, layer, q, k, v, a=None, parameters=None):
    ...         return v.copy(), None
    ...     def backward(self, dout, cache):
    ...         return LayerGradients(np.zeros_like(dout), np.zeros_like(dout), dout)
    >>> q = k = v = np.ones((2, 3, 4))
    >>> OwnValue()(0, q, k, v).shape
    (2, 3, 4)
    """

    @abstractmethod
    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, Any]:
        """Attend, and return the output (…, H, n, d) and what `backward` needs.

        Parameters
        ----------
        layer : int
            Which layer.
        q, k, v : ndarray, shapes (…, H, n, d), (…, H_kv, n, d), (…, H_kv, n, d)
            Queries, keys and values, positions applied; read-only.
        a : ndarray, shape (…, n, width), optional
            The layer's normalised input; read-only.
        parameters : mapping from str to ndarray, optional
            The layer's tensors by their names within it, the attention's own among them.
        """

    @abstractmethod
    def backward(self, dout: FloatArray, cache: Any) -> LayerGradients:
        """Pull the gradient of the output back.

        Parameters
        ----------
        dout : ndarray, shape (…, H, n, d)
            Gradient of the loss with respect to the output.
        cache : object
            From `forward`.
        """

    def parameter_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return name, within a layer, and shape of the parameters it has in every layer.

        Parameters
        ----------
        config : LlamaConfig or GPT2Config
            The numbers of the decoder.
        """
        return {}

    def initial(self, config: Any, rng: np.random.Generator) -> dict[str, FloatArray]:
        """Draw the parameters of one layer that a training begins with, in float64.

        Parameters
        ----------
        config : LlamaConfig or GPT2Config
            The numbers of the decoder.
        rng : numpy.random.Generator
            What is drawn from.
        """
        return {}

    def pairs_per_query(self, n: int) -> int | None:
        """Return the most pairs a query can attend to, or None where the output is not of pairs that are left.

        Parameters
        ----------
        n : int
            Length of the text.
        """
        return None

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend, and keep nothing: the signature of an attention in inference."""
        return self.forward(layer, q, k, v)[0]


def own_shapes(attention: DifferentiableAttention, config: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of an attention's own parameters in a whole model."""
    own = attention.parameter_shapes(config)
    return {f"blk.{layer}.{name}": shape for layer in range(config.n_layers) for name, shape in own.items()}
