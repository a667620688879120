"""How near to k-conv the logits of a trained decoder are, and what exact attention makes of them (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray
from refattn.convbasis import ConvBasis, segment_means
from refattn.models import ConvAttention, Decoder, DifferentiableAttention, ExactAttention, LayerGradients
from refattn.testing import relative_error
from refattn.training.batches import Batch


class Likeness(NamedTuple):
    """Medians over layers, heads and texts.

    `residual` is ``‖H − B‖_F / ‖H‖_F`` for the logits H and the k-conv matrix B nearest to them with spread starts;
    `output` the relative error of conv attention with these starts against exact attention.
    """

    residual: float
    output: float


class _Watched(DifferentiableAttention):
    """An attention that notes what it is given."""

    def __init__(self, attention: DifferentiableAttention) -> None:
        self.attention = attention
        self.seen: list[tuple[FloatArray, FloatArray, FloatArray]] = []

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, Any]:
        self.seen.append((q.copy(), k.copy(), v.copy()))
        return self.attention.forward(layer, q, k, v, a, parameters)

    def backward(self, dout: FloatArray, cache: Any) -> LayerGradients:
        return self.attention.backward(dout, cache)


def likeness(model: Decoder, batch: Batch, attention: DifferentiableAttention, n_basis: int) -> Likeness:
    """Return how conv-like the heads of a decoder are as it reads a batch with an attention."""
    watched = _Watched(attention)
    model.evaluate(batch.tokens, batch.targets, batch.weights, attention=watched)
    conv, exact = ConvAttention(n_basis=n_basis), ExactAttention()
    residuals, outputs = [], []
    for layer, (q, k, v) in enumerate(watched.seen):
        whole, approximate = exact(layer, q, k, v), conv(layer, q, k, v)
        for place in np.ndindex(*q.shape[:-2]):
            residuals.append(logit_residual(q[place], k[place], n_basis))
            outputs.append(relative_error(approximate[place], whole[place]))
    return Likeness(float(np.median(residuals)), float(np.median(outputs)))


def logit_residual(q: ArrayLike, k: ArrayLike, n_basis: int) -> float:
    """Return the relative distance of a head's causal logits from the nearest k-conv matrix with spread starts."""
    queries, keys = np.asarray(q, np.float64), np.asarray(k, np.float64)
    n = len(queries)
    logits = np.tril(queries @ keys.T / np.sqrt(queries.shape[1]))
    nearest: ConvBasis = segment_means(logits, np.arange(n_basis) * n // n_basis)
    return float(np.linalg.norm(logits - nearest.to_dense()) / np.linalg.norm(logits))
