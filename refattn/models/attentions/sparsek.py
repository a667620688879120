"""SparseK attention with a window in every layer, and its scoring network, which is trained with the model.

The scores come from the layer's normalised input a, one linear map and one slope a key-value head (arXiv 2406.16747;
`refattn.sparsek.sparsek_scores`): so the gradient of the loss reaches them through the gates, and a through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn._validation import FloatArray, as_count, as_flag, as_option
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.sparsek import (
    ScoringForwardCache,
    SparseKForwardCache,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_scores_backward,
    sparsek_scores_forward,
)

WEIGHT, SLOPE = "scorer.weight", "scorer.slope"
_GATES = ("kv", "k", "v", "none")


class SparseKLayerCache(NamedTuple):
    """What `SparseKAttention.backward` needs.

    Attributes
    ----------
    scoring : ScoringForwardCache
        Of the scores.
    attention : SparseKForwardCache
        Of the attention.

    Examples
    --------
    >>> SparseKLayerCache._fields
    ('scoring', 'attention')
    """

    scoring: ScoringForwardCache
    attention: SparseKForwardCache


class SparseKAttention(DifferentiableAttention):
    """SparseK attention in every layer, scored by a network that is a part of the model.

    Parameters
    ----------
    n_select, window : int
        As for `refattn.sparsek.sparsek_attention`.
    gate : {"kv", "k", "v", "none"}, optional
        As for `refattn.sparsek.sparsek_attention`; with ``"none"`` the scorer gets a gradient of zero.
    hard : bool, optional
        As for `refattn.sparsek.sparsek_attention`: straight-through gates.
    normalise : bool, optional
        As for `refattn.sparsek.sparsek_scores`.

    Raises
    ------
    TypeError, ValueError
        A count is negative, or an option unknown.

    Notes
    -----
    Its parameters in a layer are ``scorer.weight``, shape (H_kv, width), and ``scorer.slope``, shape (H_kv,). Time O(n
    (n_select + window) d + n log n) a head, memory O(n d). Source: arXiv 2406.16747, SparseK attention with its scoring
    network.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import LlamaConfig, SparseKAttention
    >>> attention = SparseKAttention(n_select=2, window=2)
    >>> config = LlamaConfig(n_layers=1, width=4, ffn_width=8, vocab_size=9, n_heads=2, n_kv_heads=1, head_width=2,
    ...                      context_length=64, rope_base=1e4, norm_eps=1e-5)
    >>> attention.parameter_shapes(config)
    {'scorer.weight': (1, 4), 'scorer.slope': (1,)}
    >>> q, k, v, a = np.ones((2, 6, 2)), np.ones((1, 6, 2)), np.ones((1, 6, 2)), np.ones((6, 4))
    >>> out, cache = attention.forward(0, q, k, v, a, attention.initial(config, np.random.default_rng(0)))
    >>> attention.backward(np.ones_like(out), cache).parameters["scorer.slope"].shape
    (1,)
    """

    def __init__(
        self, n_select: int, window: int = 0, *, gate: str = "kv", hard: bool = False, normalise: bool = False
    ) -> None:
        self.n_select = as_count("n_select", n_select, least=0)
        self.window = as_count("window", window, least=0)
        self.gate, self.hard = as_option("gate", gate, _GATES), as_flag("hard", hard)
        self.normalise = as_flag("normalise", normalise)

    def parameter_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the scorer's linear map and slope.

        Parameters
        ----------
        config : LlamaConfig or GPT2Config
            As for `refattn.models.DifferentiableAttention.parameter_shapes`.
        """
        return {WEIGHT: (config.n_kv_heads, config.width), SLOPE: (config.n_kv_heads,)}

    def initial(self, config: Any, rng: np.random.Generator) -> dict[str, FloatArray]:
        """Draw a small linear map, of variance 1 / width, and slopes of zero.

        Parameters
        ----------
        config, rng : LlamaConfig or GPT2Config, numpy.random.Generator
            As for `refattn.models.DifferentiableAttention.initial`.
        """
        shapes = self.parameter_shapes(config)
        return {WEIGHT: rng.standard_normal(shapes[WEIGHT]) / np.sqrt(config.width), SLOPE: np.zeros(shapes[SLOPE])}

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, SparseKLayerCache]:
        """Score the pairs from a, and attend to what is selected and to the window.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`.
        """
        if a is None or parameters is None or not {WEIGHT, SLOPE} <= parameters.keys():
            raise ValueError(
                f"parameters: {WEIGHT!r}, {SLOPE!r} or the layer's input a were missing in layer {layer}; a model that"
                " was given this attention has them"
            )
        scores, scoring = sparsek_scores_forward(a, parameters[WEIGHT], parameters[SLOPE], normalise=self.normalise)
        out, attended = sparsek_attention_forward(
            q, k, v, scores, n_select=self.n_select, window=self.window, gate=self.gate, hard=self.hard,
            check_finite=False,
        )  # fmt: skip
        return out, SparseKLayerCache(scoring, attended)

    def backward(self, dout: FloatArray, cache: SparseKLayerCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v, and by the scores to a and to the scorer.

        Parameters
        ----------
        dout, cache : ndarray, SparseKLayerCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        # forward: out = attention(q, k, v, scores)
        dq, dk, dv, dscores = sparsek_attention_backward(dout, cache.attention)
        # forward: scores = scorer(a)
        da, dweight, dslope = sparsek_scores_backward(dscores, cache.scoring)
        return LayerGradients(dq, dk, dv, da, {WEIGHT: dweight, SLOPE: dslope})

    def pairs_per_query(self, n: int) -> int:
        """Return the pairs selected and those of the window.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return min(n, self.n_select + self.window)
