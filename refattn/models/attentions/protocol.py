"""What an attention is to a decoder: a forward and a backward, with parameters of its own where it has them (ours).

A decoder gives it the layer's queries, keys and values, positions applied, the layer's normalised input a that they
were made from, and the layer's parameters that the attention asked for. It keeps nothing between calls but its cache.
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
    """Gradients of one layer's attention: of q, k, v, of the layer's input (None: it was not used), its parameters."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    a: FloatArray | None = None
    parameters: Mapping[str, FloatArray] = field(default_factory=dict)


class DifferentiableAttention(ABC):
    """An attention of every layer of a decoder, forward and backward."""

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
        """Attend: q and out (…, H, n, d), k and v (…, H_kv, n, d), a (…, n, width); `parameters` by local name."""

    @abstractmethod
    def backward(self, dout: FloatArray, cache: Any) -> LayerGradients:
        """Pull the gradient of the output back."""

    def parameter_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return name (within a layer) and shape of the parameters it has in each layer."""
        return {}

    def initial(self, config: Any, rng: np.random.Generator) -> dict[str, FloatArray]:
        """Draw the parameters of one layer, in float64."""
        return {}

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend, and keep nothing: the signature of an attention in inference."""
        return self.forward(layer, q, k, v)[0]
