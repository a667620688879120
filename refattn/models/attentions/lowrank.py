"""Low-rank attention in every layer: exponentials replaced by products of features (arXiv 2405.05219, section 6)."""

from __future__ import annotations

from collections.abc import Mapping

from refattn._validation import FloatArray, as_real, require_kind
from refattn.lowrank import (
    FeatureMap,
    LowRankForwardCache,
    lowrank_attention_backward,
    lowrank_attention_forward,
)
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients


class LowRankAttention(DifferentiableAttention):
    """Causal attention with exponentials of low rank, the same in every layer; it has no parameters.

    Parameters
    ----------
    features : FeatureMap, optional
        As for `refattn.lowrank.lowrank_attention`. Random features are those of their seed, in every forward.
    error : float, optional
        As for `refattn.lowrank.lowrank_attention`: instead of `features`. The polynomial's degree then follows the
        logits, and the gradient is that of the polynomial of this forward.

    Raises
    ------
    TypeError, ValueError
        Not exactly one of them came, it is of the wrong kind, or the error is not above 0 and below 1.

    Notes
    -----
    Time O(n r d) a head with features of rank r, memory O(n r). Source: arXiv 2405.05219, section 6.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import ExactAttention, LowRankAttention
    >>> q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 1, 16, 4))
    >>> out = LowRankAttention(error=1e-6)(0, q, k, v)
    >>> bool(np.allclose(out, ExactAttention()(0, q, k, v), atol=1e-6))
    True
    """

    def __init__(self, *, features: FeatureMap | None = None, error: float | None = None) -> None:
        if (features is None) == (error is None):
            raise TypeError(f"features, error: {'neither' if error is None else 'both'} came, one of them was wanted")
        if features is not None:
            require_kind("features", features, FeatureMap, "refattn.lowrank")
        if error is not None and as_real("error", error, positive=True) >= 1:
            raise ValueError(f"error: {error} came, above 0 and below 1 was wanted")
        self.features, self.error = features, error

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, LowRankForwardCache]:
        """Attend with features in the place of exponentials.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; the last two are not looked at.
        """
        return lowrank_attention_forward(q, k, v, features=self.features, error=self.error)

    def backward(self, dout: FloatArray, cache: LowRankForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v, the features held fixed.

        Parameters
        ----------
        dout, cache : ndarray, LowRankForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        return LayerGradients(*lowrank_attention_backward(dout, cache))
