"""The layers of a decoder, each a forward and a backward derived by hand.

Every layer is ``forward(…) -> (out, cache)`` and ``backward(dout, cache) -> gradients``, one under the other. The
backward's docstring has the derivation, and each of its steps is headed by the forward line that it reverses. Nothing
is kept but the cache, and no input is written to. Norms, SwiGLU and the softmax run in compiled loops, `_loops`, which
have the same steps under the same heads. `refattn.models.Decoder` is a chain of them.
"""

from refattn.models.layers.cross_entropy import (
    CrossEntropyCache,
    cross_entropy_backward,
    cross_entropy_forward,
)
from refattn.models.layers.embedding import EmbeddingCache, embedding_backward, embedding_forward
from refattn.models.layers.feed_forward import (
    GELUCache,
    SwiGLUCache,
    SwiGLUGradients,
    gelu_backward,
    gelu_forward,
    swiglu_backward,
    swiglu_forward,
)
from refattn.models.layers.linear import LinearCache, LinearGradients, linear_backward, linear_forward
from refattn.models.layers.normalisation import (
    NormCache,
    NormGradients,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from refattn.models.layers.rotary import rotary_backward, rotary_forward, rotation

__all__ = [
    "CrossEntropyCache",
    "EmbeddingCache",
    "GELUCache",
    "LinearCache",
    "LinearGradients",
    "NormCache",
    "NormGradients",
    "SwiGLUCache",
    "SwiGLUGradients",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "rotation",
    "swiglu_backward",
    "swiglu_forward",
]
