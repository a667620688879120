"""Linear attention in every layer: positive features in the place of exponentials, a state of one size for any text.

As low-rank attention (`refattn.lowrank`), with elu + 1 (Katharopoulos et al. 2020, arXiv 2006.16236) or with random
features (Choromanski et al. 2020, arXiv 2009.14794). At as many features as a head is wide, the two have one state.
"""

from __future__ import annotations

from collections.abc import Mapping

from refattn._validation import FloatArray, as_count, as_option
from refattn.lowrank import (
    EluFeatures,
    FeatureMap,
    LowRankForwardCache,
    RandomFeatures,
    lowrank_attention_backward,
    lowrank_attention_forward,
)
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients

FEATURES = ("elu", "random")


class LinearAttention(DifferentiableAttention):
    """Causal attention with positive features, the same in every layer; it has no parameters.

    Parameters
    ----------
    features : {"elu", "random"}, optional
        elu + 1, as many as a head is wide; or positive random features of exponentials.
    rank : int, optional
        How many random features; as many as a head is wide by default.
    seed : int, optional
        Of the random features, the same in every forward and layer.

    Raises
    ------
    TypeError, ValueError
        An option is unknown, a number is of the wrong kind or out of range, or `rank` or `seed` came with elu.

    Notes
    -----
    Time O(n r d) a head, memory O(n r), computed in float64. Source: arXiv 2006.16236; arXiv 2009.14794 for random
    features.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import LinearAttention
    >>> q = k = np.zeros((1, 3, 1)); v = np.arange(3.0)[None, :, None]
    >>> LinearAttention()(0, q, k, v).ravel()
    array([0. , 0.5, 1. ])
    >>> LinearAttention().state_size(16), LinearAttention("random", rank=8).state_size(16)
    (272, 136)
    """

    def __init__(self, features: str = "elu", *, rank: int | None = None, seed: int | None = None) -> None:
        self.features = as_option("features", features, FEATURES)
        if features == "elu" and not (rank is None and seed is None):
            raise TypeError(f"rank, seed: {rank}, {seed} came, none was wanted: elu + 1 has as many as a head is wide")
        self.rank = None if rank is None else as_count("rank", rank, least=1)
        self.seed = as_count("seed", 0 if seed is None else seed, least=0)

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
        return lowrank_attention_forward(q, k, v, features=self._map(q.shape[-1]))

    def backward(self, dout: FloatArray, cache: LowRankForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v.

        Parameters
        ----------
        dout, cache : ndarray, LowRankForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        return LayerGradients(*lowrank_attention_backward(dout, cache))

    def state_size(self, width: int) -> int:
        """Return how many numbers a head keeps of the past: sums of features, and of features times values.

        Parameters
        ----------
        width : int
            Of the head, and of its values.
        """
        return self._map(width).rank * (width + 1)

    def _map(self, width: int) -> FeatureMap:
        if self.features == "elu":
            return EluFeatures(width)
        return RandomFeatures(width, self.rank or width, self.seed)
